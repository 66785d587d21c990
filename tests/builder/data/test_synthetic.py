from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from builder.config import Config
from builder.data.dataset import read_dataset
from builder.data.synthetic import synthetic, synthetic_vectors


def test_readable_and_repeatable(tmp_path: Path) -> None:
    dataset = read_dataset(Config.load(synthetic(tmp_path / "a", users=200, items=500, seed=3)))
    synthetic(tmp_path / "b", users=200, items=500, seed=3)
    for name in ("items", "users", "interactions"):
        assert pq.read_table(tmp_path / "a" / f"{name}.parquet") == pq.read_table(tmp_path / "b" / f"{name}.parquet")
    assert (len(dataset.catalogue), len(dataset.user_keys)) == (500, 200)
    assert [feature.kind for feature in dataset.catalogue.features] == ["category", "tags", "number", "date"]
    assert [feature.name for feature in dataset.user_features] == ["user_id", "age", "country"]
    times = dataset.train.times
    assert times is not None
    same_user = np.diff(dataset.train.users) == 0
    assert (np.diff(times)[same_user] > 0).all()


def test_popularity_is_skewed(tmp_path: Path) -> None:
    synthetic(tmp_path, users=2000, items=2000, seed=0)
    events = pq.read_table(tmp_path / "interactions.parquet")
    counts = np.sort(np.bincount((events["item_id"].to_numpy() - 10_000) // 3, minlength=2000))[::-1]
    assert counts[:200].sum() > 0.4 * counts.sum()  # a tenth of the items, not a tenth of the interactions


@pytest.mark.parametrize(("count", "dims"), [(1000, 32), (70_000, 8)])
def test_vectors(count: int, dims: int) -> None:
    vectors, queries = synthetic_vectors(count, dims, seed=1, queries=50)
    assert vectors.shape == (count, dims)
    assert queries.shape == (50, dims)
    assert vectors.dtype == queries.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert 0.9 < lengths.mean() < 1.1
    again, _ = synthetic_vectors(count, dims, seed=1, queries=50)
    np.testing.assert_array_equal(vectors, again)
    singular = np.linalg.svd(vectors[:5000], compute_uv=False) ** 2
    assert singular[:20].sum() > 0.9 * singular.sum()  # the intrinsic dimension
