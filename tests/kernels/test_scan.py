"""What the scan ranks, through the whole search: int8 scores, sparse blocks, ties, the best few of many."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from builder import ops
from tests.kernels import reference
from tests.kernels.catalogue import Items, lay_out, marked, marks
from tests.kernels.reference import Limits, Request

pytestmark = pytest.mark.usefixtures("instruction_set")
EVERYTHING = marked(0)  # where every item has the first mark


NO_FILTER = [0, 0]


def everything(items: int) -> list[reference.Column]:
    """One feature for the filter EVERYTHING."""
    return marks(np.ones(items, dtype=np.bool_))


@cache
def scaled_items(scale: float, code_dims: int) -> tuple[Items, np.ndarray, list[int]]:
    """Items of that magnitude, a query of magnitude 1, and the ids of its exact best."""
    generator = np.random.default_rng(5)
    vectors, query = generator.normal(size=(300, 24)), generator.normal(size=24)
    items = Items(vectors * scale, everything(300), clusters=2, seed=5, code_dims=code_dims)
    return items, query, items.ids[np.argsort(-(vectors @ query))[:20]].tolist()


@pytest.mark.parametrize("code_dims", [0, 24, 9])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("query_scale", [1e-30, 1.0, 1e30])
def test_extreme_scales(scale: float, query_scale: float, code_dims: int) -> None:
    """The order must not suffer where products of both scales overflow or vanish in float32."""
    items, query, best = scaled_items(scale, code_dims)
    requests = [Request((query * query_scale).astype(np.float32), program) for program in (NO_FILTER, EVERYTHING)]
    found = items.check(requests, Limits(probes=2, candidates=100, max_candidates=100), "seed 5")
    for answer in found:
        missing = set(best) - set(answer.ids)
        # Rounding swaps a few at the cut of all 24 dims; 9 of them tell less.
        assert len(missing) <= (0 if code_dims != 9 else 5)


def test_rows_and_queries_next_to_the_largest_float() -> None:
    """Sums that overflow: infinite scores tie, and one that is inf - inf counts as -inf, as it does in `select`."""
    generator = np.random.default_rng(8)
    vectors = generator.choice([-3e38, 3e38, 1e38, 1.0], (80, 5))
    items = Items(vectors, clusters=2, seed=8)
    queries = [*generator.choice([-3e38, 3e38, 1.0], (6, 5)).astype(np.float32), np.full(5, 1e-3, np.float32)]
    limits = Limits(probes=2, candidates=30, max_candidates=30)
    rows, _, scores, _, _ = (t.numpy() for t in ops.search(**items.arguments([Request(q) for q in queries], limits)))
    undefined = 0
    for b, query in enumerate(queries):
        expected = items.answer(Request(query), limits)
        assert rows[b].tolist() == expected.rows, f"seed 8, request {b}"
        stored = items.arguments([Request(query)], limits)["vectors"].numpy()
        undefined += sum(int(np.isnan(reference.dot(stored[row], query))) for row in expected.rows)
        np.testing.assert_array_equal(
            scores[b], np.nan_to_num(expected.scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        )
    assert undefined > 0


@pytest.mark.parametrize("code_dims", [0, 30])
def test_outliers_and_zeros(code_dims: int) -> None:
    generator = np.random.default_rng(9)
    vectors = generator.normal(size=(300, 32))
    vectors[::7] = 0
    vectors[::5, 3] *= 1e4  # one component takes nearly the whole range of the codes
    columns = marks(np.ones(300), generator.random(300) < 0.5)
    items = Items(vectors, columns, clusters=3, seed=9, code_dims=code_dims)
    query = generator.normal(size=(4, 32)).astype(np.float32)
    query[1, 3] = 1e5
    query[2] = 0
    query[3, 1:] = 0
    requests = [Request(row, program) for row in query for program in (NO_FILTER, EVERYTHING, marked(1))]
    items.check(requests, Limits(probes=3, candidates=30, max_candidates=40), "seed 9")


@pytest.mark.parametrize("smallest", [1e-44, 2e-43, 1e-40, 1e-38])
def test_subnormal_magnitudes(smallest: float) -> None:
    """Some queries of 2e-43 in units of its scale, the smallest float there is, go far beyond 127."""
    generator = np.random.default_rng(10)
    vectors = generator.normal(size=(100, 10))
    queries = generator.normal(size=(5, 10))
    small, usual = ((queries * scale).astype(np.float32) for scale in (smallest, 1))
    limits = Limits(probes=4, candidates=20, max_candidates=20)
    for code_dims in (0, 6):
        items = Items(vectors, everything(100), seed=10, code_dims=code_dims)
        items.check([Request(query, p) for query in small for p in (NO_FILTER, EVERYTHING)], limits)
        items = Items(vectors * smallest, everything(100), seed=10, code_dims=code_dims)
        items.check([Request(query, p) for query in usual for p in (NO_FILTER, EVERYTHING)], limits)


@pytest.mark.parametrize("projected", [False, True])
def test_query_codes_are_rounded_half_to_even(projected: bool) -> None:
    """With items along the axes a score is one code of the query."""
    axes = np.eye(10, dtype=np.float32)
    items = Items(axes, everything(10), clusters=2, projection=axes if projected else None)
    query = np.array([127, 0.5, 1.5, 2.5, 3.5, 0.49, 2.51, -0.5, -1.5, -2.5], np.float32)
    by_code = [0, 4, 6, 2, 3, 1, 5, 7, 8, 9]  # codes 127, 4, 3, 2, 2, 0, 0, 0, -2, -2
    for candidates in range(1, 10):
        for program in (NO_FILTER, EVERYTHING):
            (found,) = items.check([Request(query, program)], Limits(2, candidates, 10), f"{candidates} candidates")
            assert set(found.ids) == set(items.ids[by_code[:candidates]].tolist())


@cache
def equal_items() -> tuple[Items, list[Request], list[np.ndarray]]:
    """Equal items, requests and the items that pass each of them, in the order of the results.

    Of 40 dims, so that blocks of one or two passing rows are scored otherwise than those of more, yet alike.
    """
    members = [np.ones(700), np.arange(700) % 23 == 0, np.arange(700) % 3 > 0]
    items = Items(np.ones((700, 40)), marks(*members), clusters=4, seed=2)
    requests = [
        Request(np.full(40, component, np.float32), program)
        for component in (1, -1, 0)
        for program in (NO_FILTER, EVERYTHING, marked(1), marked(2))
    ]
    return items, requests, [items.ids[np.flatnonzero(members[at])] for at in (0, 0, 1, 2)] * 3


@pytest.mark.parametrize("candidates", [1, 2, 31, 32, 33, 64, 65, 96, 128, 256, 300, 512, 513, 699, 700, 701, 800])
def test_ties_go_to_the_smaller_id(candidates: int) -> None:
    items, requests, passing = equal_items()
    found = items.check(requests, Limits(4, candidates, 800), f"{candidates} candidates")
    for answer, ids in zip(found, passing, strict=True):
        assert answer.ids == ids[:candidates].tolist()


@cache
def items_of_a_few_scores() -> tuple[Items, list[Request]]:
    generator = np.random.default_rng(12)
    columns = marks(generator.random(900) < 0.4)
    items = Items(generator.integers(0, 4, (900, 1)) / 3.0, columns, clusters=5, seed=12)
    return items, [Request(np.array([s], np.float32), p) for s in (1, -1) for p in (NO_FILTER, marked(0))]


@pytest.mark.parametrize("candidates", [1, 5, 40, 200, 225, 226, 300, 460])
def test_ties_among_a_few_scores(candidates: int) -> None:
    """Scores of four values: every cut falls among equals."""
    items, requests = items_of_a_few_scores()
    items.check(requests, Limits(5, candidates, 460), f"seed 12, {candidates} candidates")


@cache
def many_items(code_dims: int) -> tuple[Items, list[Request]]:
    generator = np.random.default_rng(3)
    items = Items(generator.normal(size=(3000, 6)), everything(3000), clusters=30, seed=3, code_dims=code_dims)
    return items, [Request(query, p) for query in items.queries(generator, 2) for p in (NO_FILTER, EVERYTHING)]


@pytest.mark.parametrize("code_dims", [0, 5])
@pytest.mark.parametrize("candidates", [257, 300, 1000, 2900])
def test_many_candidates(candidates: int, code_dims: int) -> None:
    """The best are cut back several times, and rows of all clusters compete."""
    items, requests = many_items(code_dims)
    found = items.check(requests, Limits(30, candidates, 3000), f"seed 3, {candidates} candidates")
    assert all(len(answer.rows) == candidates for answer in found)


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_scores_in_order_of_the_rows(order: str) -> None:
    """A floor that every row reaches, and one that no row after the first reaches."""
    values = np.linspace(-1, 1, 2000)
    items = Items(values[:, None], everything(2000), clusters=1, seed=0)
    query = np.array([1 if order == "rising" else -1], np.float32)
    for candidates in (1, 10, 100, 500):
        items.check([Request(query), Request(query, EVERYTHING)], Limits(1, candidates, 500), f"{candidates}")


@cache
def spread_items(dims: int, code_dims: int, sparse: int) -> tuple[Items, list[Request]]:
    """Programs by which 0 to 7 rows of every block pass, and one by which only about `sparse` rows of each do."""
    seed, count = dims + code_dims, 3600
    generator = np.random.default_rng(seed)
    cluster_of = generator.integers(6, size=count)
    layout = lay_out(cluster_of, 6)
    block_of_item = layout.row_of_item // 32
    members = []
    for low, high in ((0, 8), (0, 8), (max(sparse - 1, 1), max(sparse, 3) + 1)):
        most = generator.integers(low, high, layout.blocks)
        shuffled = generator.permutation(count)
        rank = np.empty(count, dtype=np.int64)  # of an item in its block
        for block in range(layout.blocks):
            of_block = shuffled[block_of_item[shuffled] == block]
            rank[of_block] = np.arange(len(of_block))
        members.append(rank < most[block_of_item])
    items = Items(
        generator.normal(size=(count, dims)),
        marks(*members),
        clusters=6,
        cluster_of=cluster_of,
        seed=seed,
        code_dims=code_dims,
        row_codes=False,
    )
    return items, [Request(query, marked(at)) for query in items.queries(generator, 3) for at in range(3)]


@pytest.mark.parametrize(
    ("dims", "code_dims", "sparse"),
    [(8, 0, 0), (16, 0, 1), (33, 0, 2), (64, 0, 3), (130, 0, 5), (130, 40, 1), (130, 100, 4), (128, 8, 0)],
)
def test_sparse_blocks(dims: int, code_dims: int, sparse: int) -> None:
    """Blocks around the number of rows from which on codes are read. Scores of the two kinds differ, and compete."""
    items, requests = spread_items(dims, code_dims, sparse)
    assert reference.sparse_rows(dims, code_dims or dims) == sparse
    for candidates in (1, 60, 170):
        found = items.check(requests, Limits(6, candidates, 170), f"seed {dims + code_dims}, {candidates} candidates")
        assert all(answer.stats[0] == 6 and answer.stats[1] > candidates for answer in found)


@pytest.mark.parametrize("code_dims", [0, 3, 50])
def test_rows_and_blocks_of_one_filter(code_dims: int) -> None:
    """Where codes lie row by row: 0 to 12 passing rows in few blocks, in some and in most. Nobody sees which were read
    as blocks; scores are those of the codes in either."""
    seed, count = 20 + code_dims, 4000
    generator = np.random.default_rng(seed)
    cluster_of = generator.integers(5, size=count)
    layout = lay_out(cluster_of, 5)
    place = layout.row_of_item % 32  # in its block
    members = []
    for share in (0.05, 0.2, 1.0):
        most = np.where(generator.random(layout.blocks) < share, generator.integers(1, 13, layout.blocks), 0)
        members.append(place < most[layout.row_of_item // 32])
    vectors = generator.normal(size=(count, 64))
    items = Items(vectors, marks(*members), clusters=5, cluster_of=cluster_of, seed=seed, code_dims=code_dims)
    assert [bool(16 * passing.sum() < count) for passing in members] == [True, True, False]
    requests = [Request(query, marked(at)) for query in items.queries(generator, 3) for at in range(3)]
    requests += [Request(one.query, one.program, items.ids[::3].tolist()) for one in requests]
    for candidates in (1, 20, 60):
        items.check(requests, Limits(5, candidates, 60), f"seed {seed}, {candidates} candidates")


@pytest.mark.parametrize(("dims", "code_dims"), [(4096, 0), (1024, 500)])
def test_more_dims_than_int8_sums_in_16_bits(dims: int, code_dims: int) -> None:
    """Codes at both ends of their range in every component: nothing may saturate."""
    vectors = np.ones((70, dims))
    vectors[1::2] *= -1
    vectors[2::4, ::2] *= -1
    items = Items(vectors, everything(70), clusters=1, code_dims=code_dims)
    if not code_dims:
        assert set(np.abs(items.index["codes"].numpy()[:2]).reshape(-1).tolist()) == {127}
    alternating = np.where(np.arange(dims) % 2, 1, -1)
    queries = np.stack([np.ones(dims), -np.ones(dims), alternating]).astype(np.float32)
    requests = [Request(query, program) for query in queries for program in (NO_FILTER, EVERYTHING)]
    items.check(requests, Limits(1, 5, 5))


def test_the_most_dims() -> None:
    """Sums of 133,144 products of 127 * 127, the largest that int32 holds, of either sign."""
    dims = 133_144
    assert dims * 127 * 127 <= 2**31 - 1 < (dims + 1) * 127 * 127
    items = Items(np.array([[1.0], [-1.0], [0.5]]) * np.ones(dims, np.float32), clusters=1)
    items.index["vectors"].zero_()  # what rescoring costs in the reference is no matter here
    codes, scales = items.index["codes"].numpy(), items.index["scales"].numpy()
    codes[0, :, 2] = 126
    for sign in (1, -1):
        query_codes, _ = reference.quantize(np.full(dims, sign, np.float32))
        scores = reference.code_scores(codes, scales, query_codes)
        arguments = items.arguments([Request(np.full(dims, sign, np.float32), limits=(1, 1))], Limits(1, 1, 2))
        rows, *_ = ops.search(**arguments)
        assert rows[:, 0].tolist() == [int(np.argmax(scores[:3]))]
