"""The closed set of filter conditions. `F` (client/filters/builder.py) and `item_in` write them, nothing else needs to.

    Condition
    ├── And, Or        operands; none: every item, no item
    ├── Not            operand
    ├── AnyOf          the item has at least one of the values; numbers and dates: equals one of them
    ├── AllOf          the item has all of the values (category, tags)
    ├── Range          low <= value <= high, either side optional or open (number, date)
    ├── Unknown        the item has no value
    └── ItemIn         the item is one of those

What they mean is defined by `client.filters.interpreter.matches`. An item without a value satisfies no AnyOf, no AllOf
of one value or more and no Range on that feature, hence it satisfies their negation.

Conditions are immutable and know no schema: names, kinds and value types are checked when one is compiled. `str()` and
`repr()` give the Python expression that builds the condition, which `parse_filter` reads too.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NoReturn, TypeVar

import numpy as np

from client._values import item_ids as checked_ids

C = TypeVar("C", bound="And | Or")

_PARENTHESES = "put comparisons in parentheses: (F.year >= 1990) & (F.year < 2000)"


class Condition:
    """What every condition has: `&`, `|`, `~`, and an expression as its text."""

    __slots__ = ()
    __array_ufunc__ = None  # a numpy scalar must not try to turn a condition into an array

    def __and__(self, other: Condition) -> Condition:
        return _join(And, self, other)

    def __or__(self, other: Condition) -> Condition:
        return _join(Or, self, other)

    def __invert__(self) -> Condition:
        return self.operand if isinstance(self, Not) else Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a filter condition is neither true nor false; combine conditions with & | ~ instead of and, or, not, "
            "and write F.year.between(1990, 2000) instead of 1990 <= F.year <= 2000"
        )

    def __repr__(self) -> str:
        return _text(self, inside=False)


@dataclass(frozen=True, slots=True, repr=False)
class And(Condition):
    """Items that satisfy every operand. `And(())` is every item."""

    operands: tuple[Condition, ...]

    def __post_init__(self) -> None:
        _check_operands(self, self.operands)


@dataclass(frozen=True, slots=True, repr=False)
class Or(Condition):
    """Items that satisfy at least one operand. `Or(())` is no item."""

    operands: tuple[Condition, ...]

    def __post_init__(self) -> None:
        _check_operands(self, self.operands)


@dataclass(frozen=True, slots=True, repr=False)
class Not(Condition):
    """Items that do not satisfy the operand."""

    operand: Condition

    def __post_init__(self) -> None:
        _check_operands(self, (self.operand,))


@dataclass(frozen=True, slots=True, repr=False)
class AnyOf(Condition):
    """Items with at least one of the values; for numbers and dates, items whose value equals one of them."""

    feature: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        _check_values(self, self.values)


@dataclass(frozen=True, slots=True, repr=False)
class AllOf(Condition):
    """Items with all of the values. With no values, every item."""

    feature: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        _check_values(self, self.values)


@dataclass(frozen=True, slots=True, repr=False)
class Range(Condition):
    """Items with low <= value <= high. `None` leaves a side unbounded, an `*_open` bound is itself excluded."""

    feature: str
    low: Any = None
    high: Any = None
    low_open: bool = False
    high_open: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Unknown(Condition):
    """Items that have no value for the feature; for tags, an empty list."""

    feature: str


@dataclass(frozen=True, slots=True, repr=False)
class ItemIn(Condition):
    """Items with one of these ids. Ids that no item has match nothing."""

    item_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_values(self, self.item_ids)


def everything() -> Condition:
    """The condition that every item satisfies: a neutral start for `condition &= ...` in a loop."""
    return And(())


def item_in(item_ids: Iterable[int]) -> Condition:
    """The condition that only the items with these ids satisfy: `(F.year >= 1990) & item_in([318, 50])`.

    `item_ids`: any number of them, in any order, from a list, set, array or other iterable; those that no item has
    match nothing. Raises `InvalidValue` for what is no id.
    """
    return ItemIn(tuple(checked_ids("item_in", item_ids).tolist()))


def _join(connective: type[C], left: Condition, right: object) -> Condition:
    """Join two conditions; nested ones of the same connective become one, so `And(())` vanishes in an And."""
    if not isinstance(right, Condition):
        raise TypeError(f"a filter condition cannot be combined with {right!r}; {_PARENTHESES}")
    operands: tuple[Condition, ...] = ()
    for side in (left, right):
        operands += side.operands if isinstance(side, connective) else (side,)
    return operands[0] if len(operands) == 1 else connective(operands)


def _check_operands(connective: Condition, operands: object) -> None:
    if not isinstance(operands, tuple) or not all(isinstance(operand, Condition) for operand in operands):
        raise TypeError(f"{type(connective).__name__}: got {operands!r}, expected conditions in a tuple")


def _check_values(condition: Condition, values: object) -> None:
    if not isinstance(values, tuple):
        raise TypeError(f"{type(condition).__name__}: got {values!r}, expected values in a tuple")


def field_text(name: str) -> str:
    """How `F` spells a feature: F.year, or F["release year"] where the name is no attribute."""
    plain = name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
    return f"F.{name}" if plain else f"F[{name!r}]"


def _text(condition: Condition, inside: bool) -> str:
    """The expression of a condition; `inside` another one, operators that bind weaker than & and | are wrapped."""
    match condition:
        case And(operands=()):
            return "everything()"
        case Or(operands=()):
            return "~everything()"
        case And(operands=operands) | Or(operands=operands) if len(operands) == 1:
            return _text(operands[0], inside)
        case And(operands=operands):
            return _wrap(" & ".join(_text(operand, True) for operand in operands), inside)
        case Or(operands=operands):
            return _wrap(" | ".join(_text(operand, True) for operand in operands), inside)
        case Not(operand=AnyOf(feature=feature, values=(value,))):
            return _wrap(f"{field_text(feature)} != {_literal(value)}", inside)
        case Not(operand=operand):
            return f"~{_text(operand, True)}"
        case AnyOf(feature=feature, values=(value,)):
            return _wrap(f"{field_text(feature)} == {_literal(value)}", inside)
        case AnyOf(feature=feature, values=values):
            return f"{field_text(feature)}.any_of({_arguments(values)})"
        case AllOf(feature=feature, values=values):
            return f"{field_text(feature)}.all_of({_arguments(values)})"
        case Unknown(feature=feature):
            return f"{field_text(feature)}.is_unknown()"
        case ItemIn(item_ids=item_ids):
            return f"item_in([{_arguments(item_ids)}])"
        case Range():
            return _range_text(condition, inside)
    raise AssertionError(f"not a condition: {condition!r}")  # pragma: no cover - the set is closed


def _range_text(condition: Range, inside: bool) -> str:
    field, low, high = field_text(condition.feature), _literal(condition.low), _literal(condition.high)
    low_text = f"{field} {'>' if condition.low_open else '>='} {low}"
    high_text = f"{field} {'<' if condition.high_open else '<='} {high}"
    if condition.low is not None and condition.high is not None:
        if not condition.low_open and not condition.high_open:
            return f"{field}.between({low}, {high})"
        return _wrap(f"({low_text}) & ({high_text})", inside)
    if condition.low is None and condition.high is None:
        return f"~{field}.is_unknown()"
    return _wrap(high_text if condition.low is None else low_text, inside)


def _arguments(values: Iterable[Any]) -> str:
    return ", ".join(map(_literal, values))


def _literal(value: Any) -> str:
    """A value as docs/filters.md writes it: dates as ISO 8601 text, members of an enumeration as what they equal."""
    if isinstance(value, str):
        return str.__repr__(value)
    if isinstance(value, np.datetime64):
        return repr(str(value.astype("datetime64[us]")))
    if isinstance(value, datetime) and type(value) is not datetime:  # pandas' write nanoseconds, which do not travel
        return repr(value.isoformat(timespec="microseconds"))
    if isinstance(value, date):
        return repr(value.isoformat())
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    return repr(value)


def _wrap(text: str, inside: bool) -> str:
    return f"({text})" if inside else text
