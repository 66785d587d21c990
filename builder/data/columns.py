"""Feature columns in the item order of a catalogue: readers write them; index, towers and forward columns read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
