"""The text of a condition is the expression that builds it."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest

from client import And, AnyOf, Condition, F, InvalidValue, ItemIn, Not, Or, Range, everything, item_in


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
        (F["a b"] >= datetime.date(2024, 1, 2), "F['a b'] >= datetime.date(2024, 1, 2)"),
        (everything(), "everything()"),
        (item_in([318, 50]), "item_in([318, 50])"),
        (~item_in([]) & (F.a == 1), "~item_in([]) & (F.a == 1)"),
        (everything() | (F.a == 1), "everything() | (F.a == 1)"),
    ],
)
def test_text_and_back(condition: Condition, text: str) -> None:
    assert str(condition) == repr(condition) == text
    assert eval(text, {"F": F, "everything": everything, "item_in": item_in, "datetime": datetime}) == condition


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
