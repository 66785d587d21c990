from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.config import ItemFeature, Items
from builder.data.catalogue import Catalogue, item_table, read_catalogue
from builder.data.columns import CategoryColumn, NumberColumn, TagsColumn, take
from builder.errors import DataError
from client.hashing import UNKNOWN_KEY, string_key
from client.schema import Feature


def read(folder: Path, columns: dict[str, Any], *features: ItemFeature) -> Catalogue:
    pq.write_table(pa.table(columns), folder / "items.parquet")
    return read_catalogue(Items(path=folder / "items.parquet", id="id", features=features))


def test_all_kinds_in_ascending_order_of_ids(tmp_path: Path) -> None:
    catalogue = read(
        tmp_path,
        {
            "id": [30, 10, 20],
            "colour": ["red", "blue", None],
            "genres": [["x"], [], ["y", "x"]],
            "price": [3.0, 1.0, None],
            "day": ["1970-01-04", None, "1970-01-03"],
        },
        ItemFeature(name="colour", kind="category", filter=True),
        ItemFeature(name="tags", kind="tags", column="genres"),
        ItemFeature(name="price", kind="number"),
        ItemFeature(name="day", kind="date", filter=True),
    )
    assert catalogue.ids.tolist() == [10, 20, 30]
    assert catalogue.rows.tolist() == [1, 2, 0]
    assert catalogue.features == (
        Feature("colour", "category", "string", True),
        Feature("tags", "tags", "string"),
        Feature("price", "number"),
        Feature("day", "date", None, True),
    )
    colour, tags, price, day = catalogue.columns
    assert isinstance(colour, CategoryColumn)
    assert colour.keys.tolist() == [string_key("blue"), UNKNOWN_KEY, string_key("red")]
    assert isinstance(tags, TagsColumn)
    assert tags.offsets.tolist() == [0, 0, 2, 3]
    assert tags.keys.tolist() == [*sorted([string_key("x"), string_key("y")]), string_key("x")]
    assert isinstance(price, NumberColumn)
    np.testing.assert_array_equal(price.values, [1, np.nan, 3])
    assert isinstance(day, NumberColumn)
    np.testing.assert_array_equal(day.values, [np.nan, 2 * 86_400, 3 * 86_400])
    items = Items(path=tmp_path / "items.parquet", id="id")
    assert item_table(items, catalogue, ["colour"])["colour"].to_pylist() == ["blue", None, "red"]


def test_csv_tags_and_formats_stay_text(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,tags,year\n1,7,1999\n2,,2001\n")
    features = (
        ItemFeature(name="tags", kind="tags", separator="|"),
        ItemFeature(name="year", kind="date", format="%Y"),
    )
    tags, year = read_catalogue(Items(path=tmp_path / "items.csv", id="id", features=features)).columns
    assert isinstance(tags, TagsColumn)
    assert tags.keys.tolist() == [string_key("7")]
    assert isinstance(year, NumberColumn)
    assert year.values.tolist() == [915_148_800, 978_307_200]


def test_find() -> None:
    catalogue = Catalogue(np.array([3, 5, 9]), (), np.arange(3))
    assert catalogue.find(np.array([[9, 4], [3, 10], [-1, 5]])).tolist() == [[2, -1], [0, -1], [-1, 1]]


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no items"):
        read(tmp_path, {"id": pa.array([], pa.int64())})
    with pytest.raises(DataError, match=r"column 'id': item id 4 stands in rows 0 and 2 \(2 repeats in all\)"):
        read(tmp_path, {"id": [4, 1, 4, 4]})
    with pytest.raises(DataError, match="column 'colour': a category must be integers or strings, got double"):
        read(tmp_path, {"id": [1], "colour": [0.5]}, ItemFeature(name="colour", kind="category"))


@pytest.mark.parametrize("seed", range(3))
def test_take(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, 9)
    column = TagsColumn(Feature("t", "tags", "integer"), np.cumsum([0, *lengths]), np.arange(lengths.sum()))
    rows = rng.integers(0, 9, 5)
    taken = take(column, rows)
    for i, row in enumerate(rows):
        expected = column.keys[column.offsets[row] : column.offsets[row + 1]]
        assert taken.keys[taken.offsets[i] : taken.offsets[i + 1]].tolist() == expected.tolist()
