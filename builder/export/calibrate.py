"""Chooses the default number of probes from measured recall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.vectors import VectorSource
from builder.evaluation.exact import exact_search
from builder.index.kmeans import directions
from builder.network.search import Search

QUERIES_PER_CALL = 16  # bounds the masks of one call: 16 x N / 8 bytes
GROWTH = 1.05  # of the probes, while what the search finds falls short of the target
MARGIN = 2.0  # standard errors above the target, so that other queries reach it too


@dataclass(frozen=True)
class Calibration:
    """`recall`: measured through the operators with `probes`, over `queries` queries, at the top `at`."""

    probes: int
    recall: float
    at: int
    queries: int


def calibrate(
    search: Search,
    vectors: VectorSource,
    ids: NDArray[np.int64],
    queries: Tensor,
    *,
    target: float,
    at: int,
    probes: int | None,
    on_step: Callable[[float], None] = lambda done: None,
) -> Calibration:
    """Find the fewest probes that surely reach `target` recall, set them in `search` and return what they measured.

    Surely: the mean over the queries lies `MARGIN` standard errors above the target, because it holds for the queries
    that chose the probes and should hold for others.

    `vectors` [N, D] and `ids` [N] in catalogue order; `queries` [Q, D] float32; `probes` not None only measures.
    A result counts as found when its exact score reaches the `at`-th exact score, so ties count alike.
    """
    # A query's length changes no order; at length 1 the products of large or small vectors stay within float32.
    queries = directions(queries)
    at = min(at, len(ids))
    items, scores = exact_search(queries, vectors, at, on_step=on_step)
    position = np.argsort(ids)
    row_of_item = np.empty(len(ids), dtype=np.int64)
    row_of_item[position] = search.item_rows.numpy()
    floor = torch.from_numpy(scores[:, -1] - 1e-5 * np.abs(scores).max(1))
    search.probes = probes or _probes_that_hold(search, queries, row_of_item[items], target)
    while True:
        recalls = _measure(search, queries, vectors, ids, position, floor, at)
        recall = float(recalls.mean())
        sure = recall - MARGIN * float(recalls.std()) / len(recalls) ** 0.5
        if probes is not None or sure >= target or search.probes == search.clusters:
            return Calibration(search.probes, recall, at, len(queries))
        search.probes = min(search.clusters, int(search.probes * GROWTH) + 1)


def _probes_that_hold(search: Search, queries: Tensor, rows: NDArray[np.int64], target: float) -> int:
    """The fewest probes whose clusters hold `target` of the exact results' rows `[Q, k]`, at least 1."""
    cluster_blocks = search.cluster_blocks.numpy()
    clusters = np.searchsorted(cluster_blocks, rows // 32, side="right") - 1
    ones = torch.ones(len(queries), search.clusters, dtype=torch.int32)
    every = torch.full((len(queries),), search.clusters, dtype=torch.int32)
    order, _ = torch.ops.silvertriton.probe(
        queries, search.centroid_codes, search.centroid_scales, ones, every, torch.zeros_like(every)
    )
    rank = np.empty(order.shape, dtype=np.int32)
    np.put_along_axis(rank, order.numpy(), np.arange(search.clusters, dtype=np.int32)[None, :], axis=1)
    ranks = np.sort(np.take_along_axis(rank, clusters, axis=1), axis=None)
    return int(ranks[min(len(ranks) - 1, int(np.ceil(target * len(ranks))))]) + 1


def _measure(
    search: Search,
    queries: Tensor,
    vectors: VectorSource,
    ids: NDArray[np.int64],
    position: NDArray[np.int64],
    floor: Tensor,
    at: int,
) -> NDArray[np.float64]:
    """Recall of each query, [Q]."""
    recalls = []
    for start in range(0, len(queries), QUERIES_PER_CALL):
        part = queries[start : start + QUERIES_PER_CALL]
        neutral = torch.zeros(len(part), 2, dtype=torch.int64)
        rows, scores, _, _ = search(part, neutral, torch.full((len(part), 1), -1), neutral.to(torch.int32))
        candidates = torch.where(rows >= 0, search.ids[rows.clamp(min=0).long()], -1)
        best = torch.ops.silvertriton.top_k(scores, candidates, at)
        chosen = candidates.gather(1, best.clamp(min=0)).numpy()
        items = position[np.searchsorted(ids, chosen, sorter=position).clip(max=len(ids) - 1)]
        rows_of_part = torch.from_numpy(np.asarray(vectors[items], dtype=np.float32))
        exact = torch.einsum("qd,qkd->qk", part, rows_of_part)
        found = (best >= 0) & (exact >= floor[start : start + len(part), None])
        recalls.append(found.sum(1).numpy() / at)
    return np.concatenate(recalls)
