"""select against its reference, for equality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builder import ops
from tests.kernels import reference

NAN, INF = np.nan, np.inf


def check_select(values: np.ndarray, ids: np.ndarray, status: np.ndarray, k: int, tasks: int, note: str) -> None:
    batch, candidates = values.shape
    task_scores = np.arange(batch * candidates * tasks, dtype=np.float32).reshape(batch, candidates, tasks)
    task_scores[:, ::5] = NAN
    given = (torch.from_numpy(array) for array in (values, ids, task_scores, status))
    results = [tensor.numpy() for tensor in ops.select(*given, k)]
    assert [tensor.shape for tensor in results] == [(batch, k), (batch, k), (batch, k, tasks), (batch,)]
    for b in range(batch):
        best = reference.select(values[b], ids[b], k) if status[b] == 0 else []
        where, past = f"{note}, k {k}, request {b}", k - len(best)
        assert results[3][b] == len(best), where
        assert results[0][b].tolist() == ids[b, best].tolist() + [-1] * past, where
        np.testing.assert_array_equal(results[1][b], [*values[b, best], *[-INF] * past], where)
        expected = np.concatenate([task_scores[b, best], np.full((past, tasks), -INF, np.float32)])
        np.testing.assert_array_equal(results[2][b], expected, where)


@pytest.mark.parametrize("seed", range(20))
def test_random_candidates(seed: int) -> None:
    generator = np.random.default_rng(seed)
    candidates, tasks = int(generator.choice([0, 1, 5, 40, 300])), int(generator.choice([0, 1, 3]))
    values = generator.choice([0.0, -0.0, 1.5, -2.0, INF, -INF, NAN, 1e-45], (4, candidates)).astype(np.float32)
    ids = np.stack([generator.permutation(candidates) for _ in range(4)]).astype(np.int64)
    ids[ids == 3] = 2**63 - 1
    ids[ids == 4] = -7  # only -1 is none
    ids[generator.random((4, candidates)) < 0.3] = -1
    status = np.array([0, 0, generator.choice([1, 8, -3, 2**31 - 1]), 0], dtype=np.int32)
    for k in (0, 1, 3, candidates, candidates + 4):
        check_select(values, ids, status, k, tasks, f"seed {seed}")


@pytest.mark.parametrize("direction", [-1, 0, 1])
def test_what_is_ordered_already(direction: int) -> None:
    """Best first, as the search returns them, worst first, and all equal; distinct ids and repeated ones."""
    values = np.tile(np.arange(60, dtype=np.float32) * direction, (3, 1))
    ids = np.stack([np.arange(60), np.arange(60)[::-1], np.full(60, 9)])
    for k in (1, 30, 60, 61):
        check_select(values, ids, np.zeros(3, np.int32), k, 2, f"direction {direction}")


def test_candidates_by_hand() -> None:
    values = torch.tensor([[1.0, NAN, -INF, 3.0, 1.0, 9.0]])
    ids, tasks = torch.tensor([[8, 4, 6, 2, 5, -1]]), torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]]])
    ok, wrong = torch.tensor([0], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    found, scores, task_scores, count = ops.select(values, ids, tasks, ok, 7)
    assert found.tolist() == [[2, 5, 8, 4, 6, -1, -1]]
    np.testing.assert_array_equal(scores[0].numpy(), [3, 1, 1, NAN, -INF, -INF, -INF])
    assert task_scores[0, :, 0].tolist() == [4, 5, 1, 2, 3, -INF, -INF]
    assert count.tolist() == [5]
    found, scores, task_scores, count = ops.select(values, ids, tasks, wrong, 2)
    assert (found.tolist(), scores.tolist(), count.tolist()) == ([[-1, -1]], [[-INF, -INF]], [0])
    assert task_scores.tolist() == [[[-INF], [-INF]]]


def test_an_empty_batch() -> None:
    check_select(np.empty((0, 4), np.float32), np.empty((0, 4), np.int64), np.empty(0, np.int32), 3, 2, "")
