"""The items: their ids and feature columns, in ascending order of ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.config import ItemFeature, Items
from builder.data import values
from builder.data.columns import CategoryColumn, Column, NumberColumn, TagsColumn, take
from builder.data.tables import read_table
from builder.errors import DataError
from client.schema import Feature


@dataclass(frozen=True)
class Catalogue:
    """`ids` [N] int64 ascending and distinct; `columns` in the order of the schema, all N long.

    `rows` [N] int64: the row of each item in the table it was read from (for display columns and vectors).
    """

    ids: NDArray[np.int64]
    columns: tuple[Column, ...]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def features(self) -> tuple[Feature, ...]:
        return tuple(column.feature for column in self.columns)

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of `ids` (any shape), -1 for ids that are not in the catalogue."""
        positions = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[positions] == ids, positions, -1)


def read_catalogue(items: Items) -> Catalogue:
    """Read the item table. Raises DataError: unreadable, empty, ids that cannot be, values of the wrong type."""
    tags = [feature.source for feature in items.features if feature.separator is not None]
    dates = [feature.source for feature in items.features if feature.format is not None]
    table = read_table(items.path, [items.id, *(feature.source for feature in items.features)], text=[*tags, *dates])
    where = f"{items.path}, column {items.id!r}"
    if not len(table):
        raise DataError("holds no items", where=str(items.path))
    ids = values.item_ids(values.column(table, items.id), where)
    rows = np.argsort(ids, kind="stable")
    ids = ids[rows]
    same = np.flatnonzero(np.diff(ids) == 0)
    if len(same):
        one, other = rows[same[0]], rows[same[0] + 1]
        raise DataError(
            f"item id {ids[same[0]]} stands in rows {one} and {other} ({len(same):,} repeats in all)", where=where
        )
    columns = tuple(
        take(_column(values.column(table, feature.source), feature, items), rows) for feature in items.features
    )
    return Catalogue(ids, columns, rows)


def item_table(items: Items, catalogue: Catalogue, columns: list[str]) -> pa.Table:
    """Columns of the item table as they are in the file (titles, tags as text), in the order of the catalogue."""
    return read_table(items.path, columns).take(pa.array(catalogue.rows))


def _column(array: pa.Array, feature: ItemFeature, items: Items) -> Column:
    where = f"{items.path}, column {feature.source!r}"
    if feature.kind == "category":
        found = values.category_keys(array, where)
        return CategoryColumn(Feature(feature.name, feature.kind, found.values, feature.filter), found.keys)
    if feature.kind == "tags":
        offsets, tags = values.tag_keys(array, feature.separator, where)
        return TagsColumn(Feature(feature.name, feature.kind, tags.values, feature.filter), offsets, tags.keys)
    is_number = feature.kind == "number"
    known = values.numbers(array, where) if is_number else values.seconds(array, feature.format, where)
    return NumberColumn(Feature(feature.name, feature.kind, None, feature.filter), known)
