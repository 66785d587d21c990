"""The graph of items that users took together: what the reranker knows beside vectors.

An edge from an item to another is the chance that a walk from the one to somebody who took it, and on to something that
he took, ends at the other (P3, Cooper et al. 2014, doi:10.1145/2567948.2579244), with degrees that have a constant
added (builder/training/graph.py). The largest are kept. They are of full rank: they tell pairs apart that vectors of
some hundred dims do not.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from builder.data.interactions import Events
from builder.training.graph import interaction_graph

ENTRIES_AT_ONCE = 20_000_000  # of the co-occurrence matrix, 8 bytes each


def item_neighbours(events: Events, items: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `width` nearest neighbours of each item, nearest first, ties by position.

    Returns positions in the catalogue [N, J] int32, -1 past the last, and weights [N, J] float32 above 0, 0 there: the
    sum over users with both items, a user of mean activity counting 1, by the degree of the item they are neighbours
    of. J is `width`, or less where no item has so many.
    """
    positions = np.full((items, width), -1, np.int32)
    weights = np.zeros((items, width), np.float32)
    if not width:
        return positions, weights
    graph = interaction_graph(events, items)
    root = np.sqrt(graph.items)
    by_user = sp.csr_matrix(graph.scaled @ sp.diags(root * np.float32(graph.mean_user)))
    by_item = sp.csc_matrix(graph.scaled @ sp.diags(1 / root))
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
            chances = together.data[together.indptr[row] : together.indptr[row + 1]]
            others = found != start + row
            found, chances = found[others], chances[others]
            if len(found) > width:
                floor = np.partition(chances, len(chances) - width)[len(chances) - width]
                near = chances >= floor
                found, chances = found[near], chances[near]
            order = np.lexsort((found, -chances))[:width]
            positions[start + row, : len(order)] = found[order]
            weights[start + row, : len(order)] = chances[order]
        start = end
    used = int((positions >= 0).sum(1).max(initial=0))
    return positions[:, :used].copy(), weights[:, :used].copy()
