"""Chooses what a request gets that asks for nothing: reach and candidates, from recall and cost as measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from builder.data.vectors import VectorSource
from builder.evaluation.exact import exact_search
from builder.index.blocks import BLOCK
from builder.index.kmeans import directions
from builder.network.search import Search

QUERIES_PER_CALL = 16
REACH_STEP = 0.25  # standard deviations: tried first on either side of what is expected, then twice as much, and so on
MOST_ADDED = 4.0  # where that ends
REACH_EXACT = 0.01  # where the search for the least reach ends
MOST_REACH = 20.0
MARGIN = 3.5  # standard errors above the target: 2.5 of the difference of two samples, as other queries are one
CANDIDATES = (1.1, 1.2, 1.5, 2.0, 3.0, 4.0)  # for each result
FEWEST_CANDIDATES = 64  # fewer save nothing that could be measured
SLIVER = 0.0005  # of recall, where the target is out of reach
SLOWER = 1.03  # times the fastest: noise apart, more candidates will not be faster again
SHARE_ITEMS, SHARE_QUERIES = 200_000, 64  # sample on which the reach by the share of items that pass is measured
TIMED_QUERIES = 200  # of 1,000: a second in all where a search takes 5 ms
SHARE_STEPS = 12  # powers of 4: 4^12 is a 16-millionth of the items


@dataclass(frozen=True)
class Calibration:
    """`recall`: at the top `at`, measured through the operators with these defaults over `queries` queries.

    `probes` 0: as many as `reach` says, `mean_probes` of them on average.
    """

    probes: int
    candidates: int
    exact_rows: int
    reach: tuple[float, ...]
    mean_probes: float
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
    """Find the reach and the candidates that surely find `target` recall in the least time; set and return them.

    Surely: the mean over the queries lies `MARGIN` standard errors above the target, because it holds for the queries
    that chose the reach and should hold for others. Also measures `exact_rows` and sets it.

    `results`: the most that a request gets; `probes`, `candidates` not None: taken as they are. A result counts as
    found when its exact score reaches the last exact score of `truth`, so ties count alike.
    """
    search.probes = probes or 0
    if candidates is None:
        choices = sorted({candidates_for(factor, results, search.max_candidates) for factor in CANDIDATES})
    else:
        choices = [candidates]
    search.candidates = choices[-1]
    search.exact_rows = _exact_rows(search, truth.queries)
    expected = _reach_by_share(search, truth, target)
    search.candidates, search.reach = _fastest(search, truth, target, expected, choices)
    recalls = measure_recall(search, truth)
    return Calibration(
        search.probes,
        search.candidates,
        search.exact_rows,
        tuple(round(float(reach), 3) for reach in search.reach),
        round(mean_probes(search, truth), 1),
        float(recalls.mean()),
        truth.at,
        len(truth.queries),
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
    return min(max_candidates, max(FEWEST_CANDIDATES, int(np.ceil(round(factor * results, 6)))))


def measure_recall(search: Search, truth: Truth) -> NDArray[np.float64]:
    """Recall of each query [Q] with the defaults that `search` has."""
    recalls = []
    for start in range(0, len(truth.queries), QUERIES_PER_CALL):
        queries = truth.queries[start : start + QUERIES_PER_CALL]
        rows = run(search, queries)[0][:, : truth.at].numpy()
        items = truth.position_of_row[rows.clip(min=0)]
        expected = truth.items[start : start + len(queries)]
        found = (items[:, :, None] == expected[:, None, :]).any(2) & (rows >= 0)
        # Others count where their exact score reaches the last exact one; few do, and reading vectors takes long.
        query, place = np.nonzero(~found & (rows >= 0))
        vectors = torch.from_numpy(np.asarray(truth.vectors[items[query, place]], dtype=np.float32))
        exact = (queries[query] * vectors).sum(1)
        found[query, place] = (exact >= truth.floor[start + query]).numpy()
        recalls.append(found.sum(1) / truth.at)
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


def _fastest(
    search: Search, truth: Truth, target: float, expected: Tensor, choices: Sequence[int]
) -> tuple[int, Tensor]:
    """Of the numbers of candidates `choices`, ascending, the one whose search takes the least time, and its reach.

    Few candidates need more clusters for the same recall, many have to be rescored. Only those that find the target
    compete; if none does, the most are taken. `expected` [G]: the reach to begin with.
    """
    best, best_time, added = (choices[-1], expected), float("inf"), 0.0
    for candidates in choices:
        search.candidates, search.reach = candidates, expected + added
        if search.probes == 0:
            added += _missing_reach(search, truth, target)
            search.reach = expected + added
        if len(choices) == 1 or _sure(measure_recall(search, truth)) < target:
            best = best if best_time < float("inf") else (candidates, search.reach)
            continue
        taken = median_milliseconds(search, truth.queries)
        if taken < best_time:
            best, best_time = (candidates, search.reach), taken
        elif taken > SLOWER * best_time:
            break
    return best


def _missing_reach(search: Search, truth: Truth, target: float) -> float:
    """What must be added to the reach (or, if negative, can be taken off it) to just surely find `target` recall.

    Where no reach does, because of too few candidates or of codes that order too badly: what finds all but a sliver of
    what can be found.
    """
    expected = search.reach

    def recall(added: float) -> float:
        search.reach = expected + added
        return _sure(measure_recall(search, truth))

    low = high = 0.0
    step = REACH_STEP
    found = recall(0.0)
    if found >= target:
        while found >= target and low > -MOST_ADDED:
            low, high, step = max(low - step, -MOST_ADDED), low, 2 * step
            found = recall(low)
    else:
        while found < target and high < MOST_ADDED:
            low, high, step = high, min(high + step, MOST_ADDED), 2 * step
            found = recall(high)
        if found < target:
            target, low = found - SLIVER, -MOST_ADDED
    while high - low > REACH_EXACT:
        between = (low + high) / 2
        low, high = (low, between) if recall(between) >= target else (between, high)
    search.reach = expected
    return high


def _cluster_of_item(search: Search, truth: Truth) -> NDArray[np.int64]:
    """The cluster of each position in the catalogue [N]."""
    rows = search.item_rows.numpy()
    clusters = np.empty(len(rows), dtype=np.int64)
    first_blocks = search.cluster_blocks.numpy()
    clusters[truth.position_of_row[rows]] = np.searchsorted(first_blocks, rows // BLOCK, side="right") - 1
    return clusters


def _reach_by_share(search: Search, truth: Truth, target: float) -> Tensor:
    """Within how many standard deviations of their clusters' means `target` of the results lie when 4^-g of the items
    pass, [G] float32.

    The best k of a random 4^-g of the items are spread over the best 4^g k of all, so it is measured on those: on all
    items for g = 0, on a sample of them beyond.
    """
    total, clusters = len(search.item_rows), _cluster_of_item(search, truth)
    reach = [_needed_reach(search, truth.queries, clusters[truth.items], truth.floor, target)]
    items = np.sort(np.random.default_rng(0).permutation(total)[:SHARE_ITEMS])
    counts = [max(1, round(truth.at * 4**g * len(items) / total)) for g in range(1, SHARE_STEPS)]
    counts = [count for count in counts if count <= len(items) // 4]
    if counts:
        queries = truth.queries[:SHARE_QUERIES]
        vectors = torch.from_numpy(np.asarray(truth.vectors[items], dtype=np.float32))
        scores, best = (queries @ vectors.T).topk(counts[-1], dim=1)
        found = clusters[items][best.numpy()]
        reach += [_needed_reach(search, queries, found[:, :n], scores[:, n - 1], target) for n in counts]
    return torch.tensor(reach, dtype=torch.float32)


def _needed_reach(search: Search, queries: Tensor, found: NDArray[np.int64], floor: Tensor, target: float) -> float:
    """The reach that takes `target` of the clusters `found [Q, k]`, those of results that score `floor [Q]` or more."""
    blocks, groups, _, _ = search.centroid_codes.shape
    codes = search.centroid_codes.permute(0, 2, 1, 3).reshape(blocks * BLOCK, groups * 4).to(torch.float32)
    means = codes * search.centroid_scales.view(-1, 1)
    projected = queries @ search.projection if len(search.projection) else queries
    scores = torch.nn.functional.pad(projected, (0, groups * 4 - projected.shape[1])) @ means.T
    clusters = torch.from_numpy(found)
    deviations = projected.norm(dim=1)[:, None] * search.centroid_spreads.flatten()[clusters]
    needed = (floor[:, None] - scores.gather(1, clusters)) / deviations
    needed = needed.nan_to_num(0.0).clamp(-MOST_REACH, MOST_REACH).flatten().sort().values
    return float(needed[min(len(needed) - 1, int(np.ceil(target * len(needed))))])


def mean_probes(search: Search, truth: Truth) -> float:
    """Clusters that a query scans on average with the defaults that `search` has."""
    parts = truth.queries.split(QUERIES_PER_CALL)
    return sum(int(run(search, part)[3][:, 0].sum()) for part in parts) / len(truth.queries)


def mean_results(search: Search, rules: nn.Module | None, queries: Tensor, results: int) -> float | None:
    """Results, of `results`, that the rules of a `DiverseSelection` leave a query on average with the defaults that
    `search` has, to one decimal; None where there are no rules. Candidates come in the order of the search: how many
    pass hardly depends on it."""
    if rules is None:
        return None
    total = 0
    for part in queries.split(QUERIES_PER_CALL):
        rows, ids, scores, _, status = run(search, part)
        total += int(rules(scores, ids, rows, scores.unsqueeze(2), status, search.vectors, results)[3].sum())
    return round(total / len(queries), 1)


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
