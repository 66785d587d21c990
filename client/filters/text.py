"""Filters as text: the Python form of `F`, read without being run."""

from __future__ import annotations

import ast
from typing import Any

from client.errors import InvalidValue, RequestError
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

    The grammar is what `F` takes in Python: `&`, `|`, `~`, parentheses, comparisons of a feature with a literal
    (chained ones too: `1990 <= F.year < 2000`), the methods of a feature, `everything()` and `item_in([...])`.
    Nothing is evaluated but literals. Raises `InvalidValue` with the place of what cannot be read.
    """
    if len(text) > MAX_TEXT:
        raise InvalidValue(f"filter: {len(text):,} characters, expected at most {MAX_TEXT:,}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _condition(tree.body)
    except SyntaxError as error:
        raise InvalidValue(f"filter: cannot be read at character {error.offset}: {error.msg}: {text}") from None
    except (RecursionError, MemoryError):
        raise InvalidValue("filter: nested too deeply to be read; 64 levels are the most that is sent") from None
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise InvalidValue(f"filter: cannot be read: {error}") from None


def _condition(node: ast.expr) -> Condition:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        left, right = _condition(node.left), _condition(node.right)
        return left & right if isinstance(node.op, ast.BitAnd) else left | right
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_condition(node.operand)
    if isinstance(node, ast.Compare):
        return _comparison(node)
    if isinstance(node, ast.Call):
        return _call(node)
    if isinstance(node, ast.BoolOp | ast.UnaryOp):
        raise _refuse(node, "write &, | and ~ for and, or and not, and comparisons in parentheses")
    raise _refuse(node, "expected a condition on a feature, such as (F.year >= 1990)")


def _comparison(node: ast.Compare) -> Condition:
    operands = [node.left, *node.comparators]
    conditions = []
    for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
        if type(operator) not in _COMPARISONS:
            raise _refuse(node, "compare with ==, !=, <, <=, > or >=; for `in` write F.name.is_in([...])")
        if _is_field(left):
            field, value, kind = _field(left), _literal(right), type(operator)
        else:
            field, value, kind = _field(right), _literal(left), _MIRRORED.get(type(operator), type(operator))
        conditions.append(getattr(field, _COMPARISONS[kind])(value))
    condition: Condition = conditions[0]
    for other in conditions[1:]:
        condition = condition & other
    return condition


def _call(node: ast.Call) -> Condition:
    function = node.func
    if isinstance(function, ast.Name) and function.id == "everything" and not node.args and not node.keywords:
        return everything()
    if isinstance(function, ast.Name) and function.id == "item_in" and len(node.args) == 1 and not node.keywords:
        return item_in(_literal(node.args[0]))
    if not isinstance(function, ast.Attribute) or function.attr not in _METHODS:
        raise _refuse(node, f"expected one of F.name.{', F.name.'.join(_METHODS)}")
    if node.keywords:
        raise _refuse(node, "give values without names")
    method = getattr(_field(function.value), function.attr)
    try:
        condition: Condition = method(*(_literal(argument) for argument in node.args))
    except TypeError as error:
        raise _refuse(node, str(error)) from None
    return condition


def _is_field(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute | ast.Subscript)


def _field(node: ast.expr) -> Field:
    value = node.value if isinstance(node, ast.Attribute | ast.Subscript) else None
    if isinstance(value, ast.Name) and value.id == "F":
        if isinstance(node, ast.Attribute):
            return F[node.attr]
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            name: Any = node.slice.value
            if isinstance(name, str):
                return F[name]
    raise _refuse(node, 'expected a feature: F.name or F["name"]')


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise _refuse(node, "expected a literal: a string in quotes, a number, or a list of them") from None


def _refuse(node: ast.expr, expected: str) -> InvalidValue:
    return InvalidValue(f"filter: {ast.unparse(node)!r} at character {node.col_offset + 1}: {expected}")
