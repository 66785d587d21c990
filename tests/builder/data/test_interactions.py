from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.condition import parse_condition
from builder.config import Interactions
from builder.data.catalogue import Catalogue
from builder.data.interactions import Events, RawEvents, read_interactions, sort_events
from builder.errors import DataError
from client.hashing import string_key

CATALOGUE = Catalogue(np.array([10, 20, 30]), (), np.arange(3))


def read(folder: Path, columns: dict[str, Any], tasks: dict[str, Any] | None = None, **settings: Any) -> RawEvents:
    path = folder / "events.parquet"
    pq.write_table(pa.table(columns), path)
    conditions = {name: parse_condition(condition) for name, condition in (tasks or {"score": True}).items()}
    config = Interactions(path=path, user="user", item="item", **settings)
    return read_interactions(config, path, CATALOGUE, conditions)


def test_positives_of_known_items(tmp_path: Path) -> None:
    raw = read(
        tmp_path,
        {
            "user": ["a", "b", "a", "a", "c"],
            "item": [20, 30, 99, 10, 10],
            "rating": [5.0, 4.0, 5.0, 3.5, None],
            "when": [3, 2, 1, 0, 0],
        },
        {"like": "rating >= 4"},
        time="when",
    )
    assert raw.users.tolist() == [string_key("a"), string_key("b")]
    assert raw.user_values == "string"
    assert raw.items.tolist() == [1, 2]
    assert raw.times is not None
    assert raw.times.tolist() == [3, 2]
    assert raw.labels.tolist() == [[True], [True]]
    assert raw.notes == (
        "2 of 5 interactions of events.parquet are positive for no task (rating >= 4)",
        "1 interactions of events.parquet dropped: 1 items are not in the catalogue, for example 99",
    )


def test_labels_of_several_tasks(tmp_path: Path) -> None:
    columns = {
        "user": [1, 1, 2, 2, 3],
        "item": [10, 20, 30, 10, 99],
        "rating": [5, 2, 1, None, 5],
        "seconds": [10.0, 31.0, 30.0, 90.0, 99.0],
    }
    raw = read(tmp_path, columns, {"like": "rating >= 4", "long_view": "seconds > 30"})
    assert raw.users.tolist() == [1, 1, 2]  # (2, 30) is positive for neither, item 99 is not in the catalogue
    assert raw.labels.tolist() == [[True, False], [False, True], [False, True]]
    raw = read(tmp_path, columns, {"like": "rating >= 4", "watch": True})
    assert raw.items.tolist() == [0, 1, 2, 0]
    assert raw.labels.tolist() == [[True, True], [False, True], [False, True], [False, True]]


def test_task_without_a_positive(tmp_path: Path) -> None:
    columns = {"user": [1, 2], "item": [10, 99], "rating": [2, 5]}
    with pytest.raises(DataError, match=r"is positive for task 'like' \(rating >= 4\)\n  Correct its condition"):
        read(tmp_path, columns, {"like": "rating >= 4", "watch": True})


def test_unknown_label_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stars"):
        read(tmp_path, {"user": [1], "item": [10]}, {"like": "stars >= 4"})


def test_labels_that_are_no_numbers(tmp_path: Path) -> None:
    columns = {"user": [1, 2], "item": [10, 20], "rating": ["5", "good"]}
    with pytest.raises(DataError, match=r"column 'rating': task 'like' \(rating >= 4\) needs numbers, got string"):
        read(tmp_path, columns, {"like": "rating >= 4", "watch": True})


def test_constant_labels(tmp_path: Path) -> None:
    """All positive is a task like `true`; all missing is positive for none."""
    columns: dict[str, Any] = {"user": [1, 2], "item": [10, 20], "rating": [5, 5], "empty": [None, None]}
    assert read(tmp_path, columns, {"like": "rating >= 4"}).labels.tolist() == [[True], [True]]
    with pytest.raises(DataError, match=r"no positive interaction with an item of the catalogue"):
        read(tmp_path, columns, {"like": "rating < 4"})
    with pytest.raises(DataError, match=r"positive for task 'other' \(empty > 0\)"):
        read(tmp_path, columns, {"like": "rating >= 4", "other": "empty > 0"})


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
    labels = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [1, 0], [0, 1]], dtype=bool)
    raw = RawEvents(users, "integer", items, times, labels, ())
    events, repeats = sort_events(raw, np.array([5, 6, 7]), 3)
    assert repeats == 2
    assert events.offsets.tolist() == [0, 1, 1, 4]
    assert events.items.tolist() == [2, 0, 1, 2]  # ties keep the order of the file
    assert events.times is not None
    assert events.times.tolist() == [0, 3, 4, 4]
    assert events.users.tolist() == [0, 2, 2, 2]
    # User 7 took item 0 twice, once for each task.
    assert events.labels.tolist() == [[True, False], [True, True], [True, False], [False, True]]
    untimed, _ = sort_events(RawEvents(users, "integer", items, None, labels, ()), np.array([5, 6, 7]), 3)
    assert untimed.items.tolist() == [2, 0, 1, 2]
    assert untimed.times is None


def test_before_leaves_out_what_came_at_the_same_time() -> None:
    labels = np.ones((6, 1), dtype=bool)
    events = Events(np.array([0, 4, 4, 6]), np.arange(6, dtype=np.int32), np.array([1, 2, 2, 3, 3, 3]), labels)
    assert events.before().tolist() == [0, 1, 1, 3, 4, 4]
    with pytest.raises(ValueError, match="have no past"):
        Events(np.array([0, 1]), np.zeros(1, np.int32), None, labels[:1]).before()


def test_keep() -> None:
    labels = np.array([[True, False], [False, True], [True, True]])
    events = Events(np.array([0, 2, 3]), np.array([4, 5, 6], np.int32), np.array([1, 2, 3]), labels)
    kept = events.keep(np.array([False, True, True]))
    assert kept.offsets.tolist() == [0, 1, 2]
    assert kept.items.tolist() == [5, 6]
    assert kept.times is not None
    assert kept.times.tolist() == [2, 3]
    assert kept.labels.tolist() == [[False, True], [True, True]]
