"""Vectors trained elsewhere: aligned with the catalogue, or refused with file, item or row."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.config import Config
from builder.data.embeddings import read_embeddings, read_samples
from builder.errors import ConfigError, DataError
from tests.builder.artifacts import write_config, write_items

ITEMS = "data: {items: {path: items.parquet, id: sku}}\n"
NPY = "path: vectors.npy"
PARQUET = "path: vectors.parquet"


def read(path: Path) -> tuple[list[int], np.ndarray]:
    catalogue, vectors = read_embeddings(Config.load(path))
    return catalogue.ids.tolist(), vectors[:]


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_embeddings(Config.load(path))
    assert str(path.parent) in str(caught.value)


def parquet(folder: Path, ids: Any, vectors: Any, name: str = "sku") -> None:
    pq.write_table(pa.table({name: ids, "embedding": vectors}), folder / "vectors.parquet")


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_rows_of_an_array_belong_to_the_rows_of_the_table(tmp_path: Path, dtype: str) -> None:
    write_items(tmp_path, {"sku": [30, 10, 20]})
    ids, vectors = read(write_config(tmp_path, np.array([[3, 3], [1, 1], [2, 2]], dtype), ITEMS))
    assert ids == [10, 20, 30]
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[1, 1], [2, 2], [3, 3]])


def test_fortran_order_is_read_as_it_means(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    _, vectors = read(write_config(tmp_path, array))
    np.testing.assert_array_equal(vectors, [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 2)])
def test_parquet_vectors_find_their_items_by_id(tmp_path: Path, kind: pa.DataType) -> None:
    write_items(tmp_path, {"sku": [30, 10, 2**63 - 1]})
    parquet(tmp_path, [10, 2**63 - 1, 30], pa.array([[1.0, 1.5], [9.0, 9.5], [3.0, 3.5]], kind))
    config = write_config(tmp_path, np.eye(2), ITEMS, embeddings=PARQUET)
    ids, vectors = read(config)
    assert ids == [10, 30, 2**63 - 1]
    np.testing.assert_array_equal(vectors, [[1, 1.5], [3, 3.5], [9, 9.5]])


def test_parquet_vectors_without_a_table_are_the_catalogue(tmp_path: Path) -> None:
    parquet(tmp_path, [7, 3], [[1.0], [2.0]], name="key")
    ids, vectors = read(write_config(tmp_path, np.eye(2), embeddings=f"{PARQUET}, id: key"))
    assert ids == [3, 7]
    np.testing.assert_array_equal(vectors, [[2], [1]])
    with pytest.raises(ConfigError, match=r"embeddings\.id is missing"):
        read(write_config(tmp_path, np.eye(2), embeddings=PARQUET))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39, -1e300])
def test_a_component_that_is_no_float32_names_its_item(tmp_path: Path, bad: float) -> None:
    write_items(tmp_path, {"sku": [30, 10, 20]})
    vectors = np.ones((3, 4))
    vectors[2, 1] = bad
    refused(
        write_config(tmp_path, vectors, ITEMS), "vectors.npy: the vector of item 20 has a NaN or infinite component"
    )


def test_a_bad_item_in_a_later_chunk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.data.embeddings.ROWS_PER_CHUNK", 4)
    vectors = np.ones((11, 2), np.float32)
    vectors[9, 0] = np.nan
    refused(write_config(tmp_path, vectors), "the vector of item 9 ")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(4), r"got shape \(4,\) float64, expected \[items, dims\] floats"),
        (np.ones((2, 2, 2)), r"got shape \(2, 2, 2\)"),
        (np.ones((0, 4)), r"got shape \(0, 4\).*at least one of each"),
        (np.ones((4, 0)), r"got shape \(4, 0\)"),
        (np.ones((2, 2), np.int64), r"got shape \(2, 2\) int64, expected \[items, dims\] floats"),
        (np.ones((2, 2), np.complex64), r"got shape \(2, 2\) complex64"),
        (np.array([["a", "b"]]), r"got shape \(1, 2\) <U1"),
        (np.array([[1.0], None], object), r"cannot be read as a .npy array: .*\n.*numpy.save"),  # pickled
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(tmp_path: Path, array: Any, message: str) -> None:
    refused(write_config(tmp_path, array), message)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"0.1 0.2\n", b"\x80\x04]."])
def test_a_file_that_is_no_npy_is_refused(tmp_path: Path, content: bytes) -> None:
    config = write_config(tmp_path, np.eye(2))
    (tmp_path / "vectors.npy").write_bytes(content)
    refused(config, r"vectors.npy: cannot be read as a .npy array")


def test_damaged_arrays_are_refused_or_read_whatever_the_damage(tmp_path: Path) -> None:
    seed = 8
    rng = random.Random(seed)
    config = write_config(tmp_path, np.ones((3, 4), np.float32))
    path = tmp_path / "vectors.npy"
    good = path.read_bytes()
    refusals = 0
    for attempt in range(300):
        content = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(128)] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if rng.random() < 0.2 else content)
        try:
            read(config)
        except DataError as error:
            refusals += str(path) in str(error)
        except Exception as error:
            pytest.fail(f"seed {seed}, attempt {attempt}: {error!r}")
    assert refusals > 200, f"seed {seed}"


def test_the_number_of_vectors_is_that_of_the_items(tmp_path: Path) -> None:
    write_items(tmp_path, {"sku": [30, 10, 20]})
    refused(write_config(tmp_path, np.eye(2), ITEMS), "holds 2 vectors, the item table 3 items")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [1.0]], r"column 'embedding': row 1 has 1 components, row 0 has 2"),
        ([[1.0, 2.0], [1.0, 2.0, 3.0]], r"row 1 has 3 components, row 0 has 2"),
        ([[1.0], [2.0], [1.0, 2.0]], r"row 2 has 2 components, row 0 has 1"),
        ([[1.0, 2.0], None], r"column 'embedding': 1 items have no vector"),
        ([[1.0, None], [1.0, 2.0]], r"a vector has a missing component"),
        ([[], []], r"got list.* expected lists of floats|vectors have no components"),
        (pa.array([[], []], pa.list_(pa.float32())), "vectors have no components"),
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), "Expected all lists to be of size=2|1 items have"),
        ([[1, 2], [3, 4]], r"got list<.*int64>, expected lists of floats"),
        (["a", "b"], r"got string, expected lists of floats"),
        ([1.0, 2.0], r"got double, expected lists of floats"),
        ([[float("nan"), 1.0], [1.0, 1.0]], "the vector of item 1 has a NaN"),
    ],
)
def test_parquet_lists_that_are_no_vectors_are_refused(tmp_path: Path, vectors: Any, message: str) -> None:
    parquet(tmp_path, list(range(1, len(vectors) + 1)), vectors)
    refused(write_config(tmp_path, np.eye(2), embeddings=f"{PARQUET}, id: sku"), message)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 2], r"column 'sku'|item id 2 stands there twice \(1 repeats in all\)"),
        ([1, 2, 4], r"1 vectors are of items that are not in data.items, for example 4"),
        ([1, 2], r"1 items of data.items have no vector, for example 3"),
        ([1, 2, None], r"column 'sku': row 2 lacks an item id"),
        ([1, 2, -3], r"item id -3 in row 2 is negative"),
        (["1", "2", "3"], r"item ids must be integers, got string"),
        ([1.0, 2.0, 3.0], r"item ids must be integers, got double"),
        (pa.array([1, 2, 2**63], pa.uint64()), r"9223372036854775808 in row 2 is out of int64"),
        (pa.array([], pa.int64()), "holds no vectors"),
    ],
)
def test_ids_that_do_not_match_the_catalogue_are_refused(tmp_path: Path, ids: Any, message: str) -> None:
    write_items(tmp_path, {"sku": [3, 1, 2]})
    parquet(tmp_path, ids, pa.array([[1.0, 2.0]] * len(ids), pa.list_(pa.float32())))
    refused(write_config(tmp_path, np.eye(2), ITEMS, embeddings=PARQUET), message)


def test_repeated_ids_without_a_table_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path, [5, 4, 5, 5], [[1.0]] * 4)
    config = write_config(tmp_path, np.eye(2), embeddings=f"{PARQUET}, id: sku")
    refused(config, r"item id 5 stands there twice \(2 repeats in all\)")


def test_a_table_with_faults_of_its_own_is_refused(tmp_path: Path) -> None:
    write_items(tmp_path, {"sku": pa.array([], pa.int64())})
    refused(write_config(tmp_path, np.eye(2), ITEMS), "items.parquet: holds no items")
    write_items(tmp_path, {"sku": [1, 1]})
    refused(write_config(tmp_path, np.eye(2), ITEMS), r"item id 1 stands in rows 0 and 1")
    (tmp_path / "items.parquet").write_bytes(b"PAR1")
    refused(write_config(tmp_path, np.eye(2), ITEMS), "items.parquet: cannot be read as Parquet")


def test_missing_columns_are_named_with_the_nearest(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sku": [1], "embeddings": [[1.0]]}), tmp_path / "vectors.parquet")
    config = write_config(tmp_path, np.eye(2), embeddings=f"{PARQUET}, id: sku")
    refused(config, r"vectors.parquet: no column 'embedding'\n.*Did you mean 'embeddings'")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.ones((3, 4)), "holds vectors of 4 dims, the items have 2"),
        (np.array([[0, 1], [np.nan, 1]]), "row 1 has a NaN or infinite component"),
        (np.array([[0, 1], [0, 0], [1e300, 1]]), "row 2 has a NaN or infinite component, or one beyond float32"),
        (np.ones(2), r"got shape \(2,\)"),
    ],
)
def test_samples_that_cannot_be_queries_are_refused(tmp_path: Path, samples: np.ndarray, message: str) -> None:
    np.save(tmp_path / "samples.npy", samples)
    with pytest.raises(DataError, match=message) as caught:
        read_samples(tmp_path / "samples.npy", 2)
    assert str(tmp_path / "samples.npy") in str(caught.value)
