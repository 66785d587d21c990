"""User towers of one's own: refused before anything is built, or served as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builder import ops
from builder.errors import ConfigError
from builder.export.torchscript import load_tower, script
from builder.index.build import build_index
from builder.network.items import ItemFeatures
from builder.network.pipeline import Pipeline, input_names
from builder.network.rerank import RetrievalScore
from builder.network.search import Search
from builder.network.value import ValueModel
from client.hashing import UNKNOWN_KEY
from client.schema import Feature, Schema
from tests.builder.artifacts import (
    DIMS,
    TOWER_SECTIONS,
    Tower,
    ask,
    exact,
    export_config,
    listing,
    neutral,
    save_tower,
    version_listing,
    write_config,
)

FEATURES = (Feature("status", "category", "integer"), Feature("age", "number"))


class OneVector(nn.Module):
    """One vector for the whole batch: right for one user, wrong for two."""

    def forward(self, status: Tensor, age: Tensor, history: Tensor) -> Tensor:
        return torch.zeros(1, 8)


class Doubles(nn.Module):
    def forward(self, status: Tensor, age: Tensor, history: Tensor) -> Tensor:
        return torch.zeros(status.size(0), 8, dtype=torch.float64)


class Pair(nn.Module):
    def forward(self, status: Tensor, age: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(status.size(0), 8), age


class OutOfRange(nn.Module):
    """Looks up the key as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)

    def forward(self, status: Tensor, age: Tensor, history: Tensor) -> Tensor:
        return self.table(status[:, 0])


class KnownKeys(nn.Module):
    """Knows the key that stands for none, and no others beside its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)

    def forward(self, status: Tensor, age: Tensor, history: Tensor) -> Tensor:
        return self.table(torch.where(status < 0, 0, status)[:, 0])


class KnownLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.ones(64, 8))

    def forward(self, status: Tensor, age: Tensor, history: Tensor) -> Tensor:
        return ((history >= 0).unsqueeze(2) * self.positions[: history.size(1)]).sum(1)


class OtherNames(nn.Module):
    def forward(self, user_id: Tensor, age: Tensor) -> Tensor:
        return torch.zeros(user_id.size(0), 8)


REFUSED: list[tuple[nn.Module, str]] = [
    (Tower(DIMS + 1), r"returns \[3, 9\] float32 for 3 users, expected \[3, 8\] float32"),
    (OneVector(), r"returns \[1, 8\] float32 for 3 users, expected \[3, 8\] float32"),
    (Doubles(), r"returns \[3, 8\] float64 for 3 users, expected \[3, 8\] float32"),
    (Pair(), r"returns tuple, expected one tensor \[3, 8\] float32"),
    (OutOfRange(), f"raises on a user of whom nothing is known: .*\n.*category {UNKNOWN_KEY}"),
    (KnownKeys(), r"raises on a user with values that it has not seen: .*\n.*any int64 as a category"),
    (KnownLength(), r"raises on a user with a history of 3,072 entries: .*\n.*Read the newest"),
    (OtherNames(), r"forward takes \(user_id, age\), the configuration declares \(status, age, history\)"),
]


@pytest.mark.parametrize(("module", "message"), REFUSED, ids=[type(case[0]).__name__ for case in REFUSED])
def test_a_tower_that_cannot_serve_is_refused(tmp_path: Path, module: nn.Module, message: str) -> None:
    path = save_tower(module, tmp_path / "tower.pt")
    with pytest.raises(ConfigError, match=message) as caught:
        load_tower(path, FEATURES, 4, DIMS)
    assert str(caught.value).startswith(f"embeddings.query, {path}: ")


@pytest.mark.parametrize("content", [b"", b"not a zip", None], ids=["empty", "text", "missing"])
def test_a_file_that_is_no_torchscript_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tower.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not a TorchScript module") as caught:
        load_tower(path, FEATURES, 4, DIMS)
    assert "torch.jit.script(tower).save(path)" in caught.value.remedy


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(Tower().state_dict(), tmp_path / "tower.pt")
    with pytest.raises(ConfigError, match="is not a TorchScript module"):
        load_tower(tmp_path / "tower.pt", FEATURES, 4, DIMS)


def test_a_refused_tower_leaves_no_repository(tmp_path: Path) -> None:
    save_tower(Tower(DIMS + 1), tmp_path / "tower.pt")
    config = write_config(
        tmp_path, np.eye(DIMS, dtype=np.float32), TOWER_SECTIONS, embeddings="path: vectors.npy, query: tower.pt"
    )
    with pytest.raises(ConfigError, match="returns"):
        export_config(config, tmp_path / "repository")
    assert listing(tmp_path / "repository") == []


def test_an_exported_tower_gets_each_feature_by_name(tmp_path: Path) -> None:
    seed = 3
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(300, DIMS)).astype(np.float32)
    save_tower(Tower(), tmp_path / "tower.pt")
    config = write_config(tmp_path, vectors, TOWER_SECTIONS, embeddings="path: vectors.npy, query: tower.pt")
    version = export_config(config, tmp_path / "repository")
    assert listing(tmp_path / "repository") == version_listing(1)
    user = {
        "status": torch.tensor([[3], [UNKNOWN_KEY], [6], [1]]),
        "age": torch.tensor([[20.0], [float("nan")], [float("inf")], [70.0]]),
        "history": torch.tensor([[-1, -1, 5], [-1, -1, -1], [1, 2, 3], [-1, -2, 4]]),
    }
    item_ids, _, _, count, status, _ = ask(version, {**user, **neutral(4)})
    assert status[:, 0].tolist() == [0, 0, 1, 2], f"seed {seed}"  # infinite age, an id below -1
    assert count[:, 0].tolist() == [10, 10, 0, 0]
    queries = Tower()(**user).numpy()
    for row in (0, 1):
        assert item_ids[row].tolist() == exact(vectors, queries[row], 10), f"seed {seed}, row {row}"


@pytest.mark.parametrize("name", ["status", "features", "query_", "torch", "List", "match", "inf"])
def test_a_user_feature_may_have_any_python_name(name: str) -> None:
    ops.load()
    index = build_index(np.eye(4, dtype=np.float32), np.arange(4), (), clusters=1, seed=0)
    schema = Schema("t", (Feature(name, "category", "integer"),), (), ("score",), 0, 0, 2, 4, 1)
    search = Search(index, fingerprint=0, probes=1, candidates=4, max_candidates=4)

    class OneHot(nn.Module):
        def forward(self, features: list[Tensor], history: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(features[0][:, 0], 4).float() + history[:, :1] + 1

    network = script(
        Pipeline(OneHot(), search, RetrievalScore(), ValueModel(["score"]), ItemFeatures({}), results=2), schema
    )
    assert input_names(schema) == (name, "filter", "exclude", "task_weights", "search")
    item_ids, scores, *_ = network(**{name: torch.tensor([[2], [0]])}, **neutral(2))
    assert item_ids.tolist() == [[2, 0], [0, 1]]
    np.testing.assert_allclose(scores.tolist(), [[1, 0], [1, 0]], atol=1e-3)
