"""The value model: from the scores of the tasks, and numbers of the items, to the one score that orders results.

Letters: B requests, M candidates, T tasks. A formula (builder/formula.py) is a tree of modules, one an operation, each
of which takes `tasks`, the scores of all tasks `[B, M] float32` times their weights, and `numbers`, the item numbers
that the formula names `[B, M] float64`, NaN where unknown.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from builder.formula import Expression, Name, Number


class ValueModel(nn.Module):
    """The weighted sum over tasks, or a formula; with the artifact's weights unless the request brings its own."""

    weights: Tensor

    def __init__(self, tasks: Sequence[str], formula: Expression | None = None, numbers: Sequence[str] = ()) -> None:
        """`numbers`: the item numbers that the formula names, in the order in which `forward` gets them."""
        super().__init__()
        self.register_buffer("weights", torch.ones(len(tasks)))
        self.plain = formula is None and len(tasks) == 1
        self.formula = _Sum() if formula is None else _module(formula, list(tasks), list(numbers))

    def forward(self, task_scores: Tensor, numbers: list[Tensor], weights: Tensor) -> Tensor:
        """`task_scores [B, M, T]`, `numbers` `[B, M] float64` each, `weights [B, T]` -> value `[B, M] float32`."""
        if self.plain:
            return task_scores.squeeze(2) * weights
        # Task by task: a batched matrix product of so few tasks took 5% of a whole search of 64 requests.
        tasks = [task_scores[:, :, t] * weights[:, t : t + 1] for t in range(task_scores.size(2))]
        value: Tensor = self.formula(tasks, numbers)
        return value.to(torch.float32)

    @torch.jit.export
    def resolve_weights(self, task_weights: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
        """`task_weights [B, T]`, NaN: the artifact's; `status [B] int32` -> weights `[B, T]`, status `[B] int32`."""
        weights, status = torch.ops.silvertriton.resolve_weights(task_weights, self.weights, status)
        return weights, status


def _module(expression: Expression, tasks: list[str], numbers: list[str]) -> nn.Module:
    if isinstance(expression, Number):
        return _Constant(expression.value)
    if isinstance(expression, Name):
        is_task = expression.name in tasks
        return _Task(tasks.index(expression.name)) if is_task else _ItemNumber(numbers.index(expression.name))
    arguments = [_module(argument, tasks, numbers) for argument in expression.arguments]
    return _OPERATIONS[expression.function](*arguments)


class _Sum(nn.Module):
    def forward(self, tasks: list[Tensor], numbers: list[Tensor]) -> Tensor:
        value = tasks[0]
        for task in tasks[1:]:
            value = value + task
        return value


class _Constant(nn.Module):
    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value, dtype=torch.float64))

    def forward(self, tasks: list[Tensor], numbers: list[Tensor]) -> Tensor:
        return self.value


class _Task(nn.Module):
    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position

    def forward(self, tasks: list[Tensor], numbers: list[Tensor]) -> Tensor:
        return tasks[self.position]


class _ItemNumber(nn.Module):
    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position

    def forward(self, tasks: list[Tensor], numbers: list[Tensor]) -> Tensor:
        return numbers[self.position]


class _Unary(nn.Module):
    """Operations say what they `compute`."""

    def __init__(self, operand: nn.Module) -> None:
        super().__init__()
        self.operand = operand

    def forward(self, tasks: list[Tensor], numbers: list[Tensor]) -> Tensor:
        return self.compute(self.operand(tasks, numbers))

    def compute(self, operand: Tensor) -> Tensor:
        raise NotImplementedError


class _Binary(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, tasks: list[Tensor], numbers: list[Tensor]) -> Tensor:
        return self.compute(self.left(tasks, numbers), self.right(tasks, numbers))

    def compute(self, left: Tensor, right: Tensor) -> Tensor:
        raise NotImplementedError


class _Negative(_Unary):
    def compute(self, operand: Tensor) -> Tensor:
        return -operand


class _Abs(_Unary):
    def compute(self, operand: Tensor) -> Tensor:
        return operand.abs()


class _Exp(_Unary):
    def compute(self, operand: Tensor) -> Tensor:
        return operand.exp()


class _Log(_Unary):
    def compute(self, operand: Tensor) -> Tensor:
        return operand.log()


class _Sigmoid(_Unary):
    def compute(self, operand: Tensor) -> Tensor:
        return operand.sigmoid()


class _Sqrt(_Unary):
    def compute(self, operand: Tensor) -> Tensor:
        return operand.sqrt()


class _Add(_Binary):
    def compute(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class _Subtract(_Binary):
    def compute(self, left: Tensor, right: Tensor) -> Tensor:
        return left - right


class _Multiply(_Binary):
    def compute(self, left: Tensor, right: Tensor) -> Tensor:
        return left * right


class _Divide(_Binary):
    def compute(self, left: Tensor, right: Tensor) -> Tensor:
        return left / right


class _Power(_Binary):
    def compute(self, left: Tensor, right: Tensor) -> Tensor:
        # The exporter to ONNX gives the power of a constant the constant's type, not that of the exponent.
        return torch.pow(left.to(right.dtype) if left.dim() == 0 else left, right)


class _Max(_Binary):
    def compute(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.maximum(left, right)


class _Min(_Binary):
    def compute(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.minimum(left, right)


class _Coalesce(_Binary):
    def compute(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.where(left.isnan(), right, left)


_OPERATIONS: dict[str, Callable[..., nn.Module]] = {
    "negative": _Negative,
    "abs": _Abs,
    "exp": _Exp,
    "log": _Log,
    "sigmoid": _Sigmoid,
    "sqrt": _Sqrt,
    "add": _Add,
    "subtract": _Subtract,
    "multiply": _Multiply,
    "divide": _Divide,
    "power": _Power,
    "max": _Max,
    "min": _Min,
    "coalesce": _Coalesce,
}
