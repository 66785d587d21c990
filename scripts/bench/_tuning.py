"""Faiss at the recall of the unified model: index type, probes and refinement, on requests that are not replayed.

For each number of candidates, and each class of filters by the share of items they leave (mesh_services/retriever.py),
the setting of each index type that takes the least time among those that find as much of the exact, filtered, top
candidates as the unified model finds. Then the index type that takes the least time over all tuning requests.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from mesh_services.retriever import SHARES, Retriever
from mesh_services.sets import DenseSets, evaluate

TUNED = 32  # requests of each class
SPECS = (  # as in scripts/bench/ann; {lists} a power of two near 2 sqrt(N)
    "IVF{lists},Flat",
    "IVF{lists},SQ8",
    "IVF{lists},PQ{half}x4fs,RFlat",
    "PCAR{half},IVF{lists},SQ8,RFlat",
    "PCAR{quarter},IVF{lists},SQ8,RFlat",
)
GRAPH = "HNSW32"
GRAPH_ITEMS = 45_000  # a graph of a million takes 14 minutes to build, and was slower (docs/performance.md)
FACTORS = (1.0, 1.5, 2.0, 4.0)  # of candidates that are refined
LISTED = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
TOLERANCE = 0.001


class Truth:
    """Tuning requests with what an exact search finds for them."""

    def __init__(self, folder: Path, network: Any, users: list[str], most: int, tuned: int) -> None:
        with np.load(folder / "requests.npz") as stored:
            requests = {name: stored[name] for name in stored.files}
        half = len(requests["exclude"]) // 2
        self.sets = DenseSets(np.load(folder / "columns.npz"))
        self.vectors = np.load(folder / "vectors.npy")
        self.ids = np.load(folder / "ids.npy")
        classes: dict[int, list[int]] = {}
        self.passing: dict[int, np.ndarray] = {}
        for request in range(half):
            words = evaluate(requests["filter"][request], self.sets)
            share = self.sets.count(words) / self.sets.items
            members = classes.setdefault(next(i for i, least in enumerate(SHARES) if share >= least), [])
            if len(members) < tuned:
                members.append(request)
                self.passing[request] = words
        self.weights = {place: len(members) for place, members in classes.items()}
        self.classes, self.requests = classes, requests
        self.queries = queries_of(network, {name: requests[name] for name in users})
        self.exact = {request: self._exact(request, most) for request in self.passing}

    def _exact(self, request: int, count: int) -> np.ndarray:
        positions = self.sets.positions(self.passing[request])
        excluded = np.isin(self.ids[positions], self.requests["exclude"][request])
        positions = positions[~excluded]
        scores = self.vectors[positions] @ self.queries[request]
        if len(positions) > count:
            best = np.argpartition(-scores, count)[:count]
            positions, scores = positions[best], scores[best]
        return positions[np.argsort(-scores, kind="stable")]

    def recall(self, request: int, found: np.ndarray, count: int) -> float:
        exact = self.exact[request][:count]
        return len(np.intersect1d(found, exact)) / len(exact) if len(exact) else 1.0


def queries_of(network: Any, users: dict[str, np.ndarray]) -> np.ndarray:
    """Query vectors `[Q, D] float32` of the unified network's tower."""
    history = users.get("history")
    features = [torch.from_numpy(array) for name, array in users.items() if name != "history"]
    first = features[0] if features else torch.from_numpy(users["history"])
    given = torch.full((len(first), 1), -1) if history is None else torch.from_numpy(history)
    with torch.inference_mode():
        parts = [
            network.tower([feature[i : i + 256] for feature in features], given[i : i + 256])
            for i in range(0, len(first), 256)
        ]
    return np.asarray(torch.cat(parts).numpy())


def unified_recall(network: Any, truth: Truth, count: int) -> dict[int, float]:
    """Of the exact top `count` the part that the unified search finds, by class of filters."""
    recalls = {}
    for place, members in truth.classes.items():
        found = []
        for request in members:
            with torch.inference_mode(), torch.jit.optimized_execution(False):
                _, ids, _, _, status = network.search(
                    torch.from_numpy(truth.queries[request : request + 1]),
                    torch.from_numpy(truth.requests["filter"][request : request + 1]),
                    torch.from_numpy(truth.requests["exclude"][request : request + 1]),
                    torch.tensor([[0, count]], dtype=torch.int32),
                    torch.zeros(1, dtype=torch.int32),
                )
            if int(status[0]):
                sys.exit(f"the unified search refuses request {request} with status {int(status[0])}")
            kept = ids[0].numpy()
            found.append(truth.recall(request, np.searchsorted(truth.ids, kept[kept >= 0]), count))
        recalls[place] = float(np.mean(found))
    return recalls


def build(folder: Path, spec: str) -> str:
    """The file of a built index, kept from run to run."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    items, dims = vectors.shape
    filled = spec.format(lists=lists_of(items), half=dims // 2, quarter=dims // 4)
    name = f"faiss-{filled.replace(',', '_')}.index"
    if not (folder / name).exists():
        print(f"building {filled}", file=sys.stderr)
        index = faiss.index_factory(dims, filled, faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).choice(items, min(items, lists_of(items) * 64), replace=False)
        index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
        for start in range(0, items, 1 << 18):
            index.add(np.ascontiguousarray(vectors[start : start + (1 << 18)]))
        faiss.write_index(index, str(folder / name))
    return name


def lists_of(items: int) -> int:
    return 1 << round(np.log2(2 * np.sqrt(items)))


def tune(folder: Path, candidates: list[int], specs: tuple[str, ...] = SPECS, tuned: int = TUNED) -> None:
    """Write retrieval-M.json for each number of candidates that has none."""
    missing = [count for count in candidates if not (folder / f"retrieval-{count}.json").exists()]
    if not missing:
        return
    described = json.loads((folder / "workload.json").read_text())
    network: Any = torch.jit.load(str(folder / "unified" / "retrieval" / "1" / "model.pt")).eval()
    if described["items"] <= GRAPH_ITEMS:
        specs = (*specs, GRAPH)
    for spec in specs:
        build(folder, spec)
    faiss.omp_set_num_threads(1)  # as it is served
    truth = Truth(folder, network, described["users"], max(missing), tuned)
    for count in missing:
        wanted = unified_recall(network, truth, min(count, described["items"]))
        tried = [found for spec in specs if (found := _tuned(folder, spec, truth, count, wanted)) is not None]
        best = min(tried, key=lambda found: found["mean_ms"])
        best = {
            **best,
            "unified_recall": wanted,
            "tried": [{k: v for k, v in t.items() if k != "settings"} for t in tried],
        }
        best["listed"] = _listed(folder, best, truth, count)
        (folder / f"retrieval-{count}.json").write_text(json.dumps(best, indent=1) + "\n")


def _tuned(folder: Path, spec: str, truth: Truth, count: int, wanted: dict[int, float]) -> dict[str, Any] | None:
    file, lists = build(folder, spec), lists_of(truth.sets.items)
    graph = spec == GRAPH
    found: dict[str, Any] = {
        "index": file,
        "lists": 16_384 if graph else lists,
        "listed": 0,
        "settings": [None] * len(SHARES),
    }
    retriever = Retriever(folder, found)
    steps = sorted({round(x) for x in np.geomspace(count if graph else 1, found["lists"], 40)})
    spent, recalls = {}, {}
    for place, members in truth.classes.items():
        best: tuple[float, float, dict[str, Any]] | None = None
        for factor in FACTORS if "RFlat" in spec else (1.0,):
            low, high, reached = 0, len(steps) - 1, None
            while low <= high:  # recall grows with probes
                middle = (low + high) // 2
                found["settings"][place] = {"probes": steps[middle], "factor": factor}
                seconds, recall = _measured(retriever, truth, members, count)
                if recall >= wanted[place] - TOLERANCE:
                    reached = (seconds, recall, dict(found["settings"][place]))
                    high = middle - 1
                else:
                    low = middle + 1
            if reached is not None and (best is None or reached[0] < best[0]):
                best = reached
        if best is None:
            print(f"{spec}: {count} candidates, class {place}: does not reach {wanted[place]:.4f}", file=sys.stderr)
            return None
        spent[place], recalls[place], found["settings"][place] = best
    total = sum(truth.weights.values())
    found["settings"] = [setting or next(s for s in found["settings"] if s) for setting in found["settings"]]
    mean = sum(spent[place] * weight for place, weight in truth.weights.items()) / total
    print(f"{spec}: {count} candidates, {1e3 * mean:.2f} ms", file=sys.stderr)
    return {**found, "spec": spec, "mean_ms": 1e3 * mean, "recall": recalls}


def _measured(retriever: Retriever, truth: Truth, members: list[int], count: int) -> tuple[float, float]:
    """Mean seconds of processor time, which other work on the machine disturbs less, and recall of some requests."""
    recalls, seconds = [], 0.0
    for request in members:
        asked = (truth.queries[request], truth.requests["filter"][request], truth.requests["exclude"][request])
        started = time.process_time()
        found, _ = retriever.search(*asked, count, False)
        seconds += time.process_time() - started
        recalls.append(truth.recall(request, found[found >= 0], count))
    return seconds / len(members), float(np.mean(recalls))


def _listed(folder: Path, settings: dict[str, Any], truth: Truth, count: int) -> int:
    """Up to how many passing items scoring all of them is quicker than the index at its narrowest class of filters."""
    if max(truth.classes) == 0:
        return 0
    members = truth.classes[max(truth.classes)]
    retriever = Retriever(folder, {**settings, "listed": 0})
    by_index, _ = _measured(retriever, truth, members, count)
    most = 0
    for size in LISTED:
        words = truth.sets.bits(
            np.sort(np.random.default_rng(0).choice(truth.sets.items, min(size, truth.sets.items), replace=False))
        )
        started = time.process_time()
        for request in members[:16]:
            retriever.listed(
                truth.queries[request], truth.sets.positions(words), truth.requests["exclude"][request], count
            )
        if (time.process_time() - started) / len(members[:16]) < by_index:
            most = size
    return most
