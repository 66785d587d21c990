"""Chooses what a request gets that asks for nothing: probes and candidates, from recall and cost as measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.vectors import VectorSource
from builder.evaluation.exact import exact_search
from builder.index.kmeans import directions
from builder.network.search import Search

QUERIES_PER_CALL = 16
PROBE_STEP = 1.05  # factor on the probes, while what the search finds falls short of the target
MARGIN = 2.0  # standard errors above the target, so that other queries reach it too
CANDIDATES = (1.2, 1.5, 2.0, 3.0, 4.0)  # for each result; the last is what the probes are chosen with
FEWEST_CANDIDATES = 64  # fewer save nothing that could be measured
SLIVER = 0.0005  # of recall that fewer candidates may cost
GROWTH_ITEMS, GROWTH_QUERIES = 200_000, 64  # sample that the growth of probes is measured on
TIMED_QUERIES = 200  # of 1,000: a second in all where a search takes 5 ms
GROWTH_STEPS = 12  # powers of 4: 4^12 is a 16-millionth of the items


@dataclass(frozen=True)
class Calibration:
    """`recall`: at the top `at`, measured through the operators with these defaults over `queries` queries."""

    probes: int
    candidates: int
    exact_rows: int
    probe_growth: tuple[float, ...]
    recall: float
    at: int
    queries: int


@dataclass(frozen=True)
class Truth:
    """What exact search finds.

    `queries` [Q, D] of length 1; `items` [Q, at] positions in the catalogue; `floor` [Q]: the last of their scores.
    """

    queries: Tensor
    items: NDArray[np.int64]
    floor: Tensor
    vectors: VectorSource
    position_of_row: NDArray[np.int64]

    @property
    def at(self) -> int:
        return self.items.shape[1]


def calibrate(
    search: Search,
    truth: Truth,
    *,
    target: float,
    results: int,
    probes: int | None = None,
    candidates: int | None = None,
) -> Calibration:
    """Find the fewest probes and candidates that surely reach `target` recall, set them in `search`, return them.

    Surely: the mean over the queries lies `MARGIN` standard errors above the target, because it holds for the queries
    that chose the probes and should hold for others. Also measures `exact_rows` and `probe_growth` and sets them.

    `results`: the most that a request gets; `probes`, `candidates` not None: taken as they are. A result counts as
    found when its exact score reaches the last exact score of `truth`, so ties count alike.
    """
    search.candidates = candidates or candidates_for(CANDIDATES[-1], results, search.max_candidates)
    search.probe_growth = _probe_growth(search, truth, target)
    search.exact_rows = _exact_rows(search, truth.queries)
    search.probes = probes or _probes_that_hold(search, truth, target)
    recalls = measure_recall(search, truth)
    while probes is None and _sure(recalls) < target and search.probes < search.clusters:
        search.probes = min(search.clusters, int(search.probes * PROBE_STEP) + 1)
        recalls = measure_recall(search, truth)
    if candidates is None:
        recalls = _fewer_candidates(search, truth, recalls, target, results)
    growth = tuple(round(float(factor), 3) for factor in search.probe_growth)
    recall = float(recalls.mean())
    return Calibration(
        search.probes, search.candidates, search.exact_rows, growth, recall, truth.at, len(truth.queries)
    )


def exact_truth(
    search: Search,
    vectors: VectorSource,
    ids: NDArray[np.int64],
    queries: Tensor,
    *,
    at: int,
    on_step: Callable[[float], None] = lambda done: None,
) -> Truth:
    """Exact results of `queries [Q, D]` at the top `at`; `vectors` [N, D] and `ids` [N] in catalogue order."""
    # A query's length changes no order; at length 1 the products of large or small vectors stay within float32.
    queries = directions(queries)
    items, scores = exact_search(queries, vectors, min(at, len(ids)), on_step=on_step)
    position_of_row = np.full(len(search.ids), -1, dtype=np.int64)
    position_of_row[search.item_rows.numpy()] = np.argsort(ids)
    floor = torch.from_numpy(scores[:, -1] - 1e-5 * np.abs(scores).max(1))
    return Truth(queries, items, floor, vectors, position_of_row)


def candidates_for(factor: float, results: int, max_candidates: int) -> int:
    """`factor` times the results, within what a request may ask for."""
    return min(max_candidates, max(FEWEST_CANDIDATES, int(np.ceil(factor * results))))


def measure_recall(search: Search, truth: Truth) -> NDArray[np.float64]:
    """Recall of each query [Q] with the defaults that `search` has."""
    recalls = []
    for start in range(0, len(truth.queries), QUERIES_PER_CALL):
        part = truth.queries[start : start + QUERIES_PER_CALL]
        rows = run(search, part)[0][:, : truth.at]
        items = truth.position_of_row[rows.clamp(min=0).numpy()]
        found_vectors = torch.from_numpy(np.asarray(truth.vectors[items], dtype=np.float32))
        exact = torch.einsum("qd,qkd->qk", part, found_vectors)
        found = (rows >= 0) & (exact >= truth.floor[start : start + len(part), None])
        recalls.append(found.sum(1).numpy() / truth.at)
    return np.concatenate(recalls)


def run(search: Search, queries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`queries [B, D]` through the search, without filter or exclusions, with its defaults."""
    neutral = torch.zeros(len(queries), 2, dtype=torch.int64)
    no_status = torch.zeros(len(queries), dtype=torch.int32)
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = search(
        queries, neutral, torch.full((len(queries), 1), -1), neutral.to(torch.int32), no_status
    )
    return found


def _sure(recalls: NDArray[np.float64]) -> float:
    return float(recalls.mean() - MARGIN * recalls.std() / len(recalls) ** 0.5)


def _fewer_candidates(
    search: Search, truth: Truth, recalls: NDArray[np.float64], target: float, results: int
) -> NDArray[np.float64]:
    """Set the fewest candidates that cost neither recall worth the name nor the target; returns the recalls."""
    most, least = search.candidates, recalls.mean() - SLIVER
    if recalls.mean() >= target:
        least = max(least, target)
    for factor in CANDIDATES[:-1]:
        search.candidates = candidates_for(factor, results, search.max_candidates)
        fewer = measure_recall(search, truth)
        if fewer.mean() >= least:
            return fewer
    search.candidates = most
    return recalls


def _cluster_ranks(search: Search, queries: Tensor) -> NDArray[np.int32]:
    """Which place each cluster takes for each query: [Q, C]."""
    blocks, groups, _, _ = search.centroid_codes.shape
    codes = search.centroid_codes.permute(0, 2, 1, 3).reshape(blocks * 32, groups * 4).to(torch.float32)
    centroids = (codes * search.centroid_scales.view(-1, 1))[: search.clusters]
    projected = queries @ search.projection if len(search.projection) else queries
    scores = torch.nn.functional.pad(projected, (0, groups * 4 - projected.shape[1])) @ centroids.T
    empty = (search.cluster_blocks[1:] == search.cluster_blocks[:-1])[None]
    order = scores.masked_fill(empty, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = np.empty(order.shape, dtype=np.int32)
    np.put_along_axis(ranks, order.numpy(), np.arange(search.clusters, dtype=np.int32)[None, :], axis=1)
    return ranks


def _cluster_of_item(search: Search, truth: Truth) -> NDArray[np.int64]:
    """The cluster of each position in the catalogue [N]."""
    rows = search.item_rows.numpy()
    clusters = np.empty(len(rows), dtype=np.int64)
    clusters[truth.position_of_row[rows]] = np.searchsorted(search.cluster_blocks.numpy(), rows // 32, side="right") - 1
    return clusters


def _probes_for(ranks: NDArray[np.int32], clusters: NDArray[np.int64], target: float) -> int:
    """The fewest probes whose clusters hold `target` of the results: `ranks [Q, C]`, `clusters [Q, k]` of results."""
    needed = np.sort(np.take_along_axis(ranks, clusters, axis=1), axis=None)
    return int(needed[min(len(needed) - 1, int(np.ceil(target * len(needed))))]) + 1


def _probes_that_hold(search: Search, truth: Truth, target: float) -> int:
    return _probes_for(_cluster_ranks(search, truth.queries), _cluster_of_item(search, truth)[truth.items], target)


def _probe_growth(search: Search, truth: Truth, target: float) -> Tensor:
    """How many times the probes are needed when 4^-g of the items pass, [G] float32, [0] = 1, never falling.

    The best k of a random 4^-g of the items are spread over the best 4^g k of all, so the probes are counted that hold
    `target` of those. Measured on a sample of the items.
    """
    total = len(search.item_rows)
    items = np.sort(np.random.default_rng(0).permutation(total)[:GROWTH_ITEMS])
    queries = truth.queries[:GROWTH_QUERIES]
    scores = queries @ torch.from_numpy(np.asarray(truth.vectors[items], dtype=np.float32)).T
    best_first = scores.argsort(dim=1, descending=True).numpy()
    ranks, clusters = _cluster_ranks(search, queries), _cluster_of_item(search, truth)[items]
    growth: list[float] = []
    first = 0
    for g in range(GROWTH_STEPS):
        count = max(1, round(truth.at * 4**g * len(items) / total))
        if g > 0 and count > len(items) // 4:
            break
        needed = _probes_for(ranks, clusters[best_first[:, :count]], target)
        first = needed if g == 0 else first
        growth.append(max(needed / first, *growth, 1.0))
    return torch.tensor(growth, dtype=torch.float32)


def median_milliseconds(search: Search, queries: Tensor) -> float:
    """What a search takes for one query on one thread with the defaults that `search` has, in this process."""
    few = [query[None].contiguous() for query in queries[:TIMED_QUERIES]]
    with _one_thread():
        run(search, few[0])
        return 1e3 * statistics.median(_seconds(partial(run, search, query)) for query in few)


def _exact_rows(search: Search, queries: Tensor) -> int:
    """Rows whose scan costs no more than choosing clusters: what one probe takes, over what one row takes."""
    probes, search.probes, search.exact_rows = search.probes, 1, 0
    query = queries[:1].contiguous()
    rows = torch.randint(len(search.ids), (1, 4096), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    with _one_thread():
        choosing = _median_seconds(lambda: run(search, query))
        scanning = _median_seconds(lambda: torch.ops.silvertriton.rescore(query, search.vectors, search.scales, rows))
    search.probes = probes
    return min(len(search.item_rows), round(choosing / (scanning / rows.shape[1])))


@contextmanager
def _one_thread() -> Iterator[None]:
    """As it is served; and a second thread would cost more than such short steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _median_seconds(call: Callable[[], object], repeats: int = 25) -> float:
    return statistics.median(_seconds(call) for _ in range(repeats))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
