"""The text of a condition is the expression that builds it."""

from __future__ import annotations

import datetime
import enum
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client import (
    And,
    AnyOf,
    Condition,
    F,
    InvalidValue,
    ItemIn,
    Not,
    Or,
    Range,
    Schema,
    compile_filter,
    everything,
    item_in,
    parse_filter,
)


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (F.genres.any_of("Drama", "War"), "F.genres.any_of('Drama', 'War')"),
        (F.genres.all_of("Drama"), "F.genres.all_of('Drama')"),
        (F.genres.any_of(), "F.genres.any_of()"),
        (F.year == 1990, "F.year == 1990"),
        (F.year != 1990, "F.year != 1990"),
        (F.year.between(1, 2.5), "F.year.between(1, 2.5)"),
        (~F.year.is_in([1, 2]), "~F.year.any_of(1, 2)"),
        (~(F.year > 3), "~(F.year > 3)"),
        (F.year.is_unknown(), "F.year.is_unknown()"),
        ((F.a == 1) & (F.b != "x") & (F.c < 2), "(F.a == 1) & (F.b != 'x') & (F.c < 2)"),
        ((F.a == 1) & (F.b.any_of(1, 2) | F.c.is_unknown()), "(F.a == 1) & (F.b.any_of(1, 2) | F.c.is_unknown())"),
        (~((F.a == 1) | (F.b <= 2)), "~((F.a == 1) | (F.b <= 2))"),
        (F["a b"] >= "2024-01-02", "F['a b'] >= '2024-01-02'"),
        (F.year >= float("-inf"), "F.year >= -1e999"),
        (everything(), "everything()"),
        (item_in([318, 50]), "item_in([318, 50])"),
        (~item_in([]) & (F.a == 1), "~item_in([]) & (F.a == 1)"),
        (everything() | (F.a == 1), "everything() | (F.a == 1)"),
    ],
)
def test_text_and_back(condition: Condition, text: str) -> None:
    assert str(condition) == repr(condition) == text
    assert eval(text, {"F": F, "everything": everything, "item_in": item_in}) == condition
    assert parse_filter(text) == condition


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Shade(str, enum.Enum):
    DARK = "dark"


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (F.released == datetime.date(2024, 1, 2), "F.released == '2024-01-02'"),
        (F.released > datetime.datetime(2024, 1, 2, 3, 4, 5, 67), "F.released > '2024-01-02T03:04:05.000067'"),
        (
            F.released < datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
            "F.released < '2024-01-02T00:00:00+02:00'",
        ),
        (F.released.is_in([np.datetime64("2024-01-02")]), "F.released == '2024-01-02T00:00:00.000000'"),
        (
            F.released > pd.Timestamp("2024-01-02T03:04:05.123456789Z"),
            "F.released > '2024-01-02T03:04:05.123456+00:00'",
        ),
        (F.title_id == Level.HIGH, "F.title_id == 3"),
        (F.studio != Shade.DARK, "F.studio != 'dark'"),
        (F.title_id == True, "F.title_id == True"),  # noqa: E712
    ],
)
def test_values_that_are_no_literals_become_such(condition: Condition, text: str, schema: Schema) -> None:
    assert str(condition) == text
    assert compile_filter(parse_filter(text), schema).tolist() == compile_filter(condition, schema).tolist()


def test_a_member_of_an_enumeration_is_no_value() -> None:
    with pytest.raises(InvalidValue):
        F.studio == Colour.RED  # noqa: B015


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (Or(()), "~everything()"),
        (And((F.a == 1,)), "F.a == 1"),
        (Not(And((F.a == 1,))), "~(F.a == 1)"),
        (Range("a", 1, 2, low_open=True), "(F.a > 1) & (F.a <= 2)"),
        (Not(Range("a", 1, 2, high_open=True)), "~((F.a >= 1) & (F.a < 2))"),
        (Range("a"), "~F.a.is_unknown()"),
        (AnyOf("a", ()), "F.a.any_of()"),
    ],
)
def test_text_of_what_the_builder_does_not_make(condition: Condition, text: str) -> None:
    assert str(condition) == text


@pytest.mark.parametrize("values", [[3, 1], (3, 1), np.array([3, 1]), np.array([3, 1], np.uint8), {3: "x", 1: "y"}])
def test_items_in_any_iterable(values: Any) -> None:
    assert item_in(values) == ItemIn((3, 1))
    assert item_in(iter(values)) == ItemIn((3, 1))


@pytest.mark.parametrize("values", [5, "12", [None], [True], [1.0], [-1], [2**63], [[1]], ["1"]])
def test_what_is_no_item_id_is_refused(values: Any) -> None:
    with pytest.raises(InvalidValue, match=r"item_in.*expected (an item id|a sequence of item ids)"):
        item_in(values)
