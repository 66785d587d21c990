"""Baselines on interactions small enough to know the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from builder.data.lists import Lists
from builder.evaluation.baselines import BASELINES, Baseline, ease, fit_best, item_knn, matrix, popularity

# Two crowds: one takes items 0 to 3, the other 4 to 7; item 8 is everyone's, item 9 nobody's.
CROWDS = [[0, 1, 2, 8], [1, 2, 3, 8], [0, 2, 3, 8], [4, 5, 6, 8], [5, 6, 7, 8], [4, 6, 7, 8], [4, 5, 7, 8]]
ITEMS = 10


def lists(values: list[list[int]]) -> Lists:
    return Lists(np.cumsum([0, *map(len, values)]), np.array([v for row in values for v in row], np.int64))


@pytest.fixture(scope="module")
def interactions() -> Any:
    return matrix(lists(CROWDS), ITEMS)


def test_matrix_has_a_one_for_each_pair(interactions: Any) -> None:
    dense = np.asarray(interactions.todense())
    assert dense.shape == (7, ITEMS)
    assert [np.flatnonzero(row).tolist() for row in dense] == CROWDS
    assert set(dense.ravel().tolist()) == {0.0, 1.0}


def test_popularity_skips_what_the_user_has(interactions: Any) -> None:
    answer = popularity(interactions)
    found = answer(matrix(lists([[], [8], [2, 8, 6]]), ITEMS), 4)
    # 8 seven times; 2, 4, 5, 6, 7 three times; 0, 1, 3 twice
    assert found.tolist() == [[8, 2, 4, 5], [2, 4, 5, 6], [4, 5, 7, 0]]


def test_fewer_items_than_asked_for(interactions: Any) -> None:
    found = popularity(interactions)(matrix(lists([[0, 1, 2, 3, 4, 5, 6, 7]]), ITEMS), 12)
    assert found.tolist() == [[8, 9] + [-1] * 10]


@pytest.mark.parametrize("name", ["item-kNN", "iALS", "EASE"])
def test_each_crowd_gets_its_own(interactions: Any, name: str) -> None:
    baseline = next(baseline for baseline in BASELINES if baseline.name == name)
    setting = baseline.settings[0]
    small = {**setting, "regularization": 1.0} if "regularization" in setting else setting
    found = baseline.fit(interactions, **small)(matrix(lists([[0, 1, 8], [6, 7, 8]]), ITEMS), 1)
    assert found[0, 0] in (2, 3)
    assert found[1, 0] in (4, 5)


def test_ease_against_its_definition(interactions: Any) -> None:
    """The least squares solution for each item by itself: its own weight is held at zero."""
    x, penalty = np.asarray(interactions.todense(), dtype=np.float64), 2.0
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = np.delete(np.arange(ITEMS), item)
        part = x[:, others]
        expected[others, item] = np.linalg.solve(part.T @ part + penalty * np.eye(ITEMS - 1), part.T @ x[:, item])
    history = matrix(lists([[0, 5]]), ITEMS)
    scores = (np.asarray(history.todense()) @ expected)[0]
    scores[[0, 5]] = -np.inf
    found = ease(interactions, regularization=penalty)(history, 8)[0]
    np.testing.assert_allclose(scores[found], np.sort(scores)[::-1][:8], atol=1e-5)


def test_the_setting_that_validates_best_is_kept(interactions: Any) -> None:
    def fit(interactions: Any, *, first: int) -> Any:
        return lambda histories, k: np.tile(np.arange(first, first + k), (histories.shape[0], 1))

    baseline = Baseline("b", fit, tuple({"first": first} for first in (0, 3, 6)))
    fitted = fit_best(baseline, interactions, matrix(lists([[], []]), ITEMS), lists([[3], [4]]), 2)
    assert fitted.setting == {"first": 3}
    assert fitted.answer(matrix(lists([[]]), ITEMS), 2).tolist() == [[3, 4]]


def test_neighbours_of_a_user_without_history(interactions: Any) -> None:
    found = item_knn(interactions, neighbours=3)(matrix(lists([[]]), ITEMS), 3)
    assert found.shape == (1, 3)
