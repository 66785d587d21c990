"""probe, scan, rescore and top_k against their references, on every instruction set, for equality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from builder import ops
from tests.kernels import reference
from tests.kernels.catalogue import centroid_index, item_index, lay_out, pack, unpack

pytestmark = pytest.mark.usefixtures("instruction_set")
DIMS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 128, 130]


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


class Items:
    """A random catalogue of vectors in clusters, with ids in another order than its rows."""

    def __init__(self, vectors: np.ndarray, clusters: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.clusters = clusters
        self.layout = lay_out(generator.integers(clusters, size=len(vectors)), clusters)
        self.tensors = item_index(vectors.astype(np.float32), generator.permutation(len(vectors)) + 1, self.layout)
        self.arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}

    def words(self, share: float, generator: np.random.Generator) -> Tensor:
        """A mask [NB] int32 of about that share of the items."""
        items = unpack(self.arrays["valid"]) & (generator.random(self.layout.rows) < share)
        return torch.from_numpy(pack(items))

    def scan(
        self, query: Tensor, words: Tensor, clusters: Tensor, probed: Tensor, candidates: Tensor, most: int
    ) -> tuple[Tensor, Tensor]:
        t = self.tensors
        return ops.scan(
            query,
            t["codes"],
            t["scales"],
            t["vectors"],
            t["ids"],
            t["cluster_blocks"],
            words,
            clusters,
            probed,
            candidates,
            most,
        )

    def check(
        self, query: np.ndarray, words: Tensor, taken: list[list[int]], candidates: list[int], most: int, note: str
    ) -> None:
        """Compare a batch with the reference."""
        clusters = torch.full((len(taken), self.clusters), -1, dtype=torch.int32)
        for b, numbers in enumerate(taken):
            clusters[b, : len(numbers)] = ints(numbers)
        probed = ints([len(numbers) for numbers in taken])
        queries = torch.from_numpy(query.astype(np.float32))
        rows, scanned = self.scan(queries, words, clusters, probed, ints(candidates), most)
        for b in range(len(query)):
            limit = min(max(candidates[b], 0), most)
            mask = words[b].numpy().view(np.uint32)
            expected, count = reference.scan(queries[b].numpy(), self.arrays, mask, taken[b], limit)
            assert rows[b].tolist() == expected + [-1] * (most - len(expected)), f"{note}, request {b}"
            assert scanned[b] == count, f"{note}, request {b}"


@pytest.mark.parametrize("dims", DIMS)
def test_scan_of_random_items(dims: int) -> None:
    generator = np.random.default_rng(dims)
    items = Items(generator.normal(size=(600, dims)), clusters=7, seed=dims)
    shares = [1.0, 0.3, 0.05, 0.01]
    words = torch.stack([items.words(share, generator) for share in shares])
    taken = [[6, 0, 3], [1, 2, 3, 4, 5, 6, 0], [5], list(range(7))]
    query = generator.normal(size=(4, dims))
    for candidates in ([10, 50, 3, 100], [0, -5, 10_000, 1]):
        items.check(query, words, taken, candidates, 100, f"seed {dims}")


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("query_scale", [1e-30, 1.0, 1e30])
def test_scan_at_extreme_scales(scale: float, query_scale: float) -> None:
    """The order must not suffer where products of both scales overflow or vanish in float32."""
    generator = np.random.default_rng(5)
    vectors = generator.normal(size=(300, 24))
    items = Items(vectors * scale, clusters=2, seed=5)
    words = items.tensors["valid"].repeat(1, 1)
    query = generator.normal(size=(1, 24))
    items.check(query * query_scale, words, [[0, 1]], [20], 20, f"scales {scale}, {query_scale}")
    rows, _ = items.scan(
        torch.from_numpy((query * query_scale).astype(np.float32)),
        words,
        ints([0, 1]).repeat(1, 1),
        ints([2]),
        ints([20]),
        20,
    )
    exact = np.zeros(items.layout.rows)
    exact[items.layout.row_of_item] = vectors @ query[0]
    best = set(np.argsort(-exact, kind="stable")[:20].tolist())
    assert len(best & set(rows[0].tolist())) >= 18  # int8 may swap a few at the cut


def test_scan_with_outliers_and_zero_rows() -> None:
    generator = np.random.default_rng(9)
    vectors = generator.normal(size=(200, 32))
    vectors[::7] = 0
    vectors[::5, 3] *= 1e4  # one component takes nearly the whole range of the codes
    items = Items(vectors, clusters=3, seed=9)
    query = generator.normal(size=(2, 32))
    query[1, 3] = 1e5
    words = torch.stack([items.words(0.9, generator), items.words(0.1, generator)])
    items.check(query, words, [[0, 1, 2], [2, 1, 0]], [30, 30], 40, "seed 9")


@pytest.mark.parametrize("most", [1, 5, 32, 64, 199, 200, 300])
def test_scan_ties_go_to_the_smaller_id(most: int) -> None:
    generator = np.random.default_rng(2)
    items = Items(np.ones((200, 8)), clusters=4, seed=2)
    words = torch.stack([items.words(1.0, generator), items.words(0.04, generator)])
    items.check(np.ones((2, 8)), words, [[3, 1, 0, 2]] * 2, [most] * 2, most, "all equal")
    items.check(-np.ones((2, 8)), words, [[3, 1, 0, 2]] * 2, [most] * 2, most, "all equal, negative")
    items.check(np.zeros((2, 8)), words, [[3, 1, 0, 2]] * 2, [most] * 2, most, "all zero")


def test_scan_of_one_item_and_of_empty_clusters() -> None:
    items = Items(np.array([[1.0, -2.0, 3.0]]), clusters=5, seed=0)
    valid = items.tensors["valid"].repeat(3, 1)
    valid[2] = 0
    items.check(np.ones((3, 3)), valid, [[0, 1, 2, 3, 4], [], [0, 1, 2, 3, 4]], [4, 4, 4], 4, "one item")


def test_scan_ignores_clusters_and_counts_that_cannot_be() -> None:
    generator = np.random.default_rng(1)
    items = Items(generator.normal(size=(100, 6)), clusters=3, seed=1)
    query = torch.from_numpy(generator.normal(size=(2, 6)).astype(np.float32))
    words = items.tensors["valid"].repeat(2, 1)
    clusters = torch.tensor([[99, -7, 1], [2**31 - 1, 1, -1]], dtype=torch.int32)
    rows, scanned = items.scan(query, words, clusters, ints([2**31 - 1, -4]), ints([5, 5]), 5)
    expected, count = reference.scan(query[0].numpy(), items.arrays, words[0].numpy().view(np.uint32), [1], 5)
    assert rows.tolist() == [expected, [-1] * 5]
    assert scanned.tolist() == [count, 0]


@pytest.mark.parametrize("component", [float("nan"), float("inf"), -float("inf")])
def test_a_query_that_is_not_finite_is_harmless(component: float) -> None:
    items = Items(np.random.default_rng(0).normal(size=(50, 4)), clusters=2, seed=0)
    query = np.array([[component, 1.0, 2.0, 3.0]])
    items.check(query, items.tensors["valid"].repeat(1, 1), [[0, 1]], [7], 7, "component counts as 0")


def test_more_dims_than_int8_sums_in_16_bits() -> None:
    """Codes at both ends of their range in every component: nothing may saturate."""
    dims = 4096
    vectors = np.ones((40, dims))
    vectors[1::2] *= -1
    vectors[2::4, ::2] *= -1
    items = Items(vectors, clusters=1, seed=0)
    query = np.stack([np.ones(dims), -np.ones(dims), np.where(np.arange(dims) % 2, 1, -1)])
    items.check(query, items.tensors["valid"].repeat(3, 1), [[0]] * 3, [40] * 3, 40, "codes +-127")


@pytest.mark.parametrize("clusters", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("dims", [3, 16, 70])
def test_probe(clusters: int, dims: int) -> None:
    generator = np.random.default_rng(clusters * 100 + dims)
    centroids = generator.normal(size=(clusters, dims)).astype(np.float32)
    centroids[clusters // 2 :] = centroids[clusters // 2]  # ties
    codes, scales = centroid_index(centroids)
    batch = 8
    query = torch.from_numpy(generator.normal(size=(batch, dims)).astype(np.float32))
    passing = torch.from_numpy(generator.integers(0, 50, (batch, clusters)).astype(np.int32))
    passing[:, ::3] = 0
    passing[5] = 0
    passing[6] = 2**31 - 1  # sums beyond int32
    probes = ints([1, 5, 0, -3, 2**31 - 1, 4, 7, 30])
    candidates = ints([1, 200, 40, 0, 0, 10, 2**31 - 1, 100_000])
    taken, probed = ops.probe(query, codes, scales, passing, probes, candidates)
    for b in range(batch):
        expected = reference.probe(
            query[b].numpy(),
            codes.numpy(),
            scales.numpy(),
            passing[b].numpy().astype(np.int64),
            int(probes[b]),
            int(candidates[b]),
        )
        assert taken[b].tolist() == expected + [-1] * (clusters - len(expected)), f"request {b}"
        assert probed[b] == len(expected), f"request {b}"


@pytest.mark.parametrize("dims", DIMS)
def test_rescore(dims: int) -> None:
    generator = np.random.default_rng(dims)
    items = Items(generator.normal(size=(70, dims)) * 10.0 ** generator.integers(-6, 6, (70, 1)), clusters=2, seed=dims)
    query = torch.from_numpy(generator.normal(size=(3, dims)).astype(np.float32))
    rows = torch.from_numpy(generator.integers(-1, items.layout.rows, (3, 50)).astype(np.int32))
    scores = ops.rescore(query, items.tensors["vectors"], items.tensors["scales"], rows)
    for b in range(3):
        expected = reference.rescore(
            query[b].numpy(), items.arrays["vectors"], items.arrays["scales"], rows[b].tolist()
        )
        np.testing.assert_array_equal(scores[b].numpy(), expected)


def test_rescore_of_halves_of_every_kind() -> None:
    """Every finite float16, subnormals included, converts exactly."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = np.resize(every[np.isfinite(every)], (64, 1024))
    scales = torch.ones(2, 32)
    query = np.zeros((1, 1024), dtype=np.float32)
    for component in (0, 500, 1023):
        query[:] = 0
        query[0, component] = 1
        scores = ops.rescore(torch.from_numpy(query), torch.from_numpy(every), scales, torch.arange(64).int()[None])
        np.testing.assert_array_equal(scores[0].numpy(), every[:, component].astype(np.float32))


def test_rescore_rows_outside_the_index_score_minus_infinity() -> None:
    scores = ops.rescore(
        torch.ones(1, 3), torch.ones(32, 3).half(), torch.ones(1, 32), ints([-1, 0, 31, 32, 2**31 - 1, -(2**31)])[None]
    )
    assert scores.tolist() == [[-np.inf, 3, 3, -np.inf, -np.inf, -np.inf]]


@pytest.mark.parametrize("seed", range(20))
def test_top_k(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.choice([0, 1, 5, 40]))
    scores = generator.choice([0.0, -0.0, 1.5, -2.0, np.inf, -np.inf, np.nan, 1e-45], (3, count)).astype(np.float32)
    ids = np.stack([generator.permutation(count) for _ in range(3)]).astype(np.int64)
    ids[generator.random((3, count)) < 0.3] = -1
    for k in (0, 1, 3, count, count + 4):
        positions = ops.top_k(torch.from_numpy(scores), torch.from_numpy(ids), k)
        expected = [reference.top_k(scores[b].tolist(), ids[b].tolist(), k) for b in range(3)]
        assert positions.tolist() == expected, f"seed {seed}, k {k}"


def test_empty_batches() -> None:
    items = Items(np.ones((3, 4)), clusters=1, seed=0)
    none = torch.zeros(0, dtype=torch.int32)
    words = torch.zeros((0, 1), dtype=torch.int32)
    rows, scanned = items.scan(torch.zeros(0, 4), words, torch.zeros((0, 1), dtype=torch.int32), none, none, 6)
    assert (rows.shape, scanned.shape) == ((0, 6), (0,))
    codes, scales = centroid_index(np.ones((1, 4), dtype=np.float32))
    clusters, probed = ops.probe(torch.zeros(0, 4), codes, scales, torch.zeros((0, 1), dtype=torch.int32), none, none)
    assert (clusters.shape, probed.shape) == ((0, 1), (0,))
    assert ops.top_k(torch.zeros(0, 4), torch.zeros((0, 4), dtype=torch.int64), 3).shape == (0, 3)


def test_an_index_without_rows() -> None:
    rows, scanned = ops.scan(
        torch.ones(1, 4),
        torch.zeros((0, 1, 32, 4), dtype=torch.int8),
        torch.zeros(0, 32),
        torch.zeros(0, 4).half(),
        torch.zeros(0, dtype=torch.int64),
        ints([0, 0]),
        torch.zeros((1, 0), dtype=torch.int32),
        ints([0])[None],
        ints([1]),
        ints([3]),
        3,
    )
    assert (rows.tolist(), scanned.tolist()) == ([[-1, -1, -1]], [0])
