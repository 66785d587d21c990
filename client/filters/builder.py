"""`F`: filter conditions written as Python expressions.

    F.genres.any_of("Drama", "War") & (F.year >= 1990) & ~F.title_id.is_in([1, 2])

Comparisons bind weaker than `&` and `|` in Python, so they stand in parentheses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any, NoReturn

import numpy as np

from client.errors import InvalidValue, invalid_value
from client.filters.conditions import (
    _PARENTHESES,
    AllOf,
    AnyOf,
    Condition,
    Not,
    Range,
    Unknown,
    field_text,
)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Field:
    """One item feature, made by `F.name` or `F["any name"]`.

    Values are strings or integers for categories and tags, as the artifact stores them; numbers; and for dates
    datetime, date, numpy.datetime64 or an ISO 8601 string. A date without a time zone is UTC, a date without a time is
    the instant of its midnight: `F.released <= date(2024, 1, 31)` ends with the first instant of that day,
    `F.released < date(2024, 2, 1)` includes all of it.

    A bool is 1 or 0, as in an artifact built from bools. `!=` and `~` also match items that have no value at all. Every
    method raises `InvalidValue` for None (write `is_unknown()`), NaN and containers in the place of a value.
    """

    name: str
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        return AnyOf(self.name, (self._value("==", value),))

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]
        return Not(AnyOf(self.name, (self._value("!=", value),)))

    def __lt__(self, value: Any) -> Condition:
        return Range(self.name, high=self._value("<", value), high_open=True)

    def __le__(self, value: Any) -> Condition:
        return Range(self.name, high=self._value("<=", value))

    def __gt__(self, value: Any) -> Condition:
        return Range(self.name, low=self._value(">", value), low_open=True)

    def __ge__(self, value: Any) -> Condition:
        return Range(self.name, low=self._value(">=", value))

    def between(self, low: Any, high: Any) -> Condition:
        """Items with low <= value <= high; none if low > high."""
        return Range(self.name, self._value("between", low), self._value("between", high))

    def is_in(self, values: Iterable[Any]) -> Condition:
        """Items with at least one of the values, which come as one list, set, array or other iterable."""
        if isinstance(values, str | bytes):
            raise invalid_value(f"{self!r}.is_in", values, f"an iterable; for one value write {self!r} == {values!r}")
        if isinstance(values, np.ndarray) and values.dtype.kind not in "Mm":
            values = values.tolist()
        try:
            every = list(values)
        except TypeError:
            raise invalid_value(f"{self!r}.is_in", values, "an iterable of values") from None
        return AnyOf(self.name, tuple(self._value("is_in", value) for value in every))

    def not_in(self, values: Iterable[Any]) -> Condition:
        """Items with none of the values, those without any value included."""
        return Not(self.is_in(values))

    def any_of(self, *values: Any) -> Condition:
        """Items with at least one of the values: `is_in` with separate arguments."""
        return AnyOf(self.name, tuple(self._value("any_of", value) for value in values))

    def all_of(self, *values: Any) -> Condition:
        """Items with all of the values (category, tags)."""
        return AllOf(self.name, tuple(self._value("all_of", value) for value in values))

    def is_unknown(self) -> Condition:
        """Items that have no value."""
        return Unknown(self.name)

    def _value(self, operation: str, value: Any) -> Any:
        """A plain, hashable value. What depends on the feature's kind is checked when the condition is compiled."""
        kind = type(value)
        if kind is str or kind is int or (kind is float and value == value):
            return value
        if isinstance(value, np.integer | np.floating | np.bool_ | np.str_):
            return self._value(operation, value.item())
        if isinstance(value, str | int | date | np.datetime64):
            return value
        raise self._refuse(operation, value)

    def _refuse(self, operation: str, value: Any) -> InvalidValue:
        where = f"{self!r} {operation}"
        if value is None:
            return invalid_value(where, value, f"a value; items without one are {self!r}.is_unknown()")
        if isinstance(value, Field):
            return invalid_value(where, value, "a value; two features cannot be compared")
        if isinstance(value, float) and math.isnan(value):
            return invalid_value(where, value, f"a number; items without one are {self!r}.is_unknown()")
        if isinstance(value, Iterable):
            return invalid_value(where, value, f"one value; for many write {self!r}.is_in(values)")
        return invalid_value(where, value, "a string, a number or a date")

    def __and__(self, other: object) -> NoReturn:
        raise TypeError(f"{self!r} alone is no condition; {_PARENTHESES}")

    __rand__ = __or__ = __ror__ = __and__

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self!r} alone is no condition; compare it, or write ~{self!r}.is_unknown()")

    __invert__ = __bool__

    def __contains__(self, value: object) -> NoReturn:
        raise TypeError(f"`in` cannot build a condition; write {self!r} == {value!r}")

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be iterated; its values stay on the server")

    def __repr__(self) -> str:
        return field_text(self.name)


class FieldBuilder:
    """The type of `F`."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Field:
        if name.startswith("__"):  # what copy, pickle and inspect ask for
            raise AttributeError(name)
        return Field(name)

    def __getitem__(self, name: str) -> Field:
        if not isinstance(name, str):
            raise TypeError(f"F[...]: got {name!r}, expected the name of an item feature")
        return Field(name)

    def __repr__(self) -> str:
        return "F"


F = FieldBuilder()
