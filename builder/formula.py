"""The value formula of a retrieval.yaml: how tasks and item numbers become the one score that orders results.

    0.7 * like + 0.3 * watch * log(1 + coalesce(popularity, 0))

It is the part of Python's grammar below, read with `ast` and never evaluated.

    expression = term {("+" | "-") term}
    term       = factor {("*" | "/") factor}
    factor     = ("+" | "-") factor | power
    power      = atom ["**" factor]
    atom       = number | name | function "(" expression {"," expression} ")" | "(" expression ")"
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

# How many arguments each function takes. `coalesce`: the second where the first is unknown.
FUNCTIONS = {"abs": 1, "coalesce": 2, "exp": 1, "log": 1, "max": 2, "min": 2, "sigmoid": 1, "sqrt": 1}
OPERATORS = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "power"}
MOST_DEPTH = 64  # of operations within operations


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Name:
    name: str


@dataclass(frozen=True)
class Call:
    """A function, or an operator by its name in `OPERATORS` ("negative" for the sign)."""

    function: str
    arguments: tuple[Expression, ...]


Expression = Number | Name | Call


def parse_formula(text: str, names: Collection[str]) -> Expression:
    """Read a formula over `names`. Raises ValueError that says what is wrong, where, and what would be right."""
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise ValueError(f"{text!r} is no formula: {reason}") from error
    expression = _read(body, names, 0)
    if next(names_of(expression), None) is None:
        raise ValueError(f"{text!r} names no task and no item feature: it would order all results alike")
    return expression


def names_of(expression: Expression) -> Iterator[str]:
    """The names of a formula from left to right, as often as they occur."""
    if isinstance(expression, Name):
        yield expression.name
    elif isinstance(expression, Call):
        for argument in expression.arguments:
            yield from names_of(argument)


def linear_factors(expression: Expression, tasks: Sequence[str]) -> tuple[float, ...] | None:
    """What each of `tasks` is multiplied by in a formula that is a weighted sum of them and of what names none.

    None for any other formula, and where no task counts.
    """
    terms = _terms(expression, tasks)
    factors = () if terms is None else tuple(terms.factors.get(task, 0.0) for task in tasks)
    return factors if any(factors) else None


@dataclass(frozen=True)
class _Terms:
    """A weighted sum of tasks and something else: `constant`, None where that is no plain number."""

    constant: float | None
    factors: dict[str, float]

    def times(self, factor: float) -> _Terms:
        constant = None if self.constant is None else self.constant * factor
        return _Terms(constant, {task: value * factor for task, value in self.factors.items()})


def _terms(expression: Expression, tasks: Sequence[str]) -> _Terms | None:
    """None where a task is in anything but a weighted sum."""
    if isinstance(expression, Number):
        return _Terms(expression.value, {})
    if isinstance(expression, Name):
        return _Terms(None, {expression.name: 1.0} if expression.name in tasks else {})
    found = [_terms(argument, tasks) for argument in expression.arguments]
    sides = [terms for terms in found if terms is not None]
    if len(sides) < len(found):
        return None
    function, first, last = expression.function, sides[0], sides[-1]
    if function == "negative":
        return first.times(-1.0)
    if function in ("add", "subtract"):
        last = last.times(-1.0) if function == "subtract" else last
        constant = None if first.constant is None or last.constant is None else first.constant + last.constant
        names = first.factors | last.factors
        return _Terms(constant, {name: first.factors.get(name, 0.0) + last.factors.get(name, 0.0) for name in names})
    if function == "multiply" and first.constant is not None:
        return last.times(first.constant)
    if function == "multiply" and last.constant is not None:
        return first.times(last.constant)
    if function == "divide" and last.constant:
        return first.times(1 / last.constant)
    return None if any(terms.factors for terms in sides) else _Terms(None, {})


def read_number(node: ast.expr) -> float:
    """The number that a constant is. Raises ValueError for any other node."""
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"column {node.col_offset + 1}: got {ast.unparse(node)[:20]}, expected a finite number")
    return float(value)


def _read(node: ast.expr, names: Collection[str], depth: int) -> Expression:
    where = f"column {node.col_offset + 1}"
    if depth > MOST_DEPTH:
        raise ValueError(f"{where}: expected at most {MOST_DEPTH} operations within each other")
    if isinstance(node, ast.Constant):
        return Number(read_number(node))
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise ValueError(f"{where}: unknown name {node.id!r}; expected one of {', '.join(sorted(names))}")
        return Name(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        operand = _read(node.operand, names, depth + 1)
        return operand if isinstance(node.op, ast.UAdd) else Call("negative", (operand,))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        sides = (_read(node.left, names, depth + 1), _read(node.right, names, depth + 1))
        return Call(OPERATORS[type(node.op)], sides)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _read_call(node.func.id, node.args, names, depth, where)
    raise ValueError(f"{where}: expected a number, a name, a function, or + - * / ** and parentheses")


def _read_call(function: str, arguments: list[ast.expr], names: Collection[str], depth: int, where: str) -> Expression:
    if function not in FUNCTIONS:
        raise ValueError(f"{where}: unknown function {function!r}; expected one of {', '.join(FUNCTIONS)}")
    takes = FUNCTIONS[function]
    if len(arguments) != takes:
        raise ValueError(f"{where}: {function} takes {takes} argument{'s' * (takes > 1)}, got {len(arguments)}")
    return Call(function, tuple(_read(argument, names, depth + 1) for argument in arguments))
