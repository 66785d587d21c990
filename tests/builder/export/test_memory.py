"""What is estimated before an export is what the export writes, and what a process takes that loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builder.errors import BuilderError
from builder.export import memory
from builder.export.artifact import export
from builder.export.manifest import MODEL_FILE, read_manifest
from builder.export.sources import read_source
from builder.network.neighbours import Neighbours
from builder.network.rerank import Kind, Reranker, Reranking
from builder.network.vocabulary import Vocabulary
from tests.builder.artifacts import run, write_config, write_items

SEED, ITEMS, DIMS = 4, 40_000, 512
DATA = """
data:
  items:
    path: items.parquet
    id: sku
    features:
      - {name: shop, kind: category, filter: true}
      - {name: genres, kind: tags, filter: true}
      - {name: price, kind: number, filter: true}
      - {name: added, kind: date}
diversity: {at_most: {genres: 5}, mmr: 0.9}
"""
INDEX = "index: {results: 10, clusters: 12, probes: 2, candidates: 64, code_dims: %d}\n"
LOADS = """
import re, sys, torch
def resident():
    status = open("/proc/self/status").read()
    return [int(re.search(rf"^{name}:\\s+(\\d+)", status, re.M).group(1)) * 1024 for name in ("VmRSS", "VmHWM")]
torch.ops.load_library(sys.argv[1] + "/libsilvertriton_ops.so")
before, _ = resident()
network = torch.jit.load(sys.argv[1] + "/model.pt")
print(before, *resident())
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration and the version exported from it."""
    folder = tmp_path_factory.mktemp("memory")
    rng = np.random.default_rng(SEED)
    write_items(
        folder,
        {
            "sku": np.arange(ITEMS),
            "shop": [f"shop {shop}" if shop else None for shop in rng.integers(900, size=ITEMS)],
            "genres": [rng.choice(40, rng.integers(5), replace=False).astype(str).tolist() for _ in range(ITEMS)],
            "price": np.where(rng.random(ITEMS) < 0.1, np.nan, rng.random(ITEMS)),
            "added": rng.integers(10**6, size=ITEMS).astype("datetime64[s]"),
        },
    )
    vectors = rng.normal(size=(ITEMS, DIMS)).astype(np.float32)
    np.save(folder / "queries.npy", vectors[:20])
    config = write_config(folder, vectors, DATA + INDEX % DIMS, embeddings="path: vectors.npy, samples: queries.npy")
    return config, export(read_source(config), folder / "repository", rank=False)


def test_the_parts_are_those_of_the_artifact(exported: tuple[Path, Path]) -> None:
    config, version = exported
    manifest = read_manifest(version)
    estimate = memory.of_source(read_source(config))
    for name, size in estimate.parts.items():
        assert size == pytest.approx(manifest.index.bytes.get(name, 0), rel=0.02), f"{name}, seed {SEED}"
    assert estimate.tensors == pytest.approx(manifest.files[MODEL_FILE].bytes, rel=0.01)
    assert memory.of_version(manifest).tensors == manifest.files[MODEL_FILE].bytes
    assert memory.of_version(manifest).request == pytest.approx(estimate.request, rel=0.02)


@pytest.mark.parametrize("kind", ["mlp", "mol", "graph"])
def test_the_part_of_a_reranker(exported: tuple[Path, Path], kind: Kind) -> None:
    graph = Neighbours(torch.zeros(ITEMS, 3, dtype=torch.int32), torch.zeros(ITEMS, 3), history=5)
    popularity = np.arange(ITEMS)
    reranker = Reranker(kind, (), popularity, dims=DIMS, tasks=2, hidden=200, neighbours=graph)
    parts = memory.of_source(replace(read_source(exported[0]), reranker=reranker)).parts
    rows = parts["vectors"] // (2 * DIMS)
    kept = torch.zeros(rows, reranker.item_side.project.out_features, dtype=torch.float16)
    served = Reranking(reranker.scorer, kept, graph, Vocabulary(popularity))
    assert parts["reranker"] == sum(tensor.nbytes for tensor in (*served.parameters(), *served.buffers()))


def test_a_process_that_loads_it_takes_so_much(exported: tuple[Path, Path]) -> None:
    config, version = exported
    estimate = memory.of_source(read_source(config))
    output = subprocess.run([sys.executable, "-c", LOADS, version], capture_output=True, text=True, check=True).stdout
    before, after, most = map(int, output.split())
    assert after - before == pytest.approx(estimate.tensors, rel=0.15)
    assert most - before < 1.25 * estimate.tensors
    assert after == pytest.approx(estimate.resident(1), rel=0.25)
    assert most < 1.25 * estimate.loading(1)


def test_ten_times_the_items(exported: tuple[Path, Path]) -> None:
    source = read_source(exported[0])
    once, ten = memory.of_source(source), memory.of_source(source, 10 * ITEMS)
    for name in ("codes", "vectors", "ids", "filters", "forward columns", "diversity"):
        assert ten.parts[name] == pytest.approx(10 * once.parts[name], rel=0.05), name
    assert ten.parts["centroids"] == once.parts["centroids"]  # the configuration names 12 clusters


def test_it_is_shown(exported: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, version = exported
    assert run("estimate-memory", version, "--json", "--batch", 2, "--instances", 3) == 0
    shown = json.loads(capsys.readouterr().out)
    estimate = memory.of_version(read_manifest(version))
    assert shown["parts"] == estimate.parts
    assert shown["model.pt"] == shown["GPU, its tensors"] == estimate.tensors
    assert shown["requests"] == 2 * estimate.request
    assert shown["host, served"] == estimate.resident(3) + 3 * 2 * estimate.request
    assert run("estimate-memory", config, "--items", 1_000_000) == 0
    assert "1,000,000 items, codes of 512 dims" in capsys.readouterr().out


def test_a_version_has_the_items_that_it_has(exported: tuple[Path, Path]) -> None:
    assert run("estimate-memory", exported[1], "--items", 5) == 1
    with pytest.raises(BuilderError, match="no such file"):
        read_source(exported[1] / "nothing")
