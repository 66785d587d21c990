"""Filters as text: the Python form of `F`, read without being run."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable
from typing import Any

from client.errors import InvalidValue, RequestError, invalid_value
from client.filters.builder import F, Field
from client.filters.conditions import Condition, everything, item_in

MAX_TEXT = 1 << 20  # characters
_METHODS = ("all_of", "any_of", "between", "is_in", "is_unknown", "not_in")
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "__eq__",
    ast.NotEq: "__ne__",
    ast.Lt: "__lt__",
    ast.LtE: "__le__",
    ast.Gt: "__gt__",
    ast.GtE: "__ge__",
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}


def parse_filter(text: str) -> Condition:
    """Read a condition such as `F.genres.any_of("Drama") & (F.year >= 1990) & ~F.title_id.is_in([1, 2])`.

    The grammar (docs/filters.md) is what `F` takes in Python: `&`, `|`, `~`, parentheses, comparisons of a feature
    with a literal (chained ones too: `1990 <= F.year < 2000`), the methods of a feature, `everything()` and
    `item_in([...])`. Nothing is evaluated but literals. Raises `InvalidValue` with the place of what cannot be read,
    the first character being 1.
    """
    if not isinstance(text, str):
        raise invalid_value("filter", text, "text")
    if len(text) > MAX_TEXT:
        raise InvalidValue(f"filter: {len(text):,} characters, expected at most {MAX_TEXT:,}")
    if "\0" in text:
        raise InvalidValue(f"filter: cannot be read at character {text.index(chr(0)) + 1}: a NUL character")
    before = len(text) - len(text.lstrip())
    try:
        return _Reader(text.strip(), before).condition(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        if error.offset:
            place, reason = before + _place(text[before:], error.lineno or 1, error.offset), error.msg
        else:
            place, reason = len(text.rstrip()) + 1, "something is missing at its end"
        raise InvalidValue(f"filter: cannot be read at character {place}: {reason}: {_shortened(text)}") from None
    except (RecursionError, MemoryError):
        raise InvalidValue(
            "filter: nested too deeply, or too much joined, to be read: 64 levels are the most that is sent; "
            "write is_in instead of many |"
        ) from None
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise InvalidValue(f"filter: cannot be read: {error}") from None


class _Reader:
    """Turns Python's tree of `text`, before which so many characters stand, to conditions."""

    def __init__(self, text: str, before: int) -> None:
        self._text, self._before = text, before

    def condition(self, node: ast.expr) -> Condition:
        joined: list[tuple[ast.operator, ast.expr]] = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):  # a long chain is no depth
            joined.append((node.op, node.right))
            node = node.left
        if joined:
            condition = self.condition(node)
            for operator, right in reversed(joined):
                other = self.condition(right)
                condition = condition & other if isinstance(operator, ast.BitAnd) else condition | other
            return condition
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.BoolOp | ast.UnaryOp):
            raise self._refuse(node, "write &, | and ~ for and, or and not, and comparisons in parentheses")
        raise self._refuse(node, "expected a condition on a feature, such as (F.year >= 1990)")

    def _comparison(self, node: ast.Compare) -> Condition:
        operands = [node.left, *node.comparators]
        for operand in operands:
            if isinstance(operand, ast.BinOp) and isinstance(operand.op, ast.BitAnd | ast.BitOr):
                raise self._refuse(operand, "put comparisons in parentheses, as & and | bind more strongly")
        conditions = []
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            if type(operator) not in _COMPARISONS:
                raise self._refuse(node, "compare with ==, !=, <, <=, > or >=; for `in` write F.name.is_in([...])")
            if _is_field(left):
                field, value, kind = self._field(left), right, type(operator)
            else:
                named = left if isinstance(left, ast.Name) and not _is_field(right) else right
                field, value, kind = self._field(named), left, _MIRRORED.get(type(operator), type(operator))
            conditions.append(self._made(value, getattr(field, _COMPARISONS[kind]), self._literal(value)))
        condition = conditions[0]
        for other in conditions[1:]:
            condition = condition & other
        return condition

    def _call(self, node: ast.Call) -> Condition:
        function = node.func
        if isinstance(function, ast.Name) and function.id == "everything" and not node.args and not node.keywords:
            return everything()
        if isinstance(function, ast.Name) and function.id == "item_in" and len(node.args) == 1 and not node.keywords:
            return self._made(node, item_in, self._literal(node.args[0]))
        if not isinstance(function, ast.Attribute) or function.attr not in _METHODS:
            raise self._refuse(node, f"expected one of F.name.{', F.name.'.join(_METHODS)}")
        if node.keywords:
            raise self._refuse(node, "give values without names")
        field = self._field(function.value)
        return self._made(node, getattr(field, function.attr), *map(self._literal, node.args))

    def _made(self, node: ast.expr, make: Callable[..., Condition], *values: Any) -> Condition:
        try:
            return make(*values)
        except (TypeError, InvalidValue) as error:
            raise self._refuse(node, str(error)) from None

    def _field(self, node: ast.expr) -> Field:
        value = node.value if isinstance(node, ast.Attribute | ast.Subscript) else None
        if isinstance(value, ast.Name) and value.id == "F":
            if isinstance(node, ast.Attribute):
                return F[node.attr]
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                name: Any = node.slice.value
                if isinstance(name, str):
                    return F[name]
        name = node.id if isinstance(node, ast.Name) else "name"
        raise self._refuse(node, f'expected a feature: F.{name} or F["{name}"]')

    def _literal(self, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            expected = "expected a literal: a string in quotes, a number, True, False, or a list of them"
            raise self._refuse(node, expected) from None

    def _refuse(self, node: ast.expr, expected: str) -> InvalidValue:
        line = _lines(self._text)[node.lineno - 1].encode("utf-8", "surrogatepass")
        column = len(line[: node.col_offset].decode("utf-8", "surrogatepass"))  # Python counts bytes of UTF-8
        place = self._before + _place(self._text, node.lineno, column + 1)
        return InvalidValue(f"filter: {_shortened(ast.unparse(node))!r} at character {place}: {expected}")


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _lines(text: str) -> list[str]:
    """With their ends, as Python counts them."""
    return io.StringIO(text, newline="").readlines()


def _place(text: str, line: int, column: int) -> int:
    """Which character of the text stands there; all count from 1."""
    return sum(map(len, _lines(text)[: line - 1])) + column


def _is_field(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute | ast.Subscript)
