"""The value model: a weighted sum over tasks, the artifact's weights where the request has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builder import ops
from builder.network.value import ValueModel
from client.schema import Status

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def operators() -> None:
    ops.load()


def good(rows: int) -> torch.Tensor:
    return torch.zeros(rows, dtype=torch.int32)


def test_weights_of_the_request_and_of_the_artifact() -> None:
    model = ValueModel(2)
    model.weights.copy_(torch.tensor([1.0, 10.0]))
    scores = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]]]).repeat(4, 1, 1)
    weights = torch.tensor([[NAN, NAN], [2.0, NAN], [NAN, -1.0], [0.0, 0.5]])
    weights, status = model.resolve_weights(weights, good(4))
    value = model(scores, weights)
    assert value.tolist() == [[21.0, 43.0, -55.0], [22.0, 46.0, -50.0], [-1.0, -1.0, 11.0], [1.0, 2.0, -3.0]]
    assert status.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [INF, -INF])
def test_an_infinite_weight_is_the_rows_own_fault(bad: float) -> None:
    model = ValueModel(2)
    scores = torch.ones(3, 1, 2)
    weights, status = model.resolve_weights(torch.tensor([[1.0, 1.0], [1.0, bad], [NAN, 3.0]]), good(3))
    value = model(scores, weights)
    assert status.tolist() == [0, Status.TASK_WEIGHTS, 0]
    assert value[[0, 2], 0].tolist() == [2.0, 4.0]
    assert torch.isfinite(value).all()


def test_what_was_wrong_before_is_kept() -> None:
    incoming = torch.tensor([Status.HISTORY, Status.HISTORY, 0], dtype=torch.int32)
    _, status = ValueModel(1).resolve_weights(torch.tensor([[1.0], [INF], [INF]]), incoming)
    assert status.tolist() == [Status.HISTORY, Status.HISTORY, Status.TASK_WEIGHTS]


def test_against_a_loop() -> None:
    seed = 1
    rng = np.random.default_rng(seed)
    scores, weights = rng.normal(size=(5, 6, 3)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    value = ValueModel(3)(torch.from_numpy(scores), torch.from_numpy(weights))
    expected = [
        [sum(float(s) * float(w) for s, w in zip(row, weights[b], strict=True)) for row in scores[b]] for b in range(5)
    ]
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=f"seed {seed}")


def test_it_scripts() -> None:
    scripted = torch.jit.script(ValueModel(1))
    weights, status = scripted.resolve_weights(torch.tensor([[3.0]]), good(1))
    value = scripted(torch.tensor([[[2.0]]]), weights)
    assert (value.tolist(), status.tolist()) == ([[6.0]], [0])
