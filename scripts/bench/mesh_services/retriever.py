"""Faiss behind a filter and a list of exclusions: what the retrieval service and the Merlin-style server both call.

Letters: D dims, M candidates, F words of a program, E excluded ids.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from mesh_services.sets import DenseSets, evaluate

SHARES = (0.2, 0.05, 0.0)  # a filter that leaves at least so much of the items has a setting of its own


def searchers(threads: int) -> ThreadPoolExecutor:
    """Threads for searches side by side, each of which is of one thread: OpenMP's setting is that of the thread."""
    return ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,))


def parameters(index: Any, probes: int, factor: float, selector: Any = None) -> Any:
    """Search parameters for an IVF index, behind a transformation and refined as it is."""
    more = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=probes, **more)
    found: Any = faiss.SearchParametersIVF(nprobe=probes, **more)
    inner = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index
    if isinstance(inner, faiss.IndexPreTransform):
        found = faiss.SearchParametersPreTransform(index_params=found)
    if isinstance(index, faiss.IndexRefine):
        found = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=found)
    return found


class Retriever:
    """`folder` holds vectors.npy, ids.npy, columns.npz and indexes; `settings` is what _tuning.py wrote."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.index = faiss.read_index(str(folder / self.settings["index"]))
        self.vectors = np.asarray(np.load(folder / "vectors.npy", mmap_mode="r"))
        self.ids = np.load(folder / "ids.npy")
        self.sets = DenseSets(np.load(folder / "columns.npz"))
        self.items = len(self.ids)

    def search(
        self, query: np.ndarray, program: np.ndarray, exclude: np.ndarray, count: int, whole: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions `[count] int32`, -1 past the last, and scores `[count] float32`, best first, of a `query [D]`.

        `exclude [E] int64` item ids, -1 for none. `whole`: look at all lists.
        """
        passing = evaluate(program, self.sets) if program[1] else None
        share = 1.0 if passing is None else self.sets.count(passing) / self.items
        if passing is not None and share * self.items <= self.settings["listed"]:
            return self.listed(query, self.sets.positions(passing), exclude, count)
        excluded = self.positions(exclude)
        setting = self.setting(share, whole)
        wanted = min(count + len(excluded), self.items)
        selector = None if passing is None else faiss.IDSelectorBitmap(passing.view(np.uint8))
        search = parameters(self.index, setting["probes"], setting["factor"], selector)
        scores, found = self.index.search(query[None], wanted, params=search)
        return self.without(found[0], scores[0], excluded, count)

    def setting(self, share: float, whole: bool) -> dict[str, Any]:
        """What was tuned for filters that leave such a share of the items."""
        if whole:
            return {"probes": self.settings["lists"], "factor": 8}
        found: dict[str, Any] = self.settings["settings"][next(i for i, least in enumerate(SHARES) if share >= least)]
        return found

    def listed(
        self, query: np.ndarray, positions: np.ndarray, exclude: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """All of a few positions, scored exactly."""
        positions = np.setdiff1d(positions, self.positions(exclude), assume_unique=True)
        scores = self.vectors[positions] @ query
        best = np.argsort(-scores, kind="stable")[:count]
        return padded(positions[best], scores[best], count)

    def positions(self, exclude: np.ndarray) -> np.ndarray:
        """Of the excluded ids those that there are, as positions."""
        places = np.searchsorted(self.ids, exclude).clip(max=self.items - 1)
        return np.unique(places[self.ids[places] == exclude])

    @staticmethod
    def without(
        found: np.ndarray, scores: np.ndarray, excluded: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        keep = found >= 0
        if len(excluded):
            keep &= ~np.isin(found, excluded)
        return padded(found[keep][:count], scores[keep][:count], count)


def padded(found: np.ndarray, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    positions, values = np.full(count, -1, np.int32), np.full(count, -np.inf, np.float32)
    positions[: len(found)], values[: len(found)] = found, scores
    return positions, values
