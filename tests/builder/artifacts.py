"""Small artifacts for tests: catalogues on disk, user towers in TorchScript, and what a repository holds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from builder import ops
from builder.cli.main import main
from builder.config import Config
from builder.export.artifact import export
from builder.export.sources import from_embeddings

DIMS = 8
VERSION_FILES = ["config.pbtxt", "libsilvertriton_ops.so", "manifest.json", "model.pt", "model.py"]
GPU_CONFIGS = ["python-gpu.pbtxt", "pytorch-gpu.pbtxt"]


def run(*arguments: object) -> int:
    """The exit code of `builder ARGUMENTS`; what it prints is captured by capsys."""
    before = sys.argv
    sys.argv = ["builder", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def listing(folder: Path) -> list[str]:
    """Every file and folder below, relative and sorted; [] if the folder is not there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def configs(*others: str) -> list[str]:
    """Names in a version's folder, or in configs/, of the configurations that every version has; sorted."""
    ops.load()
    return sorted(["pytorch.pbtxt", *(GPU_CONFIGS if ops.cuda_targets() else ()), *others])


def version_listing(*numbers: int, model: str = "retrieval") -> list[str]:
    """What a repository of one model and its ranking model holds when these versions were written whole."""
    names = []
    for home in (model, f"{model}_rank"):
        names += [home, f"{home}/config.pbtxt", f"{home}/configs", *(f"{home}/configs/{name}" for name in configs())]
        for number in numbers:
            names += [f"{home}/{number}", *(f"{home}/{number}/{name}" for name in {*VERSION_FILES, *configs()})]
    return sorted(names)


def write_config(folder: Path, vectors: Any, text: str = "", *, embeddings: str = "path: vectors.npy") -> Path:
    """vectors.npy and a retrieval.yaml beside it; `text`: further sections."""
    np.save(folder / "vectors.npy", vectors)
    path = folder / "retrieval.yaml"
    path.write_text(f"name: test\nembeddings: {{{embeddings}}}\n{text}")
    return path


def export_config(path: Path, repository: Path, *, model: str = "retrieval") -> Path:
    return export(from_embeddings(Config.load(path)), repository, model=model)


def export_vectors(folder: Path, vectors: Any, text: str = "index: {results: 10}\n") -> Path:
    """Export vectors whose row numbers are the item ids; returns the version directory."""
    return export_config(write_config(folder, vectors, text), folder / "repository")


def write_items(folder: Path, columns: dict[str, Any]) -> Path:
    path = folder / "items.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def neutral(rows: int, query: Tensor | None = None) -> dict[str, Tensor]:
    """The inputs of a request that asks for nothing special, with `query [rows, D]` if the artifact takes one."""
    inputs = {} if query is None else {"query": query}
    return {
        **inputs,
        "filter": torch.zeros(rows, 2, dtype=torch.int64),
        "exclude": torch.full((rows, 1), -1),
        "task_weights": torch.full((rows, 1), float("nan")),
        "search": torch.zeros(rows, 2, dtype=torch.int32),
    }


def ask(version: Path, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Run an artifact in this process: item_ids, scores, task_scores, count, status, stats."""
    with torch.inference_mode():
        outputs: tuple[Tensor, ...] = torch.jit.load(str(version / "model.pt"))(**inputs)
    return outputs


def ask_ranking(version: Path, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Run the ranking model of a version in this process: scores, task_scores, known, status."""
    return ask(version.parents[1] / f"{version.parent.name}_rank" / version.name, inputs)


def exact(vectors: np.ndarray, query: np.ndarray, k: int, ids: np.ndarray | None = None) -> list[int]:
    """Ids of the k best items by inner product in float64, ties by smaller id."""
    ids = np.arange(len(vectors)) if ids is None else ids
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    found: list[int] = ids[np.lexsort((ids, -scores))[:k]].tolist()
    return found


def keep_at_most(
    ranked: Iterable[int], values: Mapping[int, Mapping[str, Iterable[str]]], rules: Mapping[str, int], k: int
) -> list[int]:
    """The first k of the ranked items, best first, that obey `rules`; `values` of each item by feature."""
    kept: list[int] = []
    taken: Counter[tuple[str, str]] = Counter()
    for item in ranked:
        shared = [(name, value) for name in rules for value in values[item][name]]
        if len(kept) < k and all(taken[name, value] < rules[name] for name, value in shared):
            kept.append(item)
            taken.update(shared)
    return kept


class Tower(nn.Module):
    """A user tower as someone else would write one: a category, a number and the history."""

    def __init__(self, dims: int = DIMS) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("of_category", torch.randn(7, dims, generator=generator))
        self.register_buffer("of_age", torch.randn(dims, generator=generator))
        self.register_buffer("of_item", torch.randn(11, dims, generator=generator))

    def forward(self, history: Tensor, status: Tensor, age: Tensor) -> Tensor:
        known = torch.nan_to_num(age) / 50
        items = self.of_item[history.clamp(min=0) % 11] * (history >= 0).unsqueeze(2)
        return self.of_category[status[:, 0] % 7] + known * self.of_age + items.sum(1)


# A feature called "status" must not meet the network's own status.
TOWER_SECTIONS = """
data:
  users: {features: [{name: status, kind: category, values: integer}, {name: age, kind: number}]}
network: {history: 4}
index: {results: 10}
"""


def save_tower(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path
