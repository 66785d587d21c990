"""The condition under which an interaction is positive for a task: `rating >= 4`, or `true` for every interaction.

    condition = "true" | column comparison number
    comparison = ">=" | ">" | "<=" | "<" | "==" | "!="

Read with Python's `ast` and never evaluated, as value formulas are.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from builder.formula import read_number

Values = NDArray[np.float64]
COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[Values, float], NDArray[np.bool_]]]] = {
    ast.GtE: (">=", np.greater_equal),
    ast.Gt: (">", np.greater),
    ast.LtE: ("<=", np.less_equal),
    ast.Lt: ("<", np.less),
    ast.Eq: ("==", np.equal),
    ast.NotEq: ("!=", np.not_equal),
}


@dataclass(frozen=True)
class Condition:
    """`column` compared with `number`; `column` None: always true."""

    column: str | None
    comparison: type[ast.cmpop] = ast.GtE
    number: float = 0.0

    def holds(self, values: Values) -> NDArray[np.bool_]:
        """[P] for the column's `values` [P]; a missing one (NaN) meets no condition."""
        compare = COMPARISONS[self.comparison][1]
        return np.asarray(compare(values, self.number) & ~np.isnan(values))

    def __str__(self) -> str:
        if self.column is None:
            return "true"
        number = repr(self.number).removesuffix(".0")
        return f"{self.column} {COMPARISONS[self.comparison][0]} {number}"


def parse_condition(text: str | bool) -> Condition:
    """Read a condition. Raises ValueError that says what would be right."""
    if text is True or text == "true":
        return Condition(None)
    expected = "expected true, or a column compared with a number, such as rating >= 4"
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"got {str(text)[:80]!r}, {expected}") from error
    if (
        not isinstance(node, ast.Compare)
        or len(node.ops) != 1
        or not isinstance(node.left, ast.Name)
        or type(node.ops[0]) not in COMPARISONS
    ):
        raise ValueError(f"got {str(text)[:80]!r}, {expected}")
    number = node.comparators[0]
    sign = 1.0
    if isinstance(number, ast.UnaryOp) and isinstance(number.op, ast.USub):
        sign, number = -1.0, number.operand
    return Condition(node.left.id, type(node.ops[0]), sign * read_number(number))
