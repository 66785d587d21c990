"""Several instances of a served model hold one copy of the index between them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from builder.export.artifact import export
from builder.export.manifest import read_manifest
from builder.export.sources import read_source
from builder.serving.server import StockServer
from client import RetrievalClient
from tests.builder.artifacts import exact, write_config

pytestmark = pytest.mark.server

SEED, ITEMS, DIMS = 8, 25_000, 1024  # 51 MB of float16 vectors, 26 MB of codes
INSTANCES = 3


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(SEED).normal(size=(ITEMS, DIMS)).astype(np.float32)


@pytest.fixture(scope="module")
def repository(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models "many" of three instances, "many_rank", which ranks for it, of three more, "one" of one instance and the
    files of "many", and "small" of next to no index."""
    folder = tmp_path_factory.mktemp("instances")
    np.save(folder / "queries.npy", vectors[:20])
    index = f"index: {{results: 10, clusters: 4, probes: 2, candidates: 64, code_dims: {DIMS}}}\n"
    config = write_config(folder, vectors, index, embeddings="path: vectors.npy, samples: queries.npy")
    repository = folder / "repository"
    export(read_source(config), repository, model="many", instances=INSTANCES)
    shutil.copytree(repository / "many", repository / "one")
    text = (repository / "many" / "config.pbtxt").read_text()
    text = text.replace('name: "many"', 'name: "one"').replace(f"count: {INSTANCES}\n", "count: 1\n")
    (repository / "one" / "config.pbtxt").write_text(text)
    np.save(folder / "small.npy", np.eye(4, dtype=np.float32))
    export(read_source(folder / "small.npy"), repository, model="small", rank=False)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    with StockServer(repository, log=tmp_path_factory.mktemp("log") / "server.log") as server:
        yield server


def memory_of(server: StockServer, model: str) -> list[int]:
    """Bytes of each process of a model's instances; what processes share is divided among them (Pss)."""
    assert server._process is not None
    found = []
    for process in psutil.Process(server._process.pid).children(recursive=True):
        if process.name() == "triton_python_backend_stub" and f"/{model}/1/model.py" in " ".join(process.cmdline()):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            found += [int(size) * 1024 for size in re.findall(r"^Pss:\s+(\d+) kB$", rollup, flags=re.MULTILINE)]
    return found


def answers(server: StockServer, model: str, queries: np.ndarray) -> list[tuple[list[int], list[float]]]:
    """Asked many at a time, so that every instance has its share."""
    with RetrievalClient(server.url, model=model, timeout=30.0) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda query: client.retrieve(query=query, k=10), queries))
    return [(result.item_ids.tolist(), result.scores.tolist()) for result in results]


def test_instances_answer_as_one_does(server: StockServer, vectors: np.ndarray) -> None:
    queries = np.random.default_rng(SEED + 1).normal(size=(60, DIMS)).astype(np.float32)
    alone = answers(server, "one", queries)
    assert answers(server, "many", queries) == alone
    own = answers(server, "many", vectors[:5])
    assert [ids[0] for ids, _ in own] == [exact(vectors, query, 1)[0] for query in vectors[:5]] == [0, 1, 2, 3, 4]


def test_instances_need_one_copy_of_the_index(server: StockServer, repository: Path) -> None:
    copy = sum(read_manifest(repository / "many" / "1").index.bytes.values())
    assert copy > 75e6
    answers(server, "many", np.ones((20, DIMS), np.float32))
    with RetrievalClient(server.url, model="many", timeout=30.0) as client:
        for _ in range(20):
            assert client.rank(query=np.ones(DIMS, np.float32), items=range(ITEMS)).count == ITEMS
    small, one, many, rank = (memory_of(server, model) for model in ("small", "one", "many", "many_rank"))
    assert (len(small), len(one), len(many), len(rank)) == (1, 1, INSTANCES, INSTANCES)
    assert one[0] - small[0] > 0.9 * copy
    assert sum(many) + sum(rank) - 2 * INSTANCES * small[0] < 1.5 * copy
