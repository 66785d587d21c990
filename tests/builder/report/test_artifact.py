"""What is read from a version is what its data says, counted item by item."""

from __future__ import annotations

import datetime
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builder.errors import BuilderError
from builder.export.manifest import read_manifest
from builder.report.artifact import Artifact, Numbers, Terms, find_artifact, read_artifact
from builder.training.run import load
from tests.builder.report.runs import ITEMS, columns, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("shop")).parent


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    return read_artifact(folder / "repository" / "retrieval" / "1")


@pytest.mark.parametrize("name", ["maker", "words"])
def test_items_of_each_value(artifact: Artifact, name: str) -> None:
    values: list[Any] = columns()[name]
    each = [value if isinstance(value, list) else [] if value is None else [value] for value in values]
    expected = Counter(value for one in each for value in one)
    found = next(feature for feature in artifact.filters if feature.name == name)
    assert isinstance(found, Terms)
    assert dict(zip(found.values, found.items.tolist(), strict=True)) == dict(expected)
    assert found.items.tolist() == sorted(expected.values(), reverse=True)
    assert found.unknown == sum(not one for one in each)
    network = torch.jit.load(str(artifact.version / "model.pt"))
    stored = network.search.filters.term_bitmap
    assert (stored >= 0).any()  # both ways to store a term are counted
    assert (stored < 0).any()


def test_values_of_numbers_and_dates(artifact: Artifact) -> None:
    prices = [price for price in columns()["price"] if price is not None]
    days = [datetime.date.fromisoformat(str(day)) for day in columns()["released"]]
    seconds = [(day - datetime.date(1970, 1, 1)).days * 86_400.0 for day in days]
    for name, kind, expected in [("price", "number", prices), ("released", "date", seconds)]:
        found = next(feature for feature in artifact.filters if feature.name == name)
        assert isinstance(found, Numbers)
        assert found.kind == kind
        np.testing.assert_array_equal(found.values, sorted(expected))
        assert found.unknown == ITEMS - len(expected)


def test_clusters(artifact: Artifact) -> None:
    sizes, index = artifact.cluster_items, artifact.manifest.index
    assert sizes.sum() == ITEMS
    assert len(sizes) == index.clusters == 7
    assert (sizes.min(), np.median(sizes), sizes.max()) == index.cluster_items
    assert artifact.rows == sum(-(-size // 32) * 32 for size in sizes)


def test_integer_values_and_values_without_names_are_told_apart(artifact: Artifact, folder: Path) -> None:
    names = [feature.name for feature in artifact.filters]
    assert names == ["maker", "words", "price", "released"]  # the shelf is not for filters


def test_only_a_version_of_this_run_is_found(folder: Path) -> None:
    trained = load(folder / "run")
    repository, name = folder / "repository", trained.config.name
    found = find_artifact(repository, "retrieval", name, trained.figures)
    assert found is not None
    assert found.version == repository / "retrieval" / "1"
    assert find_artifact(repository, "retrieval", "another", trained.figures) is None
    assert find_artifact(repository, "retrieval", name, {**trained.figures, "seconds": 1e9}) is None
    assert find_artifact(repository, "films", name, trained.figures) is None
    assert find_artifact(folder / "nowhere", "retrieval", name, trained.figures) is None
    assert read_manifest(found.version).training == trained.figures


def test_a_damaged_version_is_told(folder: Path, tmp_path: Path) -> None:
    version = tmp_path / "retrieval" / "1"
    version.mkdir(parents=True)
    for path in (folder / "repository" / "retrieval" / "1").iterdir():
        (version / path.name).write_bytes(path.read_bytes())
    model = bytearray((version / "model.pt").read_bytes())
    model[2000] ^= 1
    (version / "model.pt").write_bytes(model)
    with pytest.raises(BuilderError, match="does not have the SHA-256"):
        read_artifact(version)
