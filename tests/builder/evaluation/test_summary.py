"""Means, their intervals, and the parts of users and items they are over."""

from __future__ import annotations

import numpy as np
import pytest

from builder.data.lists import Lists
from builder.evaluation.metrics import coverage, reciprocal_rank
from builder.evaluation.summary import FEW_SEEN, Interval, bootstrap, summarise


def lists(*values: list[int]) -> Lists:
    return Lists(np.cumsum([0, *map(len, values)]), np.array([v for row in values for v in row], np.int64))


def test_reciprocal_rank_by_hand() -> None:
    found = np.array([[4, 7, 9], [4, 7, 9], [4, 7, 9], [-1, -1, -1]])
    ranks = reciprocal_rank(found, lists([9, 7], [4], [1], []))
    assert ranks[:3].tolist() == [0.5, 1.0, 0.0]
    assert np.isnan(ranks[3])


def test_coverage_counts_items_once() -> None:
    assert coverage(np.array([[3, 1], [1, -1]]), 8) == 0.25
    assert coverage(np.full((2, 2), -1), 8) == 0


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2000)
    interval = bootstrap(values)
    assert interval.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 2000**0.5
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert bootstrap(values) == interval
    assert bootstrap(np.concatenate([values, np.full(9, np.nan)])) == interval


def test_intervals_of_one_value_and_of_none() -> None:
    assert bootstrap(np.array([0.25])) == Interval(0.25, 0.25, 0.25)
    nothing = bootstrap(np.array([np.nan]))
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


def test_parts_of_users_and_items() -> None:
    """Ten items, of which 0 and 1 are popular; the first user is new, the second is not, the third has no target."""
    popularity = np.array([9, 8, 0, 1, 1, 1, 1, 1, 1, 1])
    found = np.array([[0, 5], [1, 6], [0, 1]])
    seen = lists([2], list(range(FEW_SEEN + 1)), [])
    summary = summarise(found, lists([0, 5], [1, 7], []), seen, popularity)
    assert summary.recall.mean == 0.75
    assert summary.recall_new.mean == 1.0
    assert summary.recall_tail.mean == 0.5  # 5 was found, 7 was not
    assert summary.mrr.mean == 1.0
    assert summary.coverage == 0.4
    assert [name for name, _ in summary.intervals()] == ["recall", "ndcg", "mrr", "recall_new", "recall_tail"]
