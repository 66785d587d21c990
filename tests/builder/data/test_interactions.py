from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.config import Interactions, Label
from builder.data.catalogue import Catalogue
from builder.data.interactions import Events, RawEvents, read_interactions, sort_events
from builder.errors import DataError
from client.hashing import string_key

CATALOGUE = Catalogue(np.array([10, 20, 30]), (), np.arange(3))


def read(folder: Path, columns: dict[str, Any], **settings: Any) -> RawEvents:
    path = folder / "events.parquet"
    pq.write_table(pa.table(columns), path)
    return read_interactions(Interactions(path=path, user="user", item="item", **settings), path, CATALOGUE)


def test_positives_of_known_items(tmp_path: Path) -> None:
    raw = read(
        tmp_path,
        {
            "user": ["a", "b", "a", "a", "c"],
            "item": [20, 30, 99, 10, 10],
            "rating": [5.0, 4.0, 5.0, 3.5, None],
            "when": [3, 2, 1, 0, 0],
        },
        time="when",
        label=Label(column="rating", at_least=4),
    )
    assert raw.users.tolist() == [string_key("a"), string_key("b")]
    assert raw.user_values == "string"
    assert raw.items.tolist() == [1, 2]
    assert raw.times is not None
    assert raw.times.tolist() == [3, 2]
    assert raw.notes == (
        "2 of 5 interactions of events.parquet are not positive: rating below 4 or missing",
        "1 interactions of events.parquet dropped: 1 items are not in the catalogue, for example 99",
    )


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no positive interaction with an item of the catalogue"):
        read(tmp_path, {"user": [1], "item": [11]})


def test_missing_ids(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'user': row 1 lacks a user id"):
        read(tmp_path, {"user": [1, None], "item": [10, 10]})
    with pytest.raises(DataError, match="column 'item': row 0 lacks an item id"):
        read(tmp_path, {"user": [1, 2], "item": [None, 10]})


def test_sorted_by_user_and_time_repeats_dropped() -> None:
    users = np.array([7, 5, 7, 7, 5, 7])
    items = np.array([0, 2, 1, 0, 2, 2], np.int32)
    times = np.array([5, 1, 4, 3, 0, 4])
    events, repeats = sort_events(RawEvents(users, "integer", items, times, ()), np.array([5, 6, 7]), 3)
    assert repeats == 2
    assert events.offsets.tolist() == [0, 1, 1, 4]
    assert events.items.tolist() == [2, 0, 1, 2]  # ties keep the order of the file
    assert events.times is not None
    assert events.times.tolist() == [0, 3, 4, 4]
    assert events.users.tolist() == [0, 2, 2, 2]
    untimed, _ = sort_events(RawEvents(users, "integer", items, None, ()), np.array([5, 6, 7]), 3)
    assert untimed.items.tolist() == [2, 0, 1, 2]
    assert untimed.times is None


def test_before_leaves_out_what_came_at_the_same_time() -> None:
    events = Events(np.array([0, 4, 4, 6]), np.arange(6, dtype=np.int32), np.array([1, 2, 2, 3, 3, 3]))
    assert events.before().tolist() == [0, 1, 1, 3, 4, 4]
    with pytest.raises(ValueError, match="have no past"):
        Events(np.array([0, 1]), np.zeros(1, np.int32), None).before()


def test_keep() -> None:
    events = Events(np.array([0, 2, 3]), np.array([4, 5, 6], np.int32), np.array([1, 2, 3]))
    kept = events.keep(np.array([False, True, True]))
    assert kept.offsets.tolist() == [0, 1, 2]
    assert kept.items.tolist() == [5, 6]
    assert kept.times is not None
    assert kept.times.tolist() == [2, 3]
