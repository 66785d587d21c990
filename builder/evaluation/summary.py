"""What is reported of a way to answer: means over users with bootstrap intervals, and over parts of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.data.lists import Lists
from builder.evaluation.metrics import coverage, hits, ndcg, recall, reciprocal_rank

RESAMPLES, LEVEL = 1000, 0.95
RESAMPLES_AT_ONCE = 50  # times 30,000 users: 12 MB of positions
FEW_SEEN = 10  # a user who has seen at most so many items is new
DEEP = 100  # results at which recall and NDCG are measured beside K: what a stage after this one could choose from
TAIL = 0.8  # share of the items, the least popular ones, that are the tail


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% percentile bootstrap interval over users (Efron, 1979); NaN where there are none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """A way to answer, measured user by user: `values` [Q] by name, NaN where a user has no say in it.

    recall, ndcg, mrr: at K, of users that have a target. recall_new: of users who have seen at most `FEW_SEEN` items.
    recall_tail: of users with targets among the least popular `TAIL` of the items, of those targets alone. recall_100,
    ndcg_100: at `DEEP` results, where K is less and that many were asked for. `coverage`: share of the catalogue that
    anyone gets among K.
    """

    values: dict[str, NDArray[np.float64]]
    coverage: float


@dataclass(frozen=True)
class Summary:
    """Means of what `Measured` has, with intervals. `gain`: relative to another way to answer, 0.1 for 10% more."""

    intervals: dict[str, Interval]
    coverage: float
    gain: dict[str, Interval] = field(default_factory=dict)


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


def bootstrap_gain(values: NDArray[np.float64], reference: NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean of `values` [Q] by that of `reference` [Q], less 1, over the same users; NaN where that is not defined.

    The users drawn are the same for both, so that the interval is that of the gain, and narrower than those of the two
    means would suggest.
    """
    known = ~(np.isnan(values) | np.isnan(reference))
    values, reference = values[known], reference[known]
    if not reference.any():
        return Interval(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        drawn = rng.integers(len(values), size=(RESAMPLES_AT_ONCE, len(values)))
        with np.errstate(divide="ignore", invalid="ignore"):
            gains.append(values[drawn].mean(1) / reference[drawn].mean(1) - 1)
    defined = np.concatenate(gains)
    defined = defined[np.isfinite(defined)]
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean() / reference.mean() - 1), float(low), float(high))


def measure(found: NDArray[Any], targets: Lists, seen: Lists, popularity: NDArray[np.int64], k: int) -> Measured:
    """`found` [Q, n] positions in the catalogue, best first, -1 for none, n at least `k`; `seen`: what each user
    already has; `popularity` [N]: interactions of each item in training."""
    first = found[:, :k]
    recalls = recall(first, targets)
    nobody = np.full(len(found), np.nan)
    deep = found[:, :DEEP] if k < DEEP <= found.shape[1] else None
    values = {
        "recall": recalls,
        "ndcg": ndcg(first, targets),
        "mrr": reciprocal_rank(first, targets),
        "recall_new": np.where(seen.lengths <= FEW_SEEN, recalls, np.nan),
        "recall_tail": _recall_of_tail(first, targets, popularity),
        f"recall_{DEEP}": nobody if deep is None else recall(deep, targets),
        f"ndcg_{DEEP}": nobody if deep is None else ndcg(deep, targets),
    }
    return Measured(values, coverage(first, len(popularity)))


def summarise(measured: Measured, reference: Measured | None = None) -> Summary:
    """Means and intervals, and the gain over a `reference` of the same users."""
    gain = {}
    if reference is not None:
        gain = {name: bootstrap_gain(values, reference.values[name]) for name, values in measured.values.items()}
    intervals = {name: bootstrap(values) for name, values in measured.values.items()}
    return Summary(intervals, measured.coverage, gain)


def _recall_of_tail(found: NDArray[Any], targets: Lists, popularity: NDArray[np.int64]) -> NDArray[np.float64]:
    in_tail = np.zeros(len(popularity), dtype=np.bool_)
    in_tail[np.argsort(popularity, kind="stable")[: int(TAIL * len(popularity))]] = True
    kept = in_tail[targets.values]
    of_tail = Lists.group(targets.owners[kept], targets.values[kept], len(targets))
    with np.errstate(invalid="ignore"):
        return np.asarray(hits(found, of_tail).sum(1) / of_tail.lengths)
