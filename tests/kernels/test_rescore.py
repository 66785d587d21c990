"""rescore against its reference, on every instruction set, for equality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builder import ops
from tests.kernels import reference
from tests.kernels.catalogue import Items

pytestmark = pytest.mark.usefixtures("instruction_set")


@pytest.mark.parametrize("dims", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 128, 130, 257])
def test_random_rows(dims: int) -> None:
    generator = np.random.default_rng(dims)
    items = Items(generator.normal(size=(70, dims)) * 10.0 ** generator.integers(-6, 6, (70, 1)), clusters=2, seed=dims)
    query = items.queries(generator, 3)
    rows = generator.integers(-1, items.layout.rows, (3, 50)).astype(np.int32)
    vectors, scales = items.index["vectors"], items.index["scales"]
    scores = ops.rescore(torch.from_numpy(query), vectors, scales, torch.from_numpy(rows))
    for b in range(3):
        expected = reference.rescore(query[b], vectors.numpy(), scales.numpy(), rows[b].tolist())
        np.testing.assert_array_equal(scores[b].numpy(), expected, f"seed {dims}, request {b}")


def test_more_rows_than_one_thread_takes() -> None:
    """Requests of which several share a thread's part, and parts that begin within a request."""
    generator = np.random.default_rng(0)
    items = Items(generator.normal(size=(200, 20)), clusters=3)
    query = items.queries(generator, 7)
    rows = generator.integers(-1, items.layout.rows, (7, 333)).astype(np.int32)
    vectors, scales = items.index["vectors"], items.index["scales"]
    scores = ops.rescore(torch.from_numpy(query), vectors, scales, torch.from_numpy(rows))
    for b in range(7):
        expected = reference.rescore(query[b], vectors.numpy(), scales.numpy(), rows[b].tolist())
        np.testing.assert_array_equal(scores[b].numpy(), expected, f"seed 0, request {b}")


def test_sums_that_overflow() -> None:
    generator = np.random.default_rng(1)
    vectors = generator.choice([-127.0, 127.0, 1.0], (32, 2)).astype(np.float16)
    query = generator.choice([-3e38, 3e38, 1.0], (9, 2)).astype(np.float32)
    scales = np.full((1, 32), 1e-3, np.float32)
    rows = np.tile(np.arange(32, dtype=np.int32), (9, 1))
    scores = ops.rescore(*(torch.from_numpy(array) for array in (query, vectors, scales, rows))).numpy()
    expected = np.stack([reference.rescore(q, vectors, scales, r.tolist()) for q, r in zip(query, rows, strict=True)])
    np.testing.assert_array_equal(scores, expected, "seed 1")
    assert np.isposinf(expected).any()
    assert np.isneginf(expected).any()


def test_what_is_no_number_and_zero_have_the_form_that_search_gives_them() -> None:
    opposite = torch.tensor([[127.0, -127.0]]).half().expand(32, 2).contiguous()
    scores = ops.rescore(torch.full((1, 2), 3e38), opposite, torch.ones(1, 32), torch.tensor([[0]]).int())
    assert scores.tolist() == [[-np.inf]]  # infinity less infinity
    scores = ops.rescore(
        torch.tensor([[-1.0]]), torch.zeros(32, 1).half(), torch.ones(1, 32), torch.tensor([[0]]).int()
    )
    assert scores.tolist() == [[0.0]]
    assert not torch.signbit(scores).any()


def test_halves_of_every_kind() -> None:
    """Every finite float16, subnormals included, converts exactly."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = np.resize(every[np.isfinite(every)], (64, 1024))
    scales = torch.ones(2, 32)
    query = np.zeros((1, 1024), dtype=np.float32)
    for component in range(0, 1024, 31):
        query[:] = 0
        query[0, component] = 1
        scores = ops.rescore(torch.from_numpy(query), torch.from_numpy(every), scales, torch.arange(64).int()[None])
        np.testing.assert_array_equal(scores[0].numpy(), every[:, component].astype(np.float32))


def test_rows_outside_the_index_score_minus_infinity() -> None:
    rows = torch.tensor([[-1, 0, 31, 32, 2**31 - 1, -(2**31)]], dtype=torch.int32)
    scores = ops.rescore(torch.ones(1, 3), torch.ones(32, 3).half(), torch.ones(1, 32), rows)
    assert scores.tolist() == [[-np.inf, 3, 3, -np.inf, -np.inf, -np.inf]]


def test_nothing_to_score() -> None:
    index = torch.ones(32, 3).half(), torch.ones(1, 32)
    assert ops.rescore(torch.ones(0, 3), *index, torch.empty(0, 5, dtype=torch.int32)).shape == (0, 5)
    assert ops.rescore(torch.ones(2, 3), *index, torch.empty(2, 0, dtype=torch.int32)).shape == (2, 0)
    no_rows = torch.empty(0, 3).half(), torch.empty(0, 32)
    assert ops.rescore(torch.ones(1, 3), *no_rows, torch.tensor([[0, -1]]).int()).tolist() == [[-np.inf] * 2]
