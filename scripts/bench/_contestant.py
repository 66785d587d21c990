"""One contestant of scripts/bench/ann in a process of its own, driven by lines of JSON on stdin.

    python _contestant.py NAME FOLDER THREADS

FOLDER holds vectors.npy [N, D], queries.npy [Q, D], exact.npy [Q, K] and for a filtered run groups.npy [N] (the group
of each item) and exact_G.npy [Q, K] (-1 past the last passing item). Built indexes are kept there and used again.
Needs nothing but NumPy and the contestant's own package, so that each may run under an interpreter of its own.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

K = 100
GROUPS = ("0.1%", "1%", "10%", "50%", "rest")  # of the items; what a filtered search asks for
SECONDS = {"recall": 4.0, "seconds": 2.0}  # at most, of a contestant so slow that it does not get through all queries
Setting = dict[str, Any]


class Unsupported(Exception):
    """The library cannot do what is asked; the benchmark prints so and goes on without it."""


def clusters(items: int) -> int:
    """Inverted lists for the peers that take them: a power of two near 2 sqrt(N)."""
    return 1 << round(np.log2(2 * np.sqrt(items)))


def probes(items: int) -> list[int]:
    most = clusters(items)
    return sorted({max(1, round(most * share)) for share in np.geomspace(0.004, 0.9, 25)})


class Faiss:
    """Faiss by an index_factory string; `refined`: it ends in RFlat and k_factor is swept too."""

    def __init__(self, spec: str, *, refined: bool = False, graph: bool = False) -> None:
        self.spec, self.refined, self.graph = spec, refined, graph

    def build(self, folder: Path, vectors: np.ndarray) -> None:
        import faiss

        self.faiss = faiss
        self.items = len(vectors)
        dims = vectors.shape[1]
        spec = self.spec.format(lists=clusters(self.items), d=dims, half=dims // 2, quarter=dims // 4, narrow=dims // 8)
        path = folder / f"faiss-{spec.replace(',', '_')}.index"
        if path.exists():
            self.index = faiss.read_index(str(path))
        else:
            self.index = faiss.index_factory(vectors.shape[1], spec, faiss.METRIC_INNER_PRODUCT)
            sample = np.random.default_rng(0).choice(
                self.items, min(self.items, clusters(self.items) * 100), replace=False
            )
            self.index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
            self.index.add(np.ascontiguousarray(vectors))
            faiss.write_index(self.index, str(path))

    def threads(self, count: int) -> None:
        self.faiss.omp_set_num_threads(count)

    def settings(self) -> list[Setting]:
        if self.graph:
            return [{"ef": ef} for ef in (50, 100, 200, 400, 800, 1600, 3200)]
        factors = (1.5, 2, 4, 8) if self.refined else (0,)
        return [{"probes": p, "factor": f} for f in factors for p in probes(self.items)]

    def prepare(self, setting: Setting, passing: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
        faiss = self.faiss
        more = {}
        if passing is not None:
            self.bits = np.packbits(passing, bitorder="little")
            more["sel"] = faiss.IDSelectorBitmap(self.bits)
        if self.graph:
            parameters: Any = faiss.SearchParametersHNSW(efSearch=setting["ef"], **more)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=setting["probes"], **more)
            inner = faiss.downcast_index(self.index.base_index) if self.refined else self.index
            if isinstance(faiss.downcast_index(inner), faiss.IndexPreTransform):
                parameters = faiss.SearchParametersPreTransform(index_params=parameters)
            if self.refined:
                parameters = faiss.IndexRefineSearchParameters(k_factor=setting["factor"], base_index_params=parameters)
        return lambda queries: np.asarray(self.index.search(queries, K, params=parameters)[1])


class Hnswlib:
    def build(self, folder: Path, vectors: np.ndarray) -> None:
        import hnswlib

        path = folder / "hnswlib.index"
        self.index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        if path.exists():
            self.index.load_index(str(path), max_elements=len(vectors))
        else:
            self.index.init_index(max_elements=len(vectors), M=16, ef_construction=200)
            self.index.add_items(np.ascontiguousarray(vectors), np.arange(len(vectors)))
            self.index.save_index(str(path))

    def threads(self, count: int) -> None:
        self.index.set_num_threads(count)

    def settings(self) -> list[Setting]:
        return [{"ef": ef} for ef in (100, 200, 400, 800, 1600, 3200)]

    def prepare(self, setting: Setting, passing: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
        self.index.set_ef(setting["ef"])
        allowed = None if passing is None else (lambda item: bool(passing[item]))
        return lambda queries: np.asarray(self.index.knn_query(queries, k=K, filter=allowed)[0]).astype(np.int64)


class Usearch:
    def build(self, folder: Path, vectors: np.ndarray) -> None:
        from usearch.index import Index

        path = folder / "usearch.index"
        self.index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=128)
        self.count = 1
        if path.exists():
            self.index.load(str(path))
        else:
            self.index.add(np.arange(len(vectors)), np.ascontiguousarray(vectors))
            self.index.save(str(path))

    def threads(self, count: int) -> None:
        self.count = count

    def settings(self) -> list[Setting]:
        return [{"ef": ef} for ef in (100, 200, 400, 800, 1600, 3200)]

    def prepare(self, setting: Setting, passing: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
        if passing is not None:
            raise Unsupported("its Python interface takes no predicate")
        self.index.expansion_search = setting["ef"]

        def search(queries: np.ndarray) -> np.ndarray:
            keys = self.index.search(queries, K, threads=self.count).keys
            return np.asarray(keys).reshape(-1, K).astype(np.int64)

        return search


class Scann:
    def build(self, folder: Path, vectors: np.ndarray) -> None:
        import scann

        self.items = len(vectors)
        builder = scann.scann_ops_pybind.builder(np.ascontiguousarray(vectors), K, "dot_product")
        builder = builder.tree(
            num_leaves=clusters(self.items), num_leaves_to_search=32, training_sample_size=min(self.items, 250_000)
        )
        self.index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(200).build()

    def threads(self, count: int) -> None:
        self.count = count
        self.index.set_num_threads(count)

    def settings(self) -> list[Setting]:
        return [{"probes": p, "reorder": r} for r in (120, 200, 400, 800) for p in probes(self.items)]

    def prepare(self, setting: Setting, passing: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
        if passing is not None:
            raise Unsupported("it has no filters")
        given = {"leaves_to_search": setting["probes"], "pre_reorder_num_neighbors": setting["reorder"]}

        def search(queries: np.ndarray) -> np.ndarray:
            if len(queries) == 1:
                found = np.asarray(self.index.search(queries[0], K, **given)[0]).astype(np.int64)
                return np.pad(found, (0, K - len(found)), constant_values=-1)[None]  # it may find fewer
            batched = self.index.search_batched_parallel if self.count > 1 else self.index.search_batched
            return np.asarray(batched(queries, K, **given)[0]).astype(np.int64)

        return search


class SilverTriton:
    """The exported network as it is served: filter program, search and selection in one forward pass."""

    def build(self, folder: Path, vectors: np.ndarray) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        import pyarrow as pa
        import pyarrow.parquet as pq
        import torch

        from builder import ops
        from builder.export.artifact import export
        from builder.export.manifest import read_manifest
        from builder.export.sources import read_source

        self.torch = torch
        self.contexts = ExitStack()  # as it is served: builder/serving/triton_model.py
        self.contexts.enter_context(torch.inference_mode())
        self.contexts.enter_context(torch.jit.optimized_execution(False))
        ops.load()
        repository = folder / "repository"
        shutil.rmtree(repository, ignore_errors=True)  # made by what the builder was then
        groups = np.load(folder / "groups.npy")
        names = pa.array(np.array(GROUPS)[groups].tolist())
        pq.write_table(pa.table({"id": np.arange(len(vectors)), "share": names}), folder / "items.parquet")
        (folder / "retrieval.yaml").write_text(
            "name: bench\n"
            "data:\n"
            "  items: {path: items.parquet, id: id, features: [{name: share, kind: category, filter: true}]}\n"
            "embeddings: {path: vectors.npy, samples: samples.npy}\n"
            "index: {recall: 0.95}\n"
        )
        torch.set_num_threads(os.cpu_count() or 1)
        export(read_source(folder / "retrieval.yaml"), repository)
        version = next((repository / "retrieval").glob("[0-9]*"))
        self.manifest = read_manifest(version)
        self.network = torch.jit.load(str(version / "model.pt")).eval()
        self.forward, self.reach = self.network.forward, self.network.search.reach.clone()

    def threads(self, count: int) -> None:
        self.torch.set_num_threads(count)

    def settings(self) -> list[Setting]:
        reach = [round(float(added), 2) for added in np.arange(-1.2, 2.01, 0.1)]  # beside the default
        return [{"candidates": c, "reach": r} for c in (110, 120, 150, 200) for r in reach]

    def prepare(self, setting: Setting, passing: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
        from client import F, compile_filter

        torch = self.torch
        program = np.zeros(2, dtype=np.int64)
        if passing is not None:
            program = np.asarray(compile_filter(F.share == setting["share"], self.manifest.read_schema()))
        reach = self.reach + setting["reach"]
        limits = torch.tensor([[0, setting["candidates"]]], dtype=torch.int32)
        inputs = [torch.from_numpy(program)[None], torch.full((1, 1), -1), torch.full((1, 1), torch.nan), limits]
        whole = {count: [tensor.repeat(count, 1) for tensor in inputs] for count in (1, 64)}

        def search(queries: np.ndarray) -> np.ndarray:
            neutral = whole.get(len(queries)) or [tensor.repeat(len(queries), 1) for tensor in inputs]
            return np.asarray(self.forward(torch.from_numpy(queries), *neutral)[0].numpy())

        self.network.search.reach.copy_(reach)

        return search


CONTESTANTS: dict[str, Callable[[], Any]] = {
    "silvertriton": SilverTriton,
    "faiss-ivf-flat": lambda: Faiss("IVF{lists},Flat"),
    "faiss-ivf-sq8": lambda: Faiss("IVF{lists},SQ8"),
    "faiss-ivf-pq-fastscan": lambda: Faiss("IVF{lists},PQ{half}x4fs,RFlat", refined=True),
    "faiss-opq-ivf-pq-fastscan": lambda: Faiss("OPQ{quarter}_{d},IVF{lists},PQ{quarter}x4fs,RFlat", refined=True),
    "faiss-pca-ivf-sq8": lambda: Faiss("PCAR{quarter},IVF{lists},SQ8,RFlat", refined=True),
    "faiss-pca-ivf-sq8-narrow": lambda: Faiss("PCAR{narrow},IVF{lists},SQ8,RFlat", refined=True),
    "faiss-hnsw": lambda: Faiss("HNSW32", graph=True),
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "scann": Scann,
}


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")  # what a library prints must not mix with the answers
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    contestant = CONTESTANTS[name]()
    queries = np.load(folder / "queries.npy")
    started = time.perf_counter()
    try:
        contestant.build(folder, np.load(folder / "vectors.npy", mmap_mode="r"))
    except ImportError as error:
        answer(missing=str(error))
        return
    contestant.threads(threads)
    gc.collect()
    gc.freeze()  # Python's collector would go through every library's objects while a search is timed
    answer(settings=contestant.settings(), build_s=round(time.perf_counter() - started, 1))
    groups = np.load(folder / "groups.npy")
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer(**run(contestant, queries, groups, folder, asked))
        except (Unsupported, RuntimeError, TypeError) as error:
            answer(error=str(error).strip().splitlines()[-1])


def run(
    contestant: Any, queries: np.ndarray, groups: np.ndarray, folder: Path, asked: dict[str, Any]
) -> dict[str, Any]:
    """Answer {"setting", "group" or null, "batch"}: with "measure": "recall" or "seconds"."""
    group, batch, setting = asked["group"], asked["batch"], asked["setting"]
    if "threads" in asked:
        contestant.threads(asked["threads"])
    if group is not None:
        setting = {**setting, "share": GROUPS[group]}
    search = contestant.prepare(setting, None if group is None else groups == group)
    parts = [np.ascontiguousarray(queries[i : i + batch]) for i in range(0, len(queries) - batch + 1, batch)]
    search(parts[0])
    found: list[np.ndarray] = []
    least, most = asked.get("at_least", 0.0), SECONDS[asked["measure"]]
    started = time.perf_counter()
    while not found or time.perf_counter() - started < least:  # all queries, again and again
        for part in parts:
            if found and time.perf_counter() - started > most:
                break
            found.append(search(part))
    elapsed = time.perf_counter() - started
    if asked["measure"] == "seconds":
        return {"qps": len(found) * batch / elapsed}
    rows = np.concatenate(found)
    exact = np.load(folder / ("exact.npy" if group is None else f"exact_{group}.npy"))
    wanted = [row[row >= 0] for row in exact[: len(rows)]]
    hits = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(rows, wanted, strict=True)]
    short = sum(int((a >= 0).sum() < len(b)) for a, b in zip(rows, wanted, strict=True))
    if group is not None and any((groups[row[row >= 0]] != group).any() for row in rows):
        return {"error": "returned an item that does not pass"}
    return {"recall": float(np.mean(hits)), "queries": len(rows), "short": short}


if __name__ == "__main__":
    main()
