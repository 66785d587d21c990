import numpy as np
import pytest
import torch

from builder.index.kmeans import _repair_empty, assign, automatic_clusters, cluster_shapes, nearest, spherical_kmeans


def clustered(seed: int, clusters: int = 8, per_cluster: int = 200, dims: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(dims, dims)))[0][:clusters]  # orthogonal, so the truth is unambiguous
    labels = np.repeat(np.arange(clusters), per_cluster)
    return (centres[labels] + 0.05 * rng.normal(size=(len(labels), dims))).astype(np.float32), labels


def test_finds_separated_clusters() -> None:
    vectors, truth = clustered(seed=1)
    labels = assign(vectors, spherical_kmeans(vectors, 8, seed=3, epochs=20))
    purity = sum(np.bincount(truth[labels == c]).max() for c in np.unique(labels)) / len(truth)
    assert purity >= 0.85  # random starts may merge one pair and split another; a wrong update gives about 1/8


def test_improves_on_its_start() -> None:
    vectors, _ = clustered(seed=2)
    points = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)

    def mean_cosine(epochs: int) -> float:
        centroids = spherical_kmeans(vectors, 8, seed=5, epochs=epochs)
        return float((points @ centroids.T).amax(1).mean())

    assert mean_cosine(10) > mean_cosine(0) + 0.05


def test_same_seed_same_centroids_other_seed_others() -> None:
    vectors, _ = clustered(seed=4)
    first, again, other = (spherical_kmeans(vectors, 8, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_centroids_are_unit_and_steps_reach_one() -> None:
    vectors, _ = clustered(seed=5)
    done: list[float] = []
    centroids = spherical_kmeans(vectors * 1000, 8, seed=0, on_step=done.append)
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(8))
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_empty_clusters_are_repaired() -> None:
    # 9 in 10 rows are one point: most initial centroids coincide, and all but one of those start empty.
    vectors, _ = clustered(seed=6, per_cluster=20)
    vectors = np.concatenate([np.repeat(vectors[:1], 9 * len(vectors), axis=0), vectors])
    labels = assign(vectors, spherical_kmeans(vectors, 16, seed=1, epochs=20))
    assert len(np.unique(labels)) >= 12


def test_empty_clusters_move_onto_rows_far_from_their_centroid() -> None:
    points = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 0.0]]), dim=1
    )
    centroids = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    labels, counts = torch.zeros(5, dtype=torch.int64), torch.tensor([5, 0, 0])
    chosen = set()
    for seed in range(20):
        moved = centroids.clone()
        _repair_empty(moved, counts, points, labels, torch.Generator().manual_seed(seed))
        assert torch.equal(moved[0], centroids[0])
        chosen |= {tuple(row) for row in moved[1:].tolist()}
    assert chosen == {
        tuple(points[2].tolist()),
        tuple(points[3].tolist()),
    }  # the two that lie elsewhere, never the same


def test_more_rows_than_multinomial_takes_are_repaired() -> None:
    rows = 2**24 + 1  # torch.multinomial refuses more than 2^24
    points = torch.zeros(rows, 1)
    points[-1] = 1.0
    centroids = torch.tensor([[0.0], [0.0]])
    _repair_empty(centroids, torch.tensor([rows, 0]), points, torch.zeros(rows, dtype=torch.int64), torch.Generator())
    assert centroids.tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("magnitude", [1e-30, 1e19, 1e30])
def test_clusters_do_not_depend_on_the_magnitude(magnitude: float) -> None:
    vectors, _ = clustered(seed=8)
    centroids = spherical_kmeans(vectors, 8, seed=3)
    scaled = (vectors.astype(np.float64) * magnitude).astype(np.float32)
    assert np.array_equal(assign(scaled, spherical_kmeans(scaled, 8, seed=3)), assign(vectors, centroids))


@pytest.mark.parametrize("clusters", [0, 6])
def test_impossible_number_of_clusters(clusters: int) -> None:
    with pytest.raises(ValueError, match=f"clusters is {clusters}; expected 1 to the number of items, 5"):
        spherical_kmeans(np.ones((5, 3), dtype=np.float32), clusters, seed=0)


def test_as_many_clusters_as_rows_and_zero_rows() -> None:
    vectors = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32)
    centroids = spherical_kmeans(vectors, 3, seed=0)
    assert torch.isfinite(centroids).all()


def test_nearest_and_assign_agree_with_numpy_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    vectors, centroids = rng.normal(size=(1000, 8)).astype(np.float32), rng.normal(size=(13, 8)).astype(np.float32)
    expected = (vectors @ centroids.T).argmax(1)
    monkeypatch.setattr("builder.index.kmeans.ROWS_PER_CHUNK", 64)
    monkeypatch.setattr("builder.index.kmeans.SCORES_PER_CHUNK", 100)
    assert np.array_equal(nearest(torch.from_numpy(vectors), torch.from_numpy(centroids)).numpy(), expected)
    assert np.array_equal(assign(vectors, torch.from_numpy(centroids)), expected)


def test_cluster_shapes_are_means_and_deviations_in_one_direction() -> None:
    rng = np.random.default_rng(10)
    vectors = (rng.normal(size=(2000, 6)) + 5).astype(np.float32)
    labels = rng.choice([0, 1, 3], size=2000).astype(np.int32)
    vectors[labels == 3] = np.arange(6)
    means, spreads = cluster_shapes(vectors, labels, 4)
    assert means.dtype == spreads.dtype == torch.float32
    for cluster in (0, 1):
        rows = vectors[labels == cluster].astype(np.float64)
        np.testing.assert_allclose(means[cluster], rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(spreads[cluster], np.sqrt(rows.var(0).mean()), rtol=1e-6)
    assert means[2].tolist() == [0] * 6  # of no rows
    assert means[3].tolist() == list(range(6))
    assert spreads[2] == 0
    assert spreads[3] < 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e30, 3e38])
def test_cluster_shapes_of_any_magnitude(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.index.kmeans.ROWS_PER_CHUNK", 7)
    rows = np.random.default_rng(11).uniform(-1, 1, size=(50, 3))
    means, spreads = cluster_shapes((rows * scale).astype(np.float32), np.zeros(50, dtype=np.int32), 1)
    np.testing.assert_allclose(means[0].numpy() / scale, rows.mean(0), rtol=1e-5)
    assert float(spreads[0]) == pytest.approx(min(np.sqrt(rows.var(0).mean()) * scale, 1e30), rel=1e-5)


@pytest.mark.parametrize(("rows", "clusters"), [(1, 1), (127, 1), (1682, 26), (40_981, 405), (1_000_000, 2000)])
def test_automatic_clusters(rows: int, clusters: int) -> None:
    assert automatic_clusters(rows) == clusters
