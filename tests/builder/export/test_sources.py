"""What `builder export` can be given, and what it says of what it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builder.errors import BuilderError, ConfigError, DataError
from builder.export.artifact import CALIBRATION_QUERIES
from builder.export.sources import read_source
from tests.builder.artifacts import write_config, write_items


def test_a_bare_array_numbers_its_items(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(1500, 3)).astype(np.float32)
    np.save(tmp_path / "my vectors.v2.npy", vectors)
    source = read_source(tmp_path / "my vectors.v2.npy")
    assert source.name == "my-vectors-v2"
    assert source.catalogue.ids.tolist() == list(range(1500))
    assert (source.dims, source.tower, source.user_features, source.history_length) == (3, None, (), 0)
    assert source.queries.shape == (CALIBRATION_QUERIES, 3)
    assert source.queries_from == "item vectors"
    chosen = {tuple(row) for row in source.queries.tolist()}
    assert len(chosen) == CALIBRATION_QUERIES
    assert chosen <= {tuple(row) for row in vectors.tolist()}


def test_samples_measure_recall_where_they_are_given(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).normal(size=(9, 3))
    np.save(tmp_path / "samples.npy", samples)
    config = write_config(tmp_path, np.eye(3), embeddings="path: vectors.npy, samples: samples.npy")
    source = read_source(config)
    np.testing.assert_array_equal(source.queries.numpy(), samples.astype(np.float32))
    assert (source.name, source.queries_from) == ("test", "samples.npy")


def test_the_strings_of_item_features_are_kept_for_people(tmp_path: Path) -> None:
    write_items(tmp_path, {"id": [2, 1], "colour": ["red", None], "size": [4, 5]})
    features = "[{name: colour, kind: category}, {name: size, kind: category}]"
    data = f"data: {{items: {{path: items.parquet, id: id, features: {features}}}}}\n"
    source = read_source(write_config(tmp_path, np.eye(2), data))
    assert source.vocabularies == {"colour": ["red"]}
    assert source.catalogue.ids.tolist() == [1, 2]
    np.testing.assert_array_equal(source.vectors[:], [[0, 1], [1, 0]])  # in the order of the catalogue


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.yaml", None, BuilderError, "missing.yaml: no such file or folder\n  Give a run folder"),
        ("missing.npy", None, BuilderError, "missing.npy: no such file or folder"),
        ("vectors.txt", b"1 2 3\n", ConfigError, "vectors.txt: got '1 2 3', expected keys with values"),
        ("vectors.NPY", b"\x93NUMPY\xff", ConfigError, "vectors.NPY: is not UTF-8"),
        ("a.yaml", b"name: x\nembedings: {path: v.npy}\n", ConfigError, "Did you mean 'embeddings'"),
        ("a.yaml", b"name: x\nembeddings: {path: v.npy}\nindex: {probes: 9, clusters: 3}", ConfigError, "probes 9"),
        ("a.yaml", b"name: x\nembeddings: {path: v.npy}\nindex: {results: 0}", ConfigError, "index.results: got 0"),
        ("a.yaml", b"name: x\nembeddings: {path: v.npy}\n", DataError, "v.npy: no such file"),
    ],
)
def test_a_wrong_source_is_named(
    tmp_path: Path, name: str, content: bytes | None, error: type[BuilderError], message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        read_source(tmp_path / name)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
