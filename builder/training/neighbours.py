"""The graph of items that users took together: what the reranker knows beside vectors.

Cosine of co-occurrence, as in item-based collaborative filtering (Sarwar et al., WWW 2001). It is of full rank: it
tells pairs apart that vectors of some hundred dims do not.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from builder.data.interactions import Events

ENTRIES_AT_ONCE = 20_000_000  # of the co-occurrence matrix, 8 bytes each


def item_neighbours(events: Events, items: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `width` nearest neighbours of each item, nearest first, ties by position.

    Returns positions in the catalogue [N, J] int32, -1 past the last, and weights [N, J] float32 in (0, 1], 0 there: of
    users with one or the other item, the share with both, as a cosine. J is `width`, or less where no item has so many.
    """
    ones = np.ones(len(events), dtype=np.float32)
    taken = sp.csr_matrix((ones, events.items, events.offsets), shape=(len(events.offsets) - 1, items))
    popularity = np.maximum(np.asarray(taken.sum(0)).ravel(), 1)
    by_item = (taken @ sp.diags(popularity**-0.5)).tocsc().astype(np.float32)
    by_user = by_item.tocsr()
    positions = np.full((items, width), -1, np.int32)
    weights = np.zeros((items, width), np.float32)
    if not width:
        return positions, weights
    # Pairs of items that a user makes, counted at each of them: what rows of the product can hold at most.
    lengths = np.diff(events.offsets)
    cost = np.cumsum(np.minimum(items, taken.T @ lengths))
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
            weights[start + row, : len(order)] = np.minimum(cosines[order], 1.0)
        start = end
    used = int((positions >= 0).sum(1).max(initial=0))
    return positions[:, :used].copy(), weights[:, :used].copy()
