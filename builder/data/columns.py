"""Feature columns in the item order of a catalogue: readers write them; index, towers and forward columns read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from builder.data.lists import ranges
from client.schema import Feature


@dataclass(frozen=True)
class CategoryColumn:
    """One value an item. `keys` [N] int64 (`client.hashing.UNKNOWN_KEY` where the item has none)."""

    feature: Feature
    keys: NDArray[np.int64]


@dataclass(frozen=True)
class TagsColumn:
    """Any number of values an item, in CSR form, each item's keys ascending and distinct.

    `offsets` [N + 1] int64, `keys` [offsets[-1]] int64. An item without values is unknown.
    """

    feature: Feature
    offsets: NDArray[np.int64]
    keys: NDArray[np.int64]


@dataclass(frozen=True)
class NumberColumn:
    """Numbers and dates. `values` [N] float64, NaN where unknown; dates are seconds since 1970-01-01 UTC."""

    feature: Feature
    values: NDArray[np.float64]


Column = CategoryColumn | TagsColumn | NumberColumn
AnyColumn = TypeVar("AnyColumn", bound=Column)


def take(column: AnyColumn, rows: NDArray[np.int64]) -> AnyColumn:
    """The values at `rows` [M], in that order."""
    if isinstance(column, CategoryColumn):
        return replace(column, keys=column.keys[rows])
    if isinstance(column, NumberColumn):
        return replace(column, values=column.values[rows])
    flat, offsets = ranges(column.offsets[rows], column.offsets[rows + 1])
    return replace(column, offsets=offsets, keys=column.keys[flat])
