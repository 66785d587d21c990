"""The text of a condition is the expression that builds it."""

from __future__ import annotations

import math
from datetime import date, datetime, timezone

import numpy as np
import pytest

from client import And, AnyOf, Condition, F, Feature, Not, Or, Range, Schema, compile_filter, everything
from client.filters.text import parse_filter
from client.schema import Kind


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
        (everything(), "everything()"),
        (everything() | (F.a == 1), "everything() | (F.a == 1)"),
    ],
)
def test_text_and_back(condition: Condition, text: str) -> None:
    assert str(condition) == repr(condition) == text
    assert eval(text, {"F": F, "everything": everything}) == condition
    assert parse_filter(text) == condition


NEW_YEAR = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (F["a b"] >= date(2024, 1, 2), "F['a b'] >= '2024-01-02'"),
        (F.a == NEW_YEAR, "F.a == '2024-01-01T12:00:00+00:00'"),
        (
            F.a.between(np.datetime64("2024-01"), NEW_YEAR),
            "F.a.between('2024-01-01T00:00:00.000000', '2024-01-01T12:00:00+00:00')",
        ),
        (F.a.any_of(np.datetime64("2024-01-01T00:00:00.000000001")), "F.a == '2024-01-01T00:00:00.000000'"),
        ((F.a < math.inf) & (F.a > -math.inf), "(F.a < 1e999) & (F.a > -1e999)"),
    ],
)
def test_text_of_what_has_no_literal_of_its_own_means_the_same(condition: Condition, text: str) -> None:
    """Dates become text, infinities numbers that overflow: what `parse_filter` reads."""
    assert str(condition) == text
    kind: Kind = "number" if "1e999" in text else "date"
    names = ("a", "a b")
    schema = Schema("s", (), tuple(Feature(name, kind, None, True) for name in names), ("score",), 0, 4, 1, 1, 1)
    assert compile_filter(parse_filter(text), schema).tolist() == compile_filter(condition, schema).tolist()


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
