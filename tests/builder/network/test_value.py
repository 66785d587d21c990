"""The value model: a weighted sum over tasks or a formula, the artifact's weights where the request has none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from builder import ops
from builder.formula import FUNCTIONS, Call, Expression, Name, Number, names_of, parse_formula
from builder.network.value import ValueModel
from client.schema import Status

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def operators() -> None:
    ops.load()


def good(rows: int) -> torch.Tensor:
    return torch.zeros(rows, dtype=torch.int32)


def test_weights_of_the_request_and_of_the_artifact() -> None:
    model = ValueModel(["a", "b"])
    model.weights.copy_(torch.tensor([1.0, 10.0]))
    scores = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]]]).repeat(4, 1, 1)
    weights = torch.tensor([[NAN, NAN], [2.0, NAN], [NAN, -1.0], [0.0, 0.5]])
    weights, status = model.resolve_weights(weights, good(4))
    value = model(scores, [], weights)
    assert value.tolist() == [[21.0, 43.0, -55.0], [22.0, 46.0, -50.0], [-1.0, -1.0, 11.0], [1.0, 2.0, -3.0]]
    assert status.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [INF, -INF])
def test_an_infinite_weight_is_the_rows_own_fault(bad: float) -> None:
    model = ValueModel(["a", "b"])
    scores = torch.ones(3, 1, 2)
    weights, status = model.resolve_weights(torch.tensor([[1.0, 1.0], [1.0, bad], [NAN, 3.0]]), good(3))
    value = model(scores, [], weights)
    assert status.tolist() == [0, Status.TASK_WEIGHTS, 0]
    assert value[[0, 2], 0].tolist() == [2.0, 4.0]
    assert torch.isfinite(value).all()


def test_what_was_wrong_before_is_kept() -> None:
    incoming = torch.tensor([Status.HISTORY, Status.HISTORY, 0], dtype=torch.int32)
    _, status = ValueModel(["a"]).resolve_weights(torch.tensor([[1.0], [INF], [INF]]), incoming)
    assert status.tolist() == [Status.HISTORY, Status.HISTORY, Status.TASK_WEIGHTS]


def test_against_a_loop() -> None:
    seed = 1
    rng = np.random.default_rng(seed)
    scores, weights = rng.normal(size=(5, 6, 3)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    value = ValueModel(["a", "b", "c"])(torch.from_numpy(scores), [], torch.from_numpy(weights))
    expected = [
        [sum(float(s) * float(w) for s, w in zip(row, weights[b], strict=True)) for row in scores[b]] for b in range(5)
    ]
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=f"seed {seed}")


def test_it_scripts() -> None:
    scripted = torch.jit.script(ValueModel(["a"]))
    weights, status = scripted.resolve_weights(torch.tensor([[3.0]]), good(1))
    value = scripted(torch.tensor([[[2.0]]]), [], weights)
    assert (value.tolist(), status.tolist()) == ([[6.0]], [0])


TASKS, NUMBERS = ["like", "watch"], ["age", "price"]


def interpret(expression: Expression, values: Mapping[str, float]) -> float:
    """The definition of a formula: plain Python on floats; what Python refuses is NaN or infinite."""
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Name):
        return values[expression.name]
    a, *rest = (interpret(argument, values) for argument in expression.arguments)
    b = rest[0] if rest else NAN
    match expression.function:
        case "add":
            return a + b
        case "subtract":
            return a - b
        case "multiply":
            return a * b
        case "coalesce":
            return b if a != a else a
        case "negative":
            return -a
        case "abs":
            return abs(a)
        case "max" | "min":
            return NAN if a != a or b != b else (max(a, b) if expression.function == "max" else min(a, b))
        case "divide":
            return float(np.divide(a, b))
        case "power":
            return float(np.float64(a) ** np.float64(b))
        case "exp":
            return float(np.exp(a))
        case "log":
            return float(np.log(a))
        case "sqrt":
            return float(np.sqrt(a))
        case "sigmoid":
            return float(1 / (1 + np.exp(-a)))
    raise AssertionError(expression.function)


def value_of(formula: Expression, scores: np.ndarray, numbers: list[np.ndarray], weights: np.ndarray) -> torch.Tensor:
    """Through the scripted model, as it is served."""
    model = torch.jit.script(ValueModel(TASKS, formula, NUMBERS))
    value: torch.Tensor = model(
        torch.from_numpy(scores), [torch.from_numpy(column) for column in numbers], torch.from_numpy(weights)
    )
    return value


def expressions() -> st.SearchStrategy[Expression]:
    constants = st.sampled_from([0.0, 0.3, 1.0, 2.0, -1.5]).map(Number)
    names = st.sampled_from([*TASKS, *NUMBERS]).map(Name)
    unary = [function for function, takes in FUNCTIONS.items() if takes == 1] + ["negative"]
    binary = [function for function, takes in FUNCTIONS.items() if takes == 2]
    binary += ["add", "subtract", "multiply", "divide", "power"]

    def larger(smaller: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        one = st.builds(lambda f, a: Call(f, (a,)), st.sampled_from(unary), smaller)
        return one | st.builds(lambda f, a, b: Call(f, (a, b)), st.sampled_from(binary), smaller, smaller)

    return st.recursive(constants | names, larger, max_leaves=6).filter(lambda e: any(True for _ in names_of(e)))


@settings(max_examples=60, deadline=None)
@given(expressions(), st.integers(0, 2**31))
def test_formulas_against_their_definition(formula: Expression, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(2, 5, 2)).astype(np.float32)
    numbers = [rng.choice([np.nan, 0.0, 1.0, 3.5, -2.0], size=(2, 5)) for _ in NUMBERS]
    weights = rng.choice([1.0, 0.5, -2.0], size=(2, 2)).astype(np.float32)
    value = value_of(formula, scores, numbers, weights)
    assert value.dtype == torch.float32
    value = value.expand(2, 5)
    for b, m in np.ndindex(2, 5):
        values = {name: float(scores[b, m, t] * weights[b, t]) for t, name in enumerate(TASKS)}
        values |= {name: float(column[b, m]) for name, column in zip(NUMBERS, numbers, strict=True)}
        with np.errstate(all="ignore"):
            expected = interpret(formula, values)
        got = float(value[b, m])
        if math.isfinite(expected) and math.isfinite(got) and abs(expected) < 1e30:
            assert got == pytest.approx(expected, rel=1e-3, abs=1e-3), (formula, values)


def test_a_formula_by_hand() -> None:
    formula = parse_formula("0.7 * like + 0.3 * watch * log(1 + coalesce(age, 0))", {*TASKS, *NUMBERS})
    scores = np.array([[[1.0, 2.0], [0.5, 4.0]]], np.float32)
    age, price = np.array([[np.nan, math.e - 1]]), np.zeros((1, 2))
    for weights, expected in (([1.0, 1.0], [0.7, 1.55]), ([2.0, 0.5], [1.4, 1.3])):
        value = value_of(formula, scores, [age, price], np.array([weights], np.float32))
        assert value[0].tolist() == pytest.approx(expected, rel=1e-6)
