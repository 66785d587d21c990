"""Run by test_emulated.py: the wide search in all its phases, and what it leaves to one block a request."""

from __future__ import annotations

import ctypes

import numpy as np

from builder import oplib, ops
from tests.kernels.catalogue import Items, marked, marks
from tests.kernels.reference import Limits, Request

MARKS = ("phase 0", "phase 1", "phase 2", "dropped", "matrix", "vectors", "no room", "alone")


def reached(library: ctypes.CDLL) -> dict[str, int]:
    library.st_emulation_reached.restype = ctypes.c_int64
    return {mark: library.st_emulation_reached(mark.encode()) for mark in MARKS}


def around_centres(seed: int, dims: int, reach: list[float]) -> tuple[Items, list[Request]]:
    """Rows around the means of 300 clusters, some of whose items pass a filter."""
    generator, count = np.random.default_rng(seed), 6000
    centres = 2 * generator.normal(size=(300, dims))
    cluster_of = generator.integers(300, size=count)
    items = Items(
        centres[cluster_of] + generator.normal(size=(count, dims)),
        marks(generator.random(count) < 0.3, generator.random(count) < 0.05, generator.random(count) < 0.003),
        clusters=300,
        cluster_of=cluster_of,
        centroids=centres.astype(np.float32),
        spreads=np.ones(300),
        reach=reach,
        row_codes=dims < 40,
    )
    programs = [(0, 0), marked(0), marked(1), marked(2)]
    kinds = [(0, 0), (0, 0), (0, 40), (7, 0), (200, 5)]
    queries = items.queries(generator, 11)
    queries[3:6] = queries[2]  # of requests that take the same clusters
    return items, [
        Request(query, programs[i % 4 if i > 5 else 0], items.ids[i::50].tolist(), kinds[i % 5])
        for i, query in enumerate(queries)
    ]


def main() -> None:
    ops.load()
    library = ctypes.CDLL(str(oplib.library_path()))
    # A short reach leaves rows that are better than their cluster's bound: some of clusters that are not taken.
    shapes = [(12, [1.5, 1.2, 1.0, 0.8]), (12, [0.5, 0.4, 0.3]), (6, [-0.3]), (48, [1.0, 0.5])]
    for seed, (dims, reach) in enumerate(shapes):
        items, requests = around_centres(seed, dims, reach)
        items.check(requests, Limits(0, 20, 40, exact_rows=10), f"seed {seed}")
        items.check(requests[:1], Limits(0, 20, 40, exact_rows=10), f"seed {seed}, one request")
    after = reached(library)
    print(after)
    assert after["alone"] == after["no room"] == 0
    assert all(after[mark] > 0 for mark in MARKS[:-2])

    # More requests than a scan takes columns, more dims than a slab has, more candidates than shared memory sorts.
    generator = np.random.default_rng(9)
    wide = Items(generator.normal(size=(1_500, 140)), clusters=8, cluster_of=np.arange(1_500) // 200)
    requests = [Request(query, limits=(3, 0)) for query in wide.queries(generator, 70)]
    wide.check(requests, Limits(3, 5, 5), "70 requests, 140 dims")
    wide.check(requests[:2], Limits(0, 1_100, 1_100), "1,100 candidates")

    # More rows of one score than there is room for.
    equal = Items(np.ones((25_000, 4)), clusters=100, cluster_of=np.arange(25_000) // 24_900)
    equal.check([Request(np.zeros(4, np.float32)), Request(np.ones(4, np.float32), limits=(2, 1))], Limits(0, 30, 30))
    after = reached(library)
    assert after["no room"] > 0, after
    assert after["alone"] > 0, after
    print("wide")


if __name__ == "__main__":
    main()
