"""The strings of a vocabulary are those whose keys the index holds."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.config import ItemFeature, Items
from builder.data.catalogue import read_catalogue
from builder.data.vocabularies import string_values
from client.hashing import UNKNOWN_KEY, string_key


@pytest.mark.parametrize(
    ("array", "feature", "expected"),
    [
        (pa.array(["a", None, " b"]), {"kind": "category"}, [" b", "a"]),
        (pa.array([[" a ", "b"], ["a", ""], None]), {"kind": "tags"}, ["a", "b"]),
        (pa.array(["b | a", "", None]), {"kind": "tags", "separator": "|"}, ["a", "b"]),
        (pa.nulls(3), {"kind": "tags", "separator": "|"}, []),
        (pa.array([[], None, []], pa.list_(pa.null())), {"kind": "tags"}, []),
        (pa.nulls(3), {"kind": "category"}, []),
    ],
)
def test_every_string_is_one_that_a_filter_finds(
    array: pa.Array, feature: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"id": [0, 1, 2], "x": array}), tmp_path / "items.parquet")
    items = Items(path=tmp_path / "items.parquet", id="id", features=(ItemFeature(name="x", **feature),))
    catalogue = read_catalogue(items)
    assert string_values(items, catalogue) == {"x": expected}
    (column,) = catalogue.columns
    keys = getattr(column, "keys").tolist()  # noqa: B009
    assert set(keys) - {UNKNOWN_KEY} == set(map(string_key, expected))
