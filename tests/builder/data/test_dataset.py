from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.config import Config
from builder.data.columns import CategoryColumn, NumberColumn
from builder.data.dataset import Dataset, read_dataset
from builder.errors import ConfigError, DataError
from client.hashing import UNKNOWN_KEY, string_key
from client.schema import Feature

YAML = """\
name: test
data:
  items: {path: items.parquet, id: id}
  users: {path: users.parquet, id: id, features: [{name: age, kind: number}, {name: job, kind: category}]}
  interactions: {path: train.parquet, user: user, item: item, time: time}
"""
USERS = {"id": [3, 1, 9], "age": [30.0, None, 90.0], "job": ["x", "y", "z"]}
TRAIN = {"user": [1, 1, 1, 2, 3, 1], "item": [10, 20, 30, 10, 20, 10], "time": [1, 2, 3, 1, 1, 9]}


def read(
    folder: Path, text: str = YAML, users: dict[str, Any] | None = None, test: dict[str, Any] | None = None
) -> Dataset:
    pq.write_table(pa.table({"id": [30, 20, 10]}), folder / "items.parquet")
    pq.write_table(pa.table(users or USERS), folder / "users.parquet")
    pq.write_table(pa.table(TRAIN), folder / "train.parquet")
    if test is not None:
        pq.write_table(pa.table(test), folder / "test.parquet")
    path = folder / "retrieval.yaml"
    path.write_text(text)
    return read_dataset(Config.load(path))


def test_leave_last_out(tmp_path: Path) -> None:
    dataset = read(tmp_path)
    assert dataset.catalogue.ids.tolist() == [10, 20, 30]
    assert dataset.user_keys.tolist() == [1, 2, 3]
    assert dataset.user_features == (
        Feature("user_id", "category", "integer"),
        Feature("age", "number"),
        Feature("job", "category", "string"),
    )
    user_id, age, job = dataset.user_columns
    assert isinstance(user_id, CategoryColumn)
    assert user_id.keys.tolist() == [1, 2, 3]
    assert isinstance(age, NumberColumn)
    np.testing.assert_array_equal(age.values, [np.nan, np.nan, 30])
    assert isinstance(job, CategoryColumn)
    assert job.keys.tolist() == [string_key("y"), UNKNOWN_KEY, string_key("x")]
    assert dataset.train.items.tolist() == [0, 0, 1]
    assert dataset.test.targets.values.tolist() == [2]
    assert dataset.test.history.values.tolist() == [0, 1]
    assert dataset.validation.targets.values.tolist() == [1]
    assert dataset.notes == (
        "1 repeated interactions of one user and item in train.parquet: first kept",
        "1 users are not in users.parquet: their features are unknown",
    )


def test_fixed_file_with_users_of_its_own(tmp_path: Path) -> None:
    dataset = read(
        tmp_path,
        YAML + "split: {kind: file, test: test.parquet, validation_users: 1}\nnetwork: {user_id: false}\n",
        test={"user": [7, 2, 1], "item": [20, 10, 99], "time": [1, 1, 1]},
    )
    assert dataset.user_keys.tolist() == [1, 2, 3, 7]
    assert [feature.name for feature in dataset.user_features] == ["age", "job"]
    assert dataset.test.users.tolist() == [3]  # of user 2 the pair is known, item 99 is not
    assert dataset.test.history.lengths.tolist() == [0]
    assert dataset.validation.users.tolist() == [0]
    assert dataset.validation.targets.values.tolist() == [2]


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'id': one user stands in rows 0 and 2"):
        read(tmp_path, users={"id": [1, 2, 1], "age": [1, 2, 3], "job": ["x", "y", "z"]})
    with pytest.raises(DataError, match="user ids are strings, in the interactions integers"):
        read(tmp_path, users={"id": ["1"], "age": [1], "job": ["x"]})
    with pytest.raises(DataError, match="column 'age': a number feature needs numbers, got string"):
        read(tmp_path, users={"id": [1], "age": ["1"], "job": ["x"]})
    with pytest.raises(DataError, match=r"column 'age': row 1, -1e\+39, is beyond float32, which requests carry\n"):
        read(tmp_path, users={"id": [1, 2], "age": [3.4e38, -1e39], "job": ["x", "y"]})
    with pytest.raises(DataError, match="holds no users"):
        read(tmp_path, users={"id": pa.array([], pa.int64()), "age": pa.nulls(0), "job": pa.nulls(0)})
    with pytest.raises(DataError, match=r"test\.parquet: user ids are strings, in .*train\.parquet integers"):
        read(
            tmp_path,
            YAML + "split: {kind: file, test: test.parquet}\n",
            test={"user": ["1"], "item": [10], "time": [1]},
        )
    with pytest.raises(ConfigError, match="there is nothing to train on"):
        read(tmp_path, "name: x\nembeddings: {path: v.npy}\n")
