"""Who took what as a matrix whose rows and columns are scaled by their degrees.

The bipartite graph of LightGCN and GF-CF (Shen et al. 2021, doi:10.1145/3459637.3482264). Its product with itself
says how near two items are; an active user and a popular item count for less in it. A constant is added to
the degrees first, so that what rests on few interactions counts for less too (SVD-GCN, Peng et al. 2022,
doi:10.1145/3511808.3557462).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from builder.data.interactions import Events

ADDED = 0.25  # to degrees, in units of their mean; docs/quality.md has what else was tried


@dataclass(frozen=True)
class Graph:
    """`scaled`: CSR [U, N] float32, 1 / sqrt(user degree x item degree) where a user took an item. `items [N]` float32:
    degrees of items with what is added to them; `mean_user`: that of a user of mean degree."""

    scaled: Any
    items: NDArray[np.float32]
    mean_user: float


def interaction_graph(events: Events, items: int) -> Graph:
    """The graph of interactions with `items` items."""
    ones = np.ones(len(events), dtype=np.float32)
    taken = sp.csr_matrix((ones, events.items, events.offsets), shape=(len(events.offsets) - 1, items))
    of_users, mean_user = _degrees(taken, 1)
    of_items, _ = _degrees(taken, 0)
    scaled = sp.csr_matrix(sp.diags(of_users**-0.5) @ taken @ sp.diags(of_items**-0.5), dtype=np.float32)
    return Graph(scaled, of_items, mean_user)


def _degrees(taken: Any, axis: int) -> tuple[NDArray[np.float32], float]:
    """Sums by `axis` with `ADDED` times the mean of those that are not 0, and that mean with as much added."""
    degrees = np.asarray(taken.sum(axis), dtype=np.float32).ravel()
    mean = float(degrees[degrees > 0].mean()) if degrees.any() else 1.0
    return degrees + np.float32(ADDED * mean), (1 + ADDED) * mean
