"""The graph of items that users took together: what the reranker knows beside vectors.

A cosine of co-occurrence, as in item-based collaborative filtering (Sarwar et al., WWW 2001), in which an active user
counts for less (builder/training/graph.py). It is of full rank: it tells pairs apart that vectors of some hundred dims
do not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from builder.data.interactions import Events
from builder.training.graph import interaction_graph

ENTRIES_AT_ONCE = 20_000_000  # of the co-occurrence matrix, 8 bytes each


def item_neighbours(events: Events, items: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `width` nearest neighbours of each item, nearest first, ties by position.

    Returns positions in the catalogue [N, J] int32, -1 past the last, and weights [N, J] float32 above 0, 0 there: the
    sum over users with both items, a user of mean activity counting 1, by the root of the items' degrees. J is `width`,
    or less where no item has so many.
    """
    positions = np.full((items, width), -1, np.int32)
    weights = np.zeros((items, width), np.float32)
    if not width:
        return positions, weights
    graph = interaction_graph(events, items)
    by_user = graph.scaled * np.float32(graph.mean_user**0.5)
    by_item = by_user.tocsc()
    # Pairs of items that a user makes, counted at each of them: what rows of the product can hold at most.
    lengths = np.diff(events.offsets)
    cost = np.cumsum(np.minimum(items, (by_user > 0).T @ lengths))
    start = 0
    while start < items:
        before = cost[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(cost, before + ENTRIES_AT_ONCE, side="right")))
        together = (by_item[:, start:end].T @ by_user).tocsr()
        for row in range(end - start):
            found = together.indices[together.indptr[row] : together.indptr[row + 1]]
            cosines = together.data[together.indptr[row] : together.indptr[row + 1]]
            others = found != start + row
            found, cosines = found[others], cosines[others]
            if len(found) > width:
                floor = np.partition(cosines, len(cosines) - width)[len(cosines) - width]
                near = cosines >= floor
                found, cosines = found[near], cosines[near]
            order = np.lexsort((found, -cosines))[:width]
            positions[start + row, : len(order)] = found[order]
            weights[start + row, : len(order)] = cosines[order]
        start = end
    used = int((positions >= 0).sum(1).max(initial=0))
    return positions[:, :used].copy(), weights[:, :used].copy()
