"""The definition of filters, case by case."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import numpy as np
import pytest

from client import (
    AllOf,
    AnyOf,
    Condition,
    F,
    InvalidValue,
    ItemIn,
    Or,
    Range,
    Schema,
    UnknownName,
    everything,
    item_in,
    matches,
)

ITEM: dict[str, Any] = {
    "item_id": 50,
    "title_id": 7,
    "studio": "Mosfilm",
    "genres": ["Drama", "War"],
    "cast": [3, 4],
    "year": 1990.0,
    "released": dt.datetime(1990, 5, 1, 12, tzinfo=dt.timezone.utc),
}
UTC_NOON = "1990-05-01T12:00:00Z"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (F.title_id == 7, True),
        (F.title_id == 8, False),
        (F.title_id != 8, True),
        (F.studio == "Mosfilm", True),
        (F.studio == "mosfilm", False),
        (F.studio.any_of(), False),
        (F.studio.all_of(), True),
        (F.studio.all_of("Mosfilm"), True),
        (F.studio.all_of("Mosfilm", "Pathé"), False),
        (F.genres.any_of("Comedy", "War"), True),
        (F.genres.any_of("Comedy"), False),
        (F.genres.all_of("War", "Drama"), True),
        (F.genres.all_of("War", "Comedy"), False),
        (F.cast.is_in([4, 9]), True),
        (F.year == 1990, True),
        (F.year.is_in([1989, 1990.0]), True),
        (F.year.is_in([]), False),
        (F.year < 1990, False),
        (F.year <= 1990, True),
        (F.year > 1990, False),
        (F.year >= 1990, True),
        (F.year > math.nextafter(1990, 0), True),
        (F.year.between(1990, 1990), True),
        (F.year.between(1991, 1989), False),
        (F.year < math.inf, True),
        (F.year > math.inf, False),
        (F.year > -math.inf, True),
        (F.released == UTC_NOON, True),
        (F.released == "1990-05-01T14:00:00+02:00", True),
        (F.released == "1990-05-01 12:00", True),
        (F.released >= dt.date(1990, 5, 1), True),
        (F.released <= dt.date(1990, 5, 1), False),  # a date is the instant of its midnight
        (F.released < dt.date(1990, 5, 2), True),
        (F.released.between("1990-05-01", "1990-05-02"), True),
        (F.released > np.datetime64("1990-05-01T11:59:59.999999"), True),
        (F.year.is_unknown(), False),
        (~F.year.is_unknown(), True),
        ((F.year == 1990) & (F.title_id == 8), False),
        ((F.year == 1990) | (F.title_id == 8), True),
        (everything(), True),
        (item_in([318, 50]), True),
        (item_in([318, 51]), False),
        (item_in([]), False),
        (~item_in([51]), True),
        (item_in([50]) & (F.title_id == 8), False),
        (~everything(), False),
        (Or(()), False),
        (Range("year"), True),
        (Range("year", 1990, 1991, low_open=True), False),
        (Range("year", 1989, 1990, high_open=True), False),
    ],
    ids=str,
)
def test_an_item_with_values(schema: Schema, condition: Condition, expected: bool) -> None:
    assert matches(condition, ITEM, schema) is expected


UNKNOWN = [{}, dict.fromkeys(ITEM), {"genres": [], "cast": (), "year": math.nan, "released": float("nan")}]


@pytest.mark.parametrize("item", UNKNOWN, ids=["absent", "None", "empty"])
@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (F.title_id == 7, False),
        (F.title_id != 7, True),
        (F.studio.any_of("a"), False),
        (F.genres.any_of("a"), False),
        (F.genres.all_of("a"), False),
        (F.genres.all_of(), True),
        (~F.genres.all_of("a"), True),
        (F.year < 5, False),
        (~(F.year < 5), True),
        (Range("year"), False),
        (F.year == 0, False),
        (F.released >= "1970-01-01", False),
        (F.studio.is_unknown(), True),
        (F.genres.is_unknown(), True),
        (F.cast.is_unknown(), True),
        (F.year.is_unknown(), True),
        (F.released.is_unknown(), True),
    ],
    ids=str,
)
def test_an_item_without_values(schema: Schema, item: dict[str, Any], condition: Condition, expected: bool) -> None:
    assert matches(condition, item, schema) is expected


def test_item_dates_may_be_seconds(schema: Schema) -> None:
    assert matches(F.released == "1970-01-02", {"released": 86_400}, schema)
    assert matches(F.released == "1969-12-31T23:59:59.500", {"released": -0.5}, schema)


def test_zero_has_no_sign(schema: Schema) -> None:
    assert matches(F.year == 0.0, {"year": -0.0}, schema)
    assert not matches(F.year > -0.0, {"year": 0.0}, schema)


def test_bools_are_integers_as_in_an_artifact(schema: Schema) -> None:
    assert matches(F.title_id == True, {"title_id": 1}, schema)  # noqa: E712
    assert matches(F.year == np.True_, {"year": 1}, schema)


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (F.yeer >= 1, UnknownName, "unknown filter feature 'yeer'; did you mean 'year'"),
        (F.poster == "x", UnknownName, "build the artifact with `filter: true`"),
        (F.genres >= 3, InvalidValue, "of kind tags, expected one of kind number or date; use any_of or all_of"),
        (F.title_id < 3, InvalidValue, "of kind category, .* use == or is_in"),
        (F.year.all_of(3), InvalidValue, "of kind number, expected one of kind category or tags; use == or is_in"),
        (F.title_id == "7", InvalidValue, r"filter on 'title_id': got '7' \(str\), expected an integer"),
        (F.title_id == 7.0, InvalidValue, "expected an integer"),
        (F.title_id == 2**63, InvalidValue, r"below 2\*\*63"),
        (F.title_id == -(2**63), InvalidValue, r"above -2\*\*63"),
        (F.studio == 3, InvalidValue, "expected a string"),
        (F.studio == "\ud800", InvalidValue, "lone surrogate"),
        (F.year == "1990", InvalidValue, "expected a number"),
        (F.year == 10**400, InvalidValue, "within float64"),
        (F.released >= 1990, InvalidValue, "expected a datetime, a date"),
        (F.released >= "yesterday", InvalidValue, "ISO 8601"),
        (F.released >= np.datetime64("NaT", "s"), InvalidValue, "not NaT"),
        (F.released >= np.datetime64(10**9, "Y"), InvalidValue, "of the years 1 to 9999"),
        (F.released >= np.datetime64("-0044-03-15"), InvalidValue, "of the years 1 to 9999"),
        (F.released >= np.datetime64("10000-01-01"), InvalidValue, "of the years 1 to 9999"),
        (AnyOf("year", (float("nan"),)), InvalidValue, "not NaN"),
        (AnyOf("title_id", (float("nan"),)), InvalidValue, "NaN is none"),
        (AllOf("title_id", (None,)), InvalidValue, "expected an integer"),
        (ItemIn((-1,)), InvalidValue, "an item id"),
        (ItemIn(("x",)), InvalidValue, "an item id"),
        ("year > 3", InvalidValue, "a condition made with F"),
        (F.year, InvalidValue, "a condition made with F"),
    ],
    ids=str,
)
def test_what_does_not_go_with_the_schema(schema: Schema, condition: Any, error: type[Exception], message: str) -> None:
    from client import compile_filter

    with pytest.raises(error, match=message):
        matches(condition, ITEM, schema)
    with pytest.raises(error, match=message):
        compile_filter(condition, schema)


def test_an_item_without_its_id_cannot_be_compared(schema: Schema) -> None:
    with pytest.raises(InvalidValue, match=r"filter item_in\(\[5\]\): the item has no 'item_id'"):
        matches(item_in([5]), {"year": 3.0}, schema)
