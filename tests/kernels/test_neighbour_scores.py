"""neighbour_scores against its reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builder import ops
from tests.kernels import reference


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, width, most = int(rng.choice([1, 7, 300])), int(rng.choice([0, 1, 9])), int(rng.choice([0, 3, 50]))
    rows = items + int(rng.integers(0, 40))
    item_rows = rng.permutation(rows)[:items].astype(np.int32)
    ids = np.full(rows, -1, np.int64)
    ids[item_rows] = np.sort(rng.choice(10 * items, items, replace=False))
    neighbours = np.full((items, width), -1, np.int32)
    for row in neighbours:
        count = int(rng.integers(0, min(width, items) + 1))
        row[:count] = rng.choice(item_rows, count, replace=False)
    weights = rng.random((items, width)).astype(np.float32)
    history = rng.integers(-1, 10 * items, (4, int(rng.choice([1, 20, 70]))))
    known = rng.random(history.shape) < 0.7
    history[known] = rng.choice(ids[item_rows], known.sum())
    asked = np.stack([rng.permutation(rows)[: max(1, rows // 2)] for _ in range(4)]).astype(np.int32)
    asked[:, -1] = -1
    if seed % 2:  # some more than once, as a caller of the ranking model may
        asked = rng.choice(asked, asked.shape[1], axis=1)
    given = (history, asked, ids, item_rows, neighbours, weights)
    sums, maxima = ops.neighbour_scores(*(torch.from_numpy(array) for array in given), most)
    for b in range(4):
        expected = reference.neighbour_scores(history[b], asked[b], ids, item_rows, neighbours, weights, most)
        np.testing.assert_allclose(sums[b], expected[0], rtol=1e-5, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(maxima[b], expected[1], f"seed {seed}")


def test_rows_that_do_not_exist_are_never_followed() -> None:
    ids, weights = torch.tensor([5, 9]), torch.ones(2, 2)
    history, asked = torch.tensor([[5, 9]]), torch.tensor([[0, 1, 2**31 - 1]], dtype=torch.int32)
    neighbours = torch.tensor([[2**31 - 1, 1], [0, -7]], dtype=torch.int32)
    for item_rows in ([0, 1], [-3, 1], [0, 2**31 - 1]):
        sums, _ = ops.neighbour_scores(
            history, asked, ids, torch.tensor(item_rows, dtype=torch.int32), neighbours, weights, 9
        )
        assert torch.isfinite(sums).all()


def test_neighbours_end_with_the_first_that_is_none() -> None:
    history, asked = torch.tensor([[5]]), torch.tensor([[0, 1]], dtype=torch.int32)
    item_rows, neighbours = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([[1, -1, 0]] * 2, dtype=torch.int32)
    sums, _ = ops.neighbour_scores(history, asked, torch.tensor([5, 9]), item_rows, neighbours, torch.ones(2, 3), 9)
    assert sums.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("at", "tensor", "message"),
    [
        (0, torch.zeros(2, 3, dtype=torch.int64), "neighbour_scores: rows"),
        (4, torch.zeros(2, 2), "neighbour_scores: neighbours: got Float"),
        (5, torch.zeros(3, 2), "neighbour_scores: weights"),
    ],
)
def test_arguments_that_do_not_agree(at: int, tensor: torch.Tensor, message: str) -> None:
    arguments = [
        torch.zeros(1, 3, dtype=torch.int64),
        torch.zeros(1, 4, dtype=torch.int32),
        torch.arange(2),
        torch.arange(2, dtype=torch.int32),
        torch.zeros(2, 2, dtype=torch.int32),
        torch.zeros(2, 2),
    ]
    arguments[at] = tensor
    with pytest.raises(RuntimeError, match=message):
        ops.neighbour_scores(*arguments, 1)
