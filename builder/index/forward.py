"""Forward columns: the feature values of a row, for whatever reads items rather than finds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.columns import CategoryColumn, Column, TagsColumn
from builder.index.blocks import Layout
from client.hashing import UNKNOWN_KEY


def forward_columns(columns: Sequence[Column], layout: Layout) -> dict[str, Tensor]:
    """Return the tensors of every column by row, named after the feature.

    category: `NAME.keys [V] int64` ascending, `NAME.codes [R] int32`: position of the row's key plus one, 0 for none.
    tags: `NAME.keys`, `NAME.offsets [R + 1] int32`, `NAME.codes [offsets[R]] int32`.
    number, date: `NAME.values [R] float64`, NaN for none. Padding rows have no values.
    """
    tensors: dict[str, Tensor] = {}
    for column in columns:
        name = column.feature.name
        if isinstance(column, CategoryColumn):
            keys = np.unique(column.keys[column.keys != UNKNOWN_KEY])
            codes = _by_row(_codes(column.keys, keys), layout, 0)
            tensors |= {f"{name}.keys": torch.from_numpy(keys), f"{name}.codes": torch.from_numpy(codes)}
        elif isinstance(column, TagsColumn):
            keys = np.unique(column.keys)
            offsets, codes = _tags_by_row(column, _codes(column.keys, keys), layout)
            tensors |= {
                f"{name}.keys": torch.from_numpy(keys),
                f"{name}.offsets": torch.from_numpy(offsets),
                f"{name}.codes": torch.from_numpy(codes),
            }
        else:
            tensors[f"{name}.values"] = torch.from_numpy(_by_row(column.values, layout, np.nan))
    return tensors


def _codes(values: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.where(values == UNKNOWN_KEY, 0, np.searchsorted(keys, values) + 1).astype(np.int32)


def _by_row(values: NDArray[np.generic], layout: Layout, missing: float) -> NDArray[np.generic]:
    by_row = np.full(len(layout.item_of_row), missing, dtype=values.dtype)
    by_row[layout.row_of_item] = values
    return by_row


def _tags_by_row(
    column: TagsColumn, codes: NDArray[np.int32], layout: Layout
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    sizes = _by_row(np.diff(column.offsets), layout, 0)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    rows = np.repeat(layout.row_of_item, np.diff(column.offsets))
    return offsets, codes[np.argsort(rows, kind="stable")]
