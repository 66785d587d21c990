"""The exact filter index: bitmaps, posting lists and cumulative number bitmaps (docs/operators.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.columns import CategoryColumn, Column, NumberColumn, TagsColumn
from builder.index.blocks import BLOCK, Layout, pack_mask
from client.hashing import UNKNOWN_KEY

NUMBER_BUCKETS = 32  # the cumulative bitmaps of a number then take 4 bytes a row, as a posting would


@dataclass(frozen=True)
class FilterIndex:
    """The tensors that `filter_rows` reads; shapes and meaning stand in docs/operators.md."""

    feature_terms: Tensor
    term_keys: Tensor
    term_bitmap: Tensor
    term_postings: Tensor
    postings: Tensor
    bitmaps: Tensor
    feature_number: Tensor
    number_values: Tensor
    number_rows: Tensor
    number_known: Tensor
    number_bitmaps: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def build_filters(
    columns: Sequence[Column], layout: Layout, on_step: Callable[[float], None] = lambda done: None
) -> FilterIndex:
    """Index the filter features. `columns` are in catalogue order, one for each, in the order of the schema."""
    terms = _TermWriter(layout.blocks)
    numbers: list[NDArray[np.float64]] = []
    feature_number = []
    for position, column in enumerate(columns):
        keys, rows = _key_row_pairs(column, layout.row_of_item)
        terms.add_feature(_unknown_rows(column, layout.row_of_item), keys, rows)
        if isinstance(column, NumberColumn):
            feature_number.append(len(numbers))
            numbers.append(_by_row(column.values, layout))
        else:
            feature_number.append(-1)
        on_step((position + 1) / len(columns))
    return FilterIndex(
        **terms.tensors(),
        feature_number=torch.tensor(feature_number, dtype=torch.int32),
        **_number_tensors(numbers, layout.blocks),
    )


class _TermWriter:
    """Collects terms feature by feature, each as a bitmap or a posting list, whichever is smaller."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._feature_terms = [0]
        self._keys: list[NDArray[np.int64]] = []
        self._bitmap_of_term: list[NDArray[np.int32]] = []
        self._posting_sizes: list[NDArray[np.int64]] = []
        self._postings: list[NDArray[np.int32]] = []
        self._bitmaps: list[NDArray[np.int32]] = []

    def add_feature(self, unknown: NDArray[np.int64], keys: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Add the terms of one feature: "no value", then every key ascending. `keys` and `rows` are parallel pairs."""
        order = np.lexsort((rows, keys))
        distinct, starts = np.unique(keys[order], return_index=True)
        by_term: NDArray[np.int32] = np.concatenate([np.sort(unknown), rows[order]]).astype(np.int32)
        bounds = np.concatenate([[0], starts + len(unknown), [len(by_term)]])
        sizes = np.diff(bounds)
        frequent = sizes > self._blocks  # a bitmap takes one word a block, a posting list one word a row
        bitmap_of_term = np.full(len(sizes), -1, dtype=np.int32)
        bitmap_of_term[frequent] = len(self._bitmaps) + np.arange(int(frequent.sum()), dtype=np.int32)
        for term in np.flatnonzero(frequent).tolist():
            bits = np.zeros(self._blocks * BLOCK, dtype=np.bool_)
            bits[by_term[bounds[term] : bounds[term + 1]]] = True
            self._bitmaps.append(pack_mask(bits))
        self._postings.append(by_term[np.repeat(~frequent, sizes)])
        self._posting_sizes.append(np.where(frequent, 0, sizes))
        self._bitmap_of_term.append(bitmap_of_term)
        self._keys.append(np.concatenate([np.zeros(1, dtype=np.int64), distinct]))
        self._feature_terms.append(self._feature_terms[-1] + len(sizes))

    def tensors(self) -> dict[str, Tensor]:
        sizes = _concatenate(self._posting_sizes, np.int64)
        bitmaps = np.stack(self._bitmaps) if self._bitmaps else np.empty((0, self._blocks), dtype=np.int32)
        return {
            "feature_terms": torch.tensor(self._feature_terms, dtype=torch.int32),
            "term_keys": torch.from_numpy(_concatenate(self._keys, np.int64)),
            "term_bitmap": torch.from_numpy(_concatenate(self._bitmap_of_term, np.int32)),
            "term_postings": torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)),
            "postings": torch.from_numpy(_concatenate(self._postings, np.int32)),
            "bitmaps": torch.from_numpy(bitmaps),
        }


def _key_row_pairs(column: Column, row_of_item: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if isinstance(column, CategoryColumn):
        known = column.keys != UNKNOWN_KEY
        return column.keys[known], row_of_item[known]
    if isinstance(column, TagsColumn):
        return column.keys, np.repeat(row_of_item, np.diff(column.offsets))
    return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)


def _unknown_rows(column: Column, row_of_item: NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(column, CategoryColumn):
        unknown = column.keys == UNKNOWN_KEY
    elif isinstance(column, TagsColumn):
        unknown = np.diff(column.offsets) == 0
    else:
        unknown = np.isnan(column.values)
    rows: NDArray[np.int64] = row_of_item[unknown]
    return rows


def _by_row(values: NDArray[np.float64], layout: Layout) -> NDArray[np.float64]:
    by_row = np.full(len(layout.item_of_row), np.nan)
    by_row[layout.row_of_item] = values
    return by_row


def _number_tensors(numbers: Sequence[NDArray[np.float64]], blocks: int) -> dict[str, Tensor]:
    rows = blocks * BLOCK
    sorted_rows = np.full((len(numbers), rows), -1, dtype=np.int32)
    known = np.zeros(len(numbers), dtype=np.int32)
    bitmaps = np.zeros((len(numbers), NUMBER_BUCKETS - 1, blocks), dtype=np.int32)
    for n, values in enumerate(numbers):
        order = np.argsort(values, kind="stable")  # NaN sorts last
        known[n] = np.count_nonzero(~np.isnan(values))
        sorted_rows[n, : known[n]] = order[: known[n]]
        step = -(-int(known[n]) // NUMBER_BUCKETS)
        bits = np.zeros(rows, dtype=np.bool_)
        for bucket in range(NUMBER_BUCKETS - 1):
            bits[order[min(bucket * step, known[n]) : min((bucket + 1) * step, known[n])]] = True
            bitmaps[n, bucket] = pack_mask(bits)
    return {
        "number_values": torch.from_numpy(np.stack(numbers) if numbers else np.empty((0, rows))),
        "number_rows": torch.from_numpy(sorted_rows),
        "number_known": torch.from_numpy(known),
        "number_bitmaps": torch.from_numpy(bitmaps),
    }


def _concatenate(parts: Sequence[NDArray[np.generic]], dtype: type[np.generic]) -> NDArray[np.generic]:
    whole: NDArray[np.generic] = np.concatenate([np.empty(0, dtype=dtype), *parts]).astype(dtype)
    return whole
