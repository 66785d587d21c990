"""Random conditions on the catalogue of _stress.py: all kinds, nested, of values that it has, lacks or cannot have."""

from __future__ import annotations

import math
import random
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
from _stress import CODES, COLOURS, GENRES, MARKS, PRICES, YEARS

from client import Condition
from client.filters import AllOf, And, AnyOf, Not, Or, Range, Unknown, everything, item_in
from client.filters.compiler import MAX_DEPTH

KEYS: dict[str, list[Any]] = {
    "colour": [*COLOURS, "none has this", "", "Red", "re\u0301d", "\x00"],
    "code": [*CODES, 2, -(2**62), 10**18],
    "genres": [*GENRES, "drama", "", "ελληνικά"],
    "marks": [*MARKS, 4, -(2**63) + 1, 2**63 - 1],
    "ünïcode": [*COLOURS, "u\u0308nïcode"],
}
EXTREMES = [float("inf"), float("-inf"), -0.0, 5e-324, -(2**63), 2**64, 10**300, 1e308, 2**53 + 1, True]
INSTANTS: list[Any] = ["0001-01-01", "9999-12-31T23:59:59", date(1970, 1, 1), np.datetime64("1999-12-31T23:59:59")]


def values_of(items: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Values of each filter feature to test for: those of the catalogue, neighbours of them, and others."""
    prices = [item["price"] for item in items[:40]]
    dates = [datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=item["released"])
             for item in items[:60] if item["released"] is not None]  # fmt: skip
    return {
        **KEYS,
        "year": [*YEARS, 1949, 2021, 1980.5, *EXTREMES],
        "price": [*PRICES, *EXTREMES, *prices, *(math.nextafter(price, math.inf) for price in prices)],
        "released": [*INSTANTS, *dates, *(at.isoformat() for at in dates[:20]), *(at.date() for at in dates[:20])],
        "title_id": [*(item["sku"] for item in items), -1, 2**62],
    }


def random_condition(rng: random.Random, values: dict[str, list[Any]], depth: int) -> Condition:
    if depth and rng.random() < 0.75:
        kind = rng.choice((And, Or, Not))
        if kind is Not:
            return Not(random_condition(rng, values, depth - 1))
        parts = rng.choice((0, 1, 2, 2, 2, 3, 4))
        return kind(tuple(random_condition(rng, values, depth - 1) for _ in range(parts)))
    return leaf(rng, values)


def leaf(rng: random.Random, values: dict[str, list[Any]]) -> Condition:
    name = rng.choice(list(values))
    if rng.random() < 0.1:
        return Unknown(name)
    if rng.random() < 0.02:
        return everything()
    if rng.random() < 0.06:
        known = rng.choices(values["title_id"][:-2], k=rng.choice((0, 1, 30)))
        return item_in([*known, rng.randrange(2**63)])

    def several() -> tuple[Any, ...]:
        return tuple(rng.choices(values[name], k=rng.choice((0, 1, 1, 2, 3, 8, 40))))

    if name in ("year", "price", "released"):
        if rng.random() < 0.2:
            return AnyOf(name, several())
        low, high = (None if rng.random() < 0.3 else rng.choice(values[name]) for _ in range(2))
        return Range(name, low, high, low_open=rng.random() < 0.5, high_open=rng.random() < 0.5)
    if rng.random() < 0.3:
        return AllOf(name, several()[:3])
    return AnyOf(name, several())


def deepest(rng: random.Random, values: dict[str, list[Any]]) -> Condition:
    """As deep as the client sends: a connective a level, alternating so that text does not flatten it.

    The last level is left to the leaf: as text a range between two open ends is two conditions.
    """
    condition = leaf(rng, values)
    for level in range(MAX_DEPTH - 2):
        kind = (And, Or)[level % 2]
        condition = Not(condition) if level % 5 == 4 else kind((condition, leaf(rng, values)))
    return condition
