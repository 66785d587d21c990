import math

import numpy as np
import pytest

from builder.data.lists import Lists
from builder.evaluation.metrics import Quality, hits, ndcg, quality, recall


def lists(*values: list[int]) -> Lists:
    return Lists(np.cumsum([0, *map(len, values)]), np.array([v for row in values for v in row], np.int64))


def slow_recall(found: list[int], targets: list[int]) -> float:
    return len(set(found) & set(targets)) / len(targets)


def slow_ndcg(found: list[int], targets: list[int]) -> float:
    gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(found) if item in targets)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(len(found), len(targets))))


@pytest.mark.parametrize("seed", range(5))
def test_against_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = np.stack([rng.choice(30, 6, replace=False) for _ in range(40)])
    found[rng.random(found.shape) < 0.1] = -1
    targets = [rng.choice(30, rng.integers(1, 12), replace=False).tolist() for _ in range(40)]
    np.testing.assert_allclose(recall(found, lists(*targets)), list(map(slow_recall, found.tolist(), targets)))
    np.testing.assert_allclose(ndcg(found, lists(*targets)), list(map(slow_ndcg, found.tolist(), targets)))


def test_by_hand() -> None:
    found, targets = np.array([[4, 7, 9]]), lists([7, 1])
    assert hits(found, targets).tolist() == [[False, True, False]]
    assert recall(found, targets).tolist() == [0.5]
    assert ndcg(found, targets) == pytest.approx([(1 / math.log2(3)) / (1 + 1 / math.log2(3))])
    assert ndcg(np.array([[7, 1, 9]]), targets).tolist() == [1.0]


def test_users_without_targets_do_not_count() -> None:
    found = np.array([[1, 2], [1, 2], [-1, -1]])
    assert quality(found, lists([1], [], [5])) == Quality(0.5, 0.5)
    assert np.isnan(recall(found, lists([1], [], [5]))[1])
    assert quality(found[:1], lists([])) == Quality(0.0, 0.0)
