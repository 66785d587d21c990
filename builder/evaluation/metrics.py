"""Metrics of a ranking; recall and NDCG as in NGCF (arXiv:1905.08108) and LightGCN (arXiv:2002.02126)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.data.lists import Lists


@dataclass(frozen=True)
class Quality:
    """Means over users that have a target."""

    recall: float
    ndcg: float


def hits(found: NDArray[Any], targets: Lists) -> NDArray[np.bool_]:
    """`found [Q, K]` integers, -1 for no result -> [Q, K]: whether it is among the targets of its row."""
    width = 1 + max(int(found.max(initial=0)), int(targets.values.max(initial=0)))
    rows = np.arange(len(found), dtype=np.int64)[:, None] * width
    wanted = targets.owners * width + targets.values
    return np.isin(rows + found, wanted) & (found >= 0)


def recall(found: NDArray[Any], targets: Lists) -> NDArray[np.float64]:
    """[Q]: found targets by all targets of the row; NaN for rows without targets."""
    with np.errstate(invalid="ignore"):
        return np.asarray(hits(found, targets).sum(1) / targets.lengths)


def ndcg(found: NDArray[Any], targets: Lists) -> NDArray[np.float64]:
    """[Q]: discounted gain, 1 / log2(rank + 1), by that of min(K, targets) hits in front; NaN without targets."""
    discounts = 1 / np.log2(np.arange(found.shape[1]) + 2)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(targets.lengths, found.shape[1])]
    with np.errstate(invalid="ignore"):
        return np.asarray((hits(found, targets) * discounts).sum(1) / ideal)


def reciprocal_rank(found: NDArray[Any], targets: Lists) -> NDArray[np.float64]:
    """[Q]: one by the rank of the first hit, 0 without one; NaN without targets."""
    hit = hits(found, targets)
    first = np.where(hit.any(1), 1 / (hit.argmax(1) + 1), 0.0)
    return np.where(targets.lengths > 0, first, np.nan)


def coverage(found: NDArray[Any], items: int) -> float:
    """Share of the `items` of a catalogue that occur in `found [Q, K]`, positions or -1."""
    return len(np.unique(found[found >= 0])) / items


def quality(found: NDArray[Any], targets: Lists) -> Quality:
    """Mean recall and NDCG at K of `found [Q, K]`."""
    asked = targets.lengths > 0
    if not asked.any():
        return Quality(0.0, 0.0)
    return Quality(float(recall(found, targets)[asked].mean()), float(ndcg(found, targets)[asked].mean()))
