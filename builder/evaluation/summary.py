"""What is reported of a way to answer: means over users with bootstrap intervals, and over parts of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.data.lists import Lists
from builder.evaluation.metrics import coverage, hits, ndcg, recall, reciprocal_rank

RESAMPLES, LEVEL = 1000, 0.95
RESAMPLES_AT_ONCE = 50  # times 30,000 users: 12 MB of positions
FEW_SEEN = 10  # a user who has seen at most so many items is new
TAIL = 0.8  # share of the items, the least popular ones, that are the tail


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% percentile bootstrap interval over users (Efron, 1979); NaN where there are none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """At K, over users that have a target. `recall_new`: over users who have seen at most `FEW_SEEN` items;
    `recall_tail`: over users with targets among the least popular `TAIL` of the items, of those targets alone;
    `coverage`: share of the catalogue that anyone gets."""

    recall: Interval
    ndcg: Interval
    mrr: Interval
    recall_new: Interval
    recall_tail: Interval
    coverage: float

    def intervals(self) -> Iterator[tuple[str, Interval]]:
        for name in ("recall", "ndcg", "mrr", "recall_new", "recall_tail"):
            yield name, getattr(self, name)


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean of `values` [Q], NaN left out, and its interval. The same seed draws the same users."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    means = [
        known[rng.integers(len(known), size=(RESAMPLES_AT_ONCE, len(known)))].mean(1)
        for _ in range(RESAMPLES // RESAMPLES_AT_ONCE)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(known.mean()), float(low), float(high))


def summarise(found: NDArray[Any], targets: Lists, seen: Lists, popularity: NDArray[np.int64]) -> Summary:
    """`found` [Q, K] positions in the catalogue, -1 for none; `seen`: what each user already has; `popularity` [N]:
    interactions of each item in training."""
    recalls = recall(found, targets)
    new = np.where(seen.lengths <= FEW_SEEN, recalls, np.nan)
    return Summary(
        bootstrap(recalls),
        bootstrap(ndcg(found, targets)),
        bootstrap(reciprocal_rank(found, targets)),
        bootstrap(new),
        bootstrap(_recall_of_tail(found, targets, popularity)),
        coverage(found, len(popularity)),
    )


def _recall_of_tail(found: NDArray[Any], targets: Lists, popularity: NDArray[np.int64]) -> NDArray[np.float64]:
    in_tail = np.zeros(len(popularity), dtype=np.bool_)
    in_tail[np.argsort(popularity, kind="stable")[: int(TAIL * len(popularity))]] = True
    kept = in_tail[targets.values]
    of_tail = Lists.group(targets.owners[kept], targets.values[kept], len(targets))
    with np.errstate(invalid="ignore"):
        return np.asarray(hits(found, of_tail).sum(1) / of_tail.lengths)
