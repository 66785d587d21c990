"""Means, their intervals, and the parts of users and items they are over."""

from __future__ import annotations

import numpy as np
import pytest

from builder.data.lists import Lists
from builder.evaluation.metrics import coverage, ndcg, recall, reciprocal_rank
from builder.evaluation.summary import FEW_SEEN, Interval, bootstrap, bootstrap_gain, measure, summarise


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
    summary = summarise(measure(found, lists([0, 5], [1, 7], []), seen, popularity, 2))
    means = {name: interval.mean for name, interval in summary.intervals.items()}
    assert list(means) == ["recall", "ndcg", "mrr", "recall_new", "recall_tail", "recall_100", "ndcg_100"]
    assert means["recall"] == 0.75
    assert means["recall_new"] == 1.0
    assert means["recall_tail"] == 0.5  # 5 was found, 7 was not
    assert means["mrr"] == 1.0
    assert np.isnan([means["recall_100"], means["ndcg_100"]]).all()  # not asked for
    assert summary.coverage == 0.4
    assert summary.gain == {}


def test_recall_at_a_hundred_beside_k() -> None:
    rng = np.random.default_rng(2)
    targets, nothing = lists(*rng.integers(0, 500, (40, 3)).tolist()), lists(*[[]] * 40)
    found = np.stack([rng.permutation(500)[:120] for _ in range(40)])
    measured = measure(found, targets, nothing, np.ones(500, np.int64), 20)
    shallow = measure(found[:, :20], targets, nothing, np.ones(500, np.int64), 20)
    for name in ("recall", "ndcg", "mrr", "recall_new", "recall_tail"):
        np.testing.assert_array_equal(measured.values[name], shallow.values[name])
    np.testing.assert_array_equal(measured.values["recall_100"], recall(found[:, :100], targets))
    np.testing.assert_array_equal(measured.values["ndcg_100"], ndcg(found[:, :100], targets))
    assert measured.coverage == shallow.coverage
    assert np.isnan(measure(found, targets, nothing, np.ones(500, np.int64), 100).values["recall_100"]).all()


def test_the_gain_is_of_the_same_users() -> None:
    """Twice as good for every user: the gain is certain, although neither mean is."""
    rng = np.random.default_rng(0)
    reference = rng.random(300)
    doubled = bootstrap_gain(2 * reference, reference)
    np.testing.assert_allclose([doubled.mean, doubled.low, doubled.high], 1.0, rtol=1e-9)
    better = reference + rng.normal(0.02, 0.05, 300)
    gain = bootstrap_gain(better, reference)
    assert gain.mean == pytest.approx(better.mean() / reference.mean() - 1)
    assert gain.low < gain.mean < gain.high
    residual = (better - (1 + gain.mean) * reference).std() / 300**0.5 / reference.mean()  # of a ratio of means
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * residual, rel=0.15)
    missing = np.where(np.arange(300) < 100, np.nan, reference)
    assert bootstrap_gain(better, missing) == bootstrap_gain(better[100:], reference[100:])


@pytest.mark.parametrize("reference", [[0.0, 0.0], [np.nan, np.nan]])
def test_no_gain_over_nothing(reference: list[float]) -> None:
    gain = bootstrap_gain(np.array([0.5, 1.0]), np.array(reference))
    assert np.isnan([gain.mean, gain.low, gain.high]).all()


def test_gain_over_few_hits_is_a_number() -> None:
    """Some of the users drawn have no hit at all."""
    gain = bootstrap_gain(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    assert gain.mean == 1.0
    assert np.isfinite([gain.low, gain.high]).all()


def test_gains_have_the_names_of_the_means() -> None:
    found, targets, nobody = np.array([[0], [1]]), lists([0], [0]), lists([], [])
    reference = measure(found, targets, nobody, np.ones(3, np.int64), 1)
    better = measure(np.zeros_like(found), targets, nobody, np.ones(3, np.int64), 1)
    summary = summarise(better, reference)
    assert list(summary.gain) == list(summary.intervals)
    assert summary.gain["recall"].mean == 1.0
    assert summarise(reference, reference).gain["ndcg"] == Interval(0.0, 0.0, 0.0)
