"""The filter index is decoded as docs/operators.md describes it and compared with the columns it was built from."""

import numpy as np
import pytest

from builder.data.columns import CategoryColumn, NumberColumn, TagsColumn
from builder.index.blocks import Layout, arrange
from builder.index.filters import NUMBER_BUCKETS, FilterIndex, build_filters
from client.hashing import UNKNOWN_KEY
from client.schema import Feature

COLOUR = Feature("colour", "category", "integer", filter=True)
GENRES = Feature("genres", "tags", "integer", filter=True)
PRICE = Feature("price", "number", filter=True)


def bits_of(mask: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(mask.astype("<i4").view(np.uint8), bitorder="little")).tolist())


def term_rows(index: FilterIndex, term: int) -> set[int]:
    bitmap = int(index.term_bitmap[term])
    first, last = int(index.term_postings[term]), int(index.term_postings[term + 1])
    rows = index.postings[first:last].tolist()
    assert rows == sorted(set(rows))
    assert bitmap < 0 or not rows
    return bits_of(index.bitmaps[bitmap].numpy()) if bitmap >= 0 else set(rows)


def feature_rows(index: FilterIndex, feature: int) -> tuple[set[int], dict[int, set[int]]]:
    first, last = int(index.feature_terms[feature]), int(index.feature_terms[feature + 1])
    keys = index.term_keys[first + 1 : last].tolist()
    assert keys == sorted(set(keys))
    return term_rows(index, first), {key: term_rows(index, first + 1 + at) for at, key in enumerate(keys)}


def random_layout(rng: np.random.Generator, items: int) -> Layout:
    return arrange(rng.integers(0, 5, size=items).astype(np.int32), np.arange(items), clusters=6)


@pytest.mark.parametrize("items", [1, 40, 1000])
def test_categories_tags_and_their_unknowns(items: int) -> None:
    rng = np.random.default_rng(items)
    layout = random_layout(rng, items)
    # A key with most rows becomes a bitmap, the many rare ones posting lists.
    colours = np.where(rng.random(items) < 0.6, 7, rng.integers(-50, 50, size=items))
    colours[rng.random(items) < 0.1] = UNKNOWN_KEY
    tags = [sorted(set(rng.integers(0, 30, size=rng.integers(0, 4)).tolist())) for _ in range(items)]
    tags[0] = list(range(500))
    offsets = np.concatenate([[0], np.cumsum([len(tag) for tag in tags])])
    columns = [
        CategoryColumn(COLOUR, colours),
        TagsColumn(GENRES, offsets, np.array([key for tag in tags for key in tag], dtype=np.int64)),
    ]
    index = build_filters(columns, layout)

    unknown, by_key = feature_rows(index, 0)
    rows = layout.row_of_item
    assert unknown == {int(rows[i]) for i in range(items) if colours[i] == UNKNOWN_KEY}
    for key in set(colours.tolist()) - {UNKNOWN_KEY}:
        assert by_key[key] == {int(rows[i]) for i in range(items) if colours[i] == key}

    unknown, by_key = feature_rows(index, 1)
    assert unknown == {int(rows[i]) for i in range(items) if not tags[i]}
    assert set(by_key) == {key for tag in tags for key in tag}
    for key, found in by_key.items():
        assert found == {int(rows[i]) for i in range(items) if key in tags[i]}
    assert index.feature_number.tolist() == [-1, -1]
    if items == 1000:
        assert len(index.bitmaps) >= 1
        assert len(index.postings) > 0


@pytest.mark.parametrize("items", [1, 5, 31, 1000])
def test_numbers_sorted_rows_and_cumulative_bitmaps(items: int) -> None:
    rng = np.random.default_rng(items)
    layout = random_layout(rng, items)
    values = np.round(rng.normal(size=items), 1)  # many ties
    values[rng.random(items) < 0.2] = np.nan
    index = build_filters([NumberColumn(PRICE, values)], layout)
    known = int(index.number_known[0])
    rows = index.number_rows[0].tolist()
    by_row = index.number_values[0].numpy()
    expected = sorted((values[i], int(layout.row_of_item[i])) for i in range(items) if not np.isnan(values[i]))
    assert known == len(expected)
    assert rows[:known] == [row for _, row in expected]
    assert set(rows[known:]) <= {-1}
    assert [by_row[row] for row in rows[:known]] == [value for value, _ in expected]
    assert np.isnan(by_row).sum() == len(by_row) - known
    step = -(-known // NUMBER_BUCKETS)
    for bucket in range(NUMBER_BUCKETS - 1):
        assert bits_of(index.number_bitmaps[0, bucket].numpy()) == set(rows[: min((bucket + 1) * step, known)])
    assert index.feature_number.tolist() == [0]
    assert feature_rows(index, 0)[0] == {int(layout.row_of_item[i]) for i in range(items) if np.isnan(values[i])}


def test_no_filter_features_keep_every_rank() -> None:
    layout = arrange(np.zeros(3, dtype=np.int32), np.arange(3), clusters=1)
    index = build_filters([], layout)
    shapes = {name: tuple(tensor.shape) for name, tensor in index.tensors().items()}
    assert shapes == {
        "feature_terms": (1,),
        "term_keys": (0,),
        "term_bitmap": (0,),
        "term_postings": (1,),
        "postings": (0,),
        "bitmaps": (0, 1),
        "feature_number": (0,),
        "number_values": (0, 32),
        "number_rows": (0, 32),
        "number_known": (0,),
        "number_bitmaps": (0, NUMBER_BUCKETS - 1, 1),
    }


def test_a_posting_costs_at_most_four_bytes_a_value() -> None:
    rng = np.random.default_rng(3)
    layout = random_layout(rng, 20_000)
    keys = np.minimum(rng.zipf(1.3, size=20_000), 5000)
    index = build_filters([CategoryColumn(COLOUR, keys)], layout)
    lists = index.postings.numel() * 4 + index.bitmaps.numel() * 4
    assert lists <= 4 * 20_000
