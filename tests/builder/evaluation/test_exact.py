import numpy as np
import pytest
import torch

from builder.data.lists import Lists
from builder.data.vectors import Vectors
from builder.evaluation import exact


@pytest.mark.parametrize("seed", range(3))
def test_against_a_full_sort(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_QUERIES", 7)
    monkeypatch.setattr(exact, "_ITEMS", 16)
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((20, 8)).astype(np.float32)
    vectors = rng.standard_normal((50, 8)).astype(np.float32)
    lengths = rng.integers(0, 30, 20)
    exclude = Lists(
        np.cumsum([0, *lengths]), np.concatenate([rng.choice(50, n, replace=False) for n in lengths]).astype(np.int32)
    )
    scores = queries @ vectors.T
    scores[exclude.owners, exclude.values] = -np.inf
    expected = np.argsort(-scores, axis=1)[:, :10]
    order = rng.permutation(50)
    shuffled = Vectors(vectors[np.argsort(order)], order)
    for source in (vectors, shuffled):
        found, best = exact.exact_search(queries, source, 10, exclude=exclude)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(best, np.take_along_axis(scores, expected, axis=1), rtol=1e-5)
    done: list[float] = []
    found, _ = exact.exact_search(torch.from_numpy(queries), vectors, 10, on_step=done.append)
    np.testing.assert_array_equal(found, np.argsort(-(queries @ vectors.T), axis=1)[:, :10])
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_fewer_items_than_results() -> None:
    vectors = np.eye(3, dtype=np.float32)
    exclude = Lists(np.array([0, 1]), np.array([1]))
    found, scores = exact.exact_search(np.array([[1.0, 5.0, 2.0]]), vectors, 5, exclude=exclude)
    assert found.tolist() == [[2, 0, -1, -1, -1]]
    assert scores.tolist() == [[2, 1, -np.inf, -np.inf, -np.inf]]


def test_no_queries() -> None:
    found, scores = exact.exact_search(np.empty((0, 3), np.float32), np.eye(3, dtype=np.float32), 2)
    assert found.shape == scores.shape == (0, 2)
