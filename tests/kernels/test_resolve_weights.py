"""resolve_weights against its reference, for equality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from builder import ops
from tests.kernels import reference

NAN, INF = np.nan, np.inf


def resolve(asked: list[list[float]], defaults: list[float], status: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    incoming = torch.tensor(status, dtype=torch.int32)
    weights, outgoing = ops.resolve_weights(
        torch.tensor(asked).reshape(len(asked), len(defaults)), torch.tensor(defaults), incoming
    )
    return weights, outgoing, incoming


def test_weights_by_hand() -> None:
    asked = [[NAN, NAN], [0.25, NAN], [-0.0, -3e38], [INF, 1.0], [NAN, -INF]]
    weights, status, incoming = resolve(asked, [2.0, 3.0], [0] * 5)
    assert weights.tolist() == [[2, 3], [0.25, 3], [-0.0, float(np.float32(-3e38))], [2, 1], [2, 3]]
    assert status.tolist() == [0, 0, 0, 7, 7]
    assert incoming.tolist() == [0] * 5, "what came in is not written"


@pytest.mark.parametrize(("incoming", "well", "infinite"), [(0, 0, 7), (2, 2, 2), (7, 7, 7), (8, 8, 7), (9, 9, 7)])
def test_an_infinite_weight_is_one_status_of_several(incoming: int, well: int, infinite: int) -> None:
    for trouble in (INF, -INF):
        _, status, _ = resolve([[1.0, NAN], [NAN, trouble], [trouble, trouble]], [1.0, 1.0], [incoming] * 3)
        assert status.tolist() == [well, infinite, infinite]


@pytest.mark.parametrize("seed", range(5))
def test_random_weights(seed: int) -> None:
    generator = np.random.default_rng(seed)
    batch, tasks = int(generator.integers(0, 40)), int(generator.integers(0, 6))
    asked = generator.choice([NAN, INF, -INF, 1e-45, 0.0, 3.5, 1.0, 2.0], (batch, tasks)).astype(np.float32)
    defaults = generator.normal(size=tasks).astype(np.float32)
    status = generator.choice([0, 0, 1, 5, 7, 8, 2**31 - 1], batch).astype(np.int32)
    weights, first = ops.resolve_weights(*(torch.from_numpy(array) for array in (asked, defaults, status)))
    for b in range(batch):
        expected, expected_status = reference.resolve_weights(asked[b], defaults, int(status[b]))
        np.testing.assert_array_equal(weights[b].numpy(), expected, f"seed {seed}, request {b}")
        assert first[b] == expected_status, f"seed {seed}, request {b}"
