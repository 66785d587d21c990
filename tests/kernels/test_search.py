"""The whole search against its reference, for equality: requests, filters, the choice of clusters, batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

import numpy as np
import pytest
import torch

from builder import ops
from tests.kernels.catalogue import (
    FINGERPRINT,
    Items,
    marked,
    marks,
    random_columns,
    random_request,
    runs_cuda,
    words_of,
)
from tests.kernels.reference import AND, ANY, NOT, OR, RANGE, Column, Limits, Request, bits, head

pytestmark = pytest.mark.usefixtures("instruction_set")
DIMS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 128, 130]
MALFORMED, OF_ANOTHER_SCHEMA = [FINGERPRINT, 1, head(255)], [FINGERPRINT + 1, 1, head(255)]


def numbered(items: int) -> list[Column]:
    """One feature whose values are the numbers of the items."""
    return [[frozenset([i]) for i in range(items)]]


def only(numbers: Sequence[int]) -> list[int]:
    """The program by which just those items of `numbered` pass."""
    return words_of([head(ANY, 0, len(numbers)), *map(int, numbers)])


@cache
def random_items(seed: int, count: int, dims: int, clusters: int, code_dims: int = 0) -> Items:
    generator, random = np.random.default_rng(seed), Random(seed)
    vectors = generator.normal(size=(count, dims))
    vectors[::13] = vectors[: 1 + (count - 1) // 13]  # equal rows
    reach = random.choice([[0.3], [0.5, 0.2, 0.0, -0.3]])
    columns = random_columns(random, count)
    kind = {"code_dims": code_dims, "row_codes": random.random() < 0.6}
    return Items(vectors, columns, seed=seed, clusters=clusters, reach=reach, **kind)


@cache
def random_requests(items: Items, seed: int, count: int, most: int, trouble: float) -> list[Request]:
    random, generator = Random(seed), np.random.default_rng(seed)
    return [random_request(random, generator, items, most, trouble) for _ in range(count)]


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("dims", DIMS)
def test_random_searches(dims: int, projected: bool) -> None:
    seed = 2 * dims + projected
    random = Random(seed)
    items = random_items(seed, 600, dims, clusters=9, code_dims=random.randint(1, dims) if projected else 0)
    requests = random_requests(items, seed, 14, 60, trouble=0.04)
    limits = Limits(probes=random.choice([0, 3]), candidates=25, max_candidates=60, exact_rows=random.choice([0, 30]))
    found = items.check(requests, limits, f"seed {seed}")
    assert sum(answer.status == 0 for answer in found) > 6
    assert any(answer.rows and not answer.stats[3] for answer in found)


@pytest.mark.parametrize("clusters", [1, 31, 32, 33, 64, 65, 200])
@pytest.mark.parametrize("dims", [3, 16, 70])
def test_random_choices_of_clusters(dims: int, clusters: int) -> None:
    seed = clusters * 100 + dims
    items = random_items(seed, 6 * clusters, dims, clusters)
    requests = random_requests(items, seed, 12, 100, trouble=0)
    items.check(requests, Limits(probes=seed % 11, candidates=7, max_candidates=100), f"seed {seed}")


@pytest.fixture(scope="module")
def few() -> Items:
    """A hundred items in four clusters, their numbers as a filter feature."""
    return Items(np.random.default_rng(1).normal(size=(100, 6)), numbered(100), clusters=4, seed=1)


LIMITS = Limits(probes=2, candidates=10, max_candidates=20)
GOOD, BAD = np.ones(6, np.float32), np.array([1, 2, np.nan, 0, 0, 0], np.float32)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (Request(GOOD), 0),
        (Request(BAD), 3),
        (Request(np.full(6, np.inf, np.float32)), 3),
        (Request(np.full(6, -np.inf, np.float32)), 3),
        (Request(GOOD, MALFORMED), 4),
        (Request(GOOD, [FINGERPRINT, 2**62, 0]), 4),
        (Request(GOOD, OF_ANOTHER_SCHEMA), 5),
        (Request(GOOD, exclude=[5, -1, -2]), 6),
        (Request(GOOD, exclude=[-(2**63)]), 6),
        (Request(GOOD, exclude=[-1, -1, 2**63 - 2]), 0),
        (Request(GOOD, limits=(4, 20)), 0),
        (Request(GOOD, limits=(5, 0)), 8),
        (Request(GOOD, limits=(2**31 - 1, 0)), 8),
        (Request(GOOD, limits=(-1, 0)), 8),
        (Request(GOOD, limits=(-(2**31), 0)), 8),
        (Request(GOOD, limits=(0, 21)), 8),
        (Request(GOOD, limits=(0, 2**31 - 1)), 8),
        (Request(GOOD, limits=(0, -1)), 8),
        (Request(GOOD, status=1), 1),
        (Request(GOOD, status=7), 7),
        (Request(GOOD, status=9), 9),
        (Request(GOOD, status=2**31 - 1), 2**31 - 1),
        (Request(BAD, status=2), 2),
        (Request(BAD, status=7), 3),
        (Request(GOOD, MALFORMED, status=7), 4),
        (Request(GOOD, MALFORMED, status=1), 1),
        (Request(GOOD, OF_ANOTHER_SCHEMA, status=9), 5),
        (Request(GOOD, OF_ANOTHER_SCHEMA, exclude=[-2], limits=(-1, 0)), 5),
        (Request(GOOD, exclude=[-2], limits=(0, -1), status=7), 6),
        (Request(GOOD, limits=(0, -1), status=7), 7),
        (Request(BAD, MALFORMED, exclude=[-9], limits=(0, 99), status=8), 3),
    ],
)
def test_status(few: Items, request_: Request, status: int) -> None:
    """A bad request gets nothing, and its neighbours do not notice."""
    neighbours = [Request(-GOOD), Request(GOOD, only(range(50)))]
    found = few.check([neighbours[0], request_, neighbours[1]], LIMITS)
    assert [answer.status for answer in found] == [0, status, 0]
    assert [len(answer.rows) for answer in found] == [10, [0, request_.limits[1] or 10][status == 0], 10]


def test_limits_of_the_request_and_of_the_artifact(few: Items) -> None:
    asked = [(0, 0), (1, 0), (0, 7), (4, 20), (3, 1)]
    found = few.check([Request(GOOD, limits=limits) for limits in asked], LIMITS)
    assert [len(answer.rows) for answer in found] == [10, 10, 7, 20, 1]
    assert [answer.stats[0] for answer in found] == [2, 1, 2, 4, 3]
    few.check([Request(GOOD)], Limits(probes=2**31 - 1, candidates=20, max_candidates=20), "more probes than clusters")


@pytest.mark.parametrize("program", [(0, 0), words_of([head(ANY, 0, 1), -5, head(NOT)])], ids=["no filter", "filter"])
def test_excluded_items_never_come_back(few: Items, program: list[int]) -> None:
    limits = Limits(probes=4, candidates=20, max_candidates=100)
    everything = few.check([Request(GOOD, program)], limits)[0]
    ids = everything.ids
    in_cluster = few.layout.row_of_item < few.layout.cluster_blocks[1] * 32
    for exclude in (
        [ids[0]],
        [ids[3], -1, ids[3], ids[0], ids[3]],
        [*ids, 1, 2**62 + 1, 2**63 - 2, -1],
        [-1, -1, 77],
        few.ids[in_cluster].tolist(),
        few.ids[~in_cluster].tolist(),
        few.ids[:-1].tolist(),
        few.ids.tolist(),
    ):
        for asked in ((0, 0), (1, 1), (2, 100)):
            (found,) = few.check([Request(GOOD, program, exclude, asked)], limits, f"{len(exclude)} excluded")
            assert not set(found.ids) & set(exclude)
            assert found.stats[1] == 100 - len(set(exclude) & set(few.ids.tolist()))


def test_excluded_items_that_do_not_pass_are_not_counted_twice(few: Items) -> None:
    exclude = few.ids[20:60].tolist() * 2
    (found,) = few.check([Request(GOOD, only(range(40)), exclude, (4, 20))], LIMITS)
    assert found.stats[1] == 20


def test_one_item_and_empty_clusters() -> None:
    items = Items(np.array([[1.0, -2.0, 3.0]]), numbered(1), clusters=5)
    query = np.ones(3, np.float32)
    requests = [
        Request(query),
        Request(query, limits=(5, 4)),
        Request(query, only([0])),
        Request(query, only([])),
        Request(query, exclude=[0]),
        Request(query, only([0]), [0]),
    ]
    found = items.check(requests, Limits(probes=1, candidates=3, max_candidates=4))
    assert [answer.stats for answer in found] == [[1, 1, 1, 1]] * 3 + [[0, 0, 0, 1]] * 3
    assert [len(answer.rows) for answer in found] == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("clusters", [0, 1, 40])
def test_an_index_without_rows(clusters: int) -> None:
    items = Items(np.empty((0, 4)), [[]], clusters=clusters)
    query = np.ones(4, np.float32)
    requests = [Request(query), Request(query, only([1, 2])), Request(query, exclude=[0, 7]), Request(query, MALFORMED)]
    found = items.check(requests, Limits(probes=3, candidates=2, max_candidates=3))
    assert [answer.stats for answer in found] == [[0, 0, 0, 1]] * 3 + [[0] * 4]


def test_empty_batches_and_results_of_no_width(few: Items) -> None:
    shapes = [tensor.shape for tensor in ops.search(**few.arguments([], LIMITS))]
    width = LIMITS.max_candidates if runs_cuda() else 0
    assert shapes == [(0, width), (0, width), (0, width), (0, 4), (0,)]
    (found,) = few.check([Request(GOOD)], Limits(probes=3, candidates=0, max_candidates=0))
    assert (found.rows, found.stats[0], found.stats[3]) == ([], 3, 0)
    (found,) = few.check([Request(GOOD)], Limits(probes=3, candidates=0, max_candidates=5))
    assert found.rows == []


def clusters_on_a_line(spreads: Sequence[float], reach: Sequence[float], passing: int = 16) -> Items:
    """64 clusters of 16 items each, all of them at the cluster's mean: 64, 63, .. 1 times the first axis."""
    numbers = np.arange(1024)
    means = np.zeros((64, 8), dtype=np.float32)
    means[:, 0] = np.arange(64, 0, -1)
    return Items(
        means[numbers % 64],
        marks(numbers // 64 < passing),
        clusters=64,
        cluster_of=numbers % 64,
        centroids=means,
        spreads=np.asarray(spreads, dtype=np.float32),
        reach=reach,
    )


FIRST_AXIS = np.eye(8, dtype=np.float32)[0]


@pytest.mark.parametrize(
    ("reach", "candidates", "taken"),
    [
        (0.0, 16, 4),  # the first round considers 4, however little is wanted of them
        (0.0, 16 * 8, 8),
        (0.0, 16 * 8 + 1, 16),  # not enough: as many again
        (0.0, 16 * 16, 16),
        (1.0, 16 * 16, 17),  # the first that was not taken may hold one as good as the worst candidate
        (1.0, 16, 4),  # cluster c reaches 64 - c + 1, the worst candidate is at 64
        (7.5, 16, 8),
        (8.5, 16, 9),
        (20.5, 16, 21),
        (1e9, 16, 64),
        (-3.0, 16, 4),
        (0.0, 1024, 64),
    ],
)
def test_clusters_are_taken_while_they_may_hold_a_candidate(reach: float, candidates: int, taken: int) -> None:
    items = clusters_on_a_line(np.ones(64), [reach])
    (found,) = items.check([Request(FIRST_AXIS)], Limits(0, candidates, 1024))
    assert found.stats == [taken, 1024, 16 * taken, int(taken == 64)]


def test_a_wide_cluster_is_taken_before_a_narrow_one_nearby() -> None:
    spreads = np.zeros(64)
    spreads[[30, 50]] = [31, 60]
    items = clusters_on_a_line(spreads, [1.0])
    (found,) = items.check([Request(FIRST_AXIS, limits=(2, 0))], Limits(0, 5, 16))
    assert found.stats[0] == 2
    assert set(np.searchsorted(items.layout.cluster_blocks, np.array(found.rows) // 32, side="right") - 1) == {30}
    (found,) = items.check([Request(FIRST_AXIS, limits=(3, 0))], Limits(0, 5, 16))
    assert set(np.searchsorted(items.layout.cluster_blocks, np.array(found.rows) // 32, side="right") - 1) == {0}


@pytest.mark.parametrize(
    ("reach", "passing", "taken"),
    [
        ([20.5], 16, 21),
        ([20.5], 1, 22),  # one item a cluster passes: the worst candidate is that of the second
        ([20.5, 0.0], 16, 21),
        ([20.5, 0.0], 4, 4),
        ([20.5, 0.0], 1, 4),
        ([20.5, 0.0, 40.5], 1, 42),
        ([0.0, 12.0], 12, 4),  # 12 * (16 / 12 - 1) / 3 = 1.3
        ([0.0, 12.0, 30.0], 2, 19),  # 12 + 18 * (8 - 4) / 12 = 18 beyond the first cluster, which has both candidates
        ([0.0, 12.0, 24.5], 1, 26),
        ([0.0, 1e30], 15, 64),
    ],
)
def test_reach_goes_by_the_share_that_passes(reach: list[float], passing: int, taken: int) -> None:
    items = clusters_on_a_line(np.ones(64), reach, passing)
    (found,) = items.check([Request(FIRST_AXIS, marked(0))], Limits(0, 2, 16))
    assert found.stats == [taken, 64 * passing, taken * passing, int(taken == 64)]


@pytest.mark.parametrize("batch", [1, 2, 7, 40])
@pytest.mark.parametrize("code_dims", [0, 5])
def test_as_many_clusters_as_may_hold_a_candidate(batch: int, code_dims: int) -> None:
    """Rows that do lie around their clusters' means, several rounds of them, with and without filters."""
    seed = 3 * batch + code_dims
    generator = np.random.default_rng(seed)
    centres = 3 * generator.normal(size=(120, 12))
    cluster_of = generator.integers(120, size=3000)
    columns = marks(generator.random(3000) < 0.3, generator.random(3000) < 0.04)
    items = Items(
        centres[cluster_of] + generator.normal(size=(3000, 12)),
        columns,
        clusters=120,
        cluster_of=cluster_of,
        centroids=centres.astype(np.float32) if code_dims == 0 else None,
        code_dims=code_dims,
        spreads=np.ones(120),
        reach=[2.0, 1.5, 1.0],
    )
    programs = [(0, 0), marked(0), marked(1)]
    requests = [Request(query, programs[i % 3]) for i, query in enumerate(3 * items.queries(generator, batch))]
    found = items.check(requests, Limits(0, 20, 40, exact_rows=10), f"seed {seed}")
    taken = {answer.stats[0] for answer in found}
    assert batch < 7 or (max(taken) > 16 and len(taken) > 3), taken


def test_a_rare_filter_takes_clusters_until_enough_rows_pass() -> None:
    """One passing item a cluster: far more clusters than asked for, and only those in which an item passes."""
    clusters = 200
    numbers = np.arange(clusters * 5)
    items = Items(
        np.random.default_rng(3).normal(size=(len(numbers), 12)),
        marks((numbers < clusters) & (numbers % 2 == 0)),
        clusters=clusters,
        cluster_of=numbers % clusters,
    )
    requests = [Request(query, marked(0)) for query in items.queries(np.random.default_rng(4), 3)]
    for probes, candidates, taken in ((1, 50, 50), (1, 1, 1), (7, 5, 7), (3, 64, 64), (3, 65, 65), (99, 99, 99)):
        found = items.check(requests, Limits(probes, candidates, 100), f"{probes} probes, {candidates} candidates")
        assert [answer.stats for answer in found] == [[taken, 100, taken, 0]] * 3
        assert [len(answer.rows) for answer in found] == [candidates] * 3
    found = items.check(requests, Limits(1, 100, 100), "as many candidates as rows")
    assert [answer.stats for answer in found] == [[100, 100, 100, 1]] * 3


@cache
def items_in_many_clusters() -> Items:
    """Two items a cluster: so many blocks that a rare filter costs less row by row, at hundreds of rows."""
    count = 4000
    numbers, generator = np.arange(count), np.random.default_rng(17)
    drawn = generator.random(count)
    members = [drawn < share for share in (0.5, 0.07, 0.0625, 0.01)]
    return Items(
        generator.normal(size=(count, 5)),
        [*marks(*members), generator.normal(size=count)],
        clusters=count // 2,
        cluster_of=numbers % (count // 2),
        frequent=400,
        seed=17,
    )


@pytest.mark.parametrize(("probes", "candidates"), [(1, 1), (1, 20), (40, 20), (300, 100), (2000, 260), (5, 600)])
def test_rare_filters_over_many_clusters(probes: int, candidates: int) -> None:
    items = items_in_many_clusters()
    narrow = [head(RANGE, 4, 2), bits(1.0), bits(1.1)]
    codes = [[head(ANY, feature, 1), 1] for feature in range(4)]
    codes += [
        [*codes[1], *codes[0], head(NOT), head(AND)],
        [*codes[2], *narrow, head(OR)],
        [*narrow, *codes[0], head(AND)],
    ]
    exclude = items.ids[::3].tolist()
    requests = random_query_requests(items, [words_of(code) for code in codes], exclude)
    items.check(requests, Limits(probes, candidates, 600), f"seed 17, {probes} probes, {candidates} candidates")


def random_query_requests(items: Items, programs: list[list[int]], exclude: list[int]) -> list[Request]:
    (query,) = items.queries(np.random.default_rng(18), 1)
    return [Request(query, program, excluded) for program in programs for excluded in ([], exclude)]


@pytest.mark.parametrize("exact_rows", [0, 29, 30, 31, 1000])
def test_few_passing_rows_are_searched_exactly(few: Items, exact_rows: int) -> None:
    limits = Limits(probes=1, candidates=5, max_candidates=20, exact_rows=exact_rows)
    requests = [Request(GOOD, only(range(10, 40))), Request(GOOD, exclude=few.ids[30:].tolist())]
    found = few.check(requests, limits)
    assert [answer.stats[0] for answer in found] == [4 if exact_rows >= 30 else 1] * 2
    assert [answer.stats[3] for answer in found] == [int(exact_rows >= 30)] * 2


@pytest.mark.parametrize("candidates", [29, 30, 31])
def test_candidates_around_the_number_of_rows_that_pass(few: Items, candidates: int) -> None:
    limits = Limits(probes=1, candidates=candidates, max_candidates=40)
    requests = [Request(GOOD, only(range(10, 40))), Request(GOOD, exclude=few.ids[30:].tolist())]
    found = few.check(requests, limits)
    assert [len(answer.rows) for answer in found] == [min(candidates, 30)] * 2


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 40])
def test_requests_that_share_clusters(batch: int) -> None:
    """Filtered and unfiltered, good and bad, in one batch: each as if it were alone."""
    seed = batch
    items = random_items(1, 2000, 20, clusters=6, code_dims=11)
    requests = random_requests(items, seed, batch, 90, trouble=0.03)
    limits = Limits(probes=4, candidates=30, max_candidates=90)
    items.check(requests, limits, f"seed {seed}")
    together = ops.search(**items.arguments(requests, limits))
    for b in {0, batch // 2, batch - 1}:
        alone = ops.search(**items.arguments([requests[b]], limits))
        for one, all_of_them in zip(alone, together, strict=True):
            mine = all_of_them[b].flatten()[: one[0].numel()]  # it may be wider, for another request
            assert torch.equal(one[0].flatten(), mine), f"seed {seed}, request {b}"


@pytest.mark.parametrize("batch", [2, 30])
@pytest.mark.parametrize("passing", [0.004, 0.02, 0.5])
def test_requests_of_equal_filters(batch: int, passing: float) -> None:
    """Their filter runs once, as a list or as a mask; what one excludes, or asks for wrongly, is its own affair."""
    seed, count = batch, 4000
    generator = np.random.default_rng(seed)
    columns = marks(generator.random(count) < passing, generator.random(count) < 0.5)
    items = Items(generator.normal(size=(count, 9)), columns, clusters=40, seed=seed, reach=[0.3], frequent=125)
    ids = items.ids.tolist()
    kinds = [
        Request(GOOD, marked(0)),
        Request(GOOD, marked(0), ids[::2]),
        Request(GOOD, [*marked(0), 5, 6]),  # what lies behind the code counts for nothing
        Request(GOOD, marked(0), limits=(0, 60)),  # all that pass, where those are few
        Request(GOOD, marked(0), status=2),
        Request(GOOD, marked(0), [-2]),
        Request(GOOD, marked(1), ids[1::2]),
        Request(GOOD, OF_ANOTHER_SCHEMA),
        Request(GOOD, MALFORMED),
        Request(GOOD),
    ]
    queries = items.queries(generator, batch)
    requests = [
        Request(query, kind.program, kind.exclude, kind.limits, kind.status)
        for query, kind in zip(queries, (kinds * batch)[:batch], strict=True)
    ]
    items.check(requests, Limits(probes=0, candidates=10, max_candidates=60), f"seed {seed}")


def test_masks_too_large_to_be_alive_at_once() -> None:
    """search.cpp keeps masks of 1 MiB and searches a filtered batch in parts beyond that."""
    seed, count = 6, 20_000
    random, generator = Random(seed), np.random.default_rng(seed)
    columns: list[Column] = [[frozenset([i % 7]) for i in range(count)]]
    items = Items(generator.normal(size=(count, 3)), columns, seed=seed, clusters=20, frequent=100)
    kinds = [random_request(random, generator, items, 25, trouble=0) for _ in range(9)]
    kinds += [Request(GOOD[:3], MALFORMED), Request(GOOD[:3], status=2), Request(BAD[:3], only([3]))]
    requests = [random.choice(kinds) for _ in range(1000)]
    assert len(requests) * items.layout.blocks * 4 > 2 * 2**20
    items.check(requests, Limits(probes=2, candidates=20, max_candidates=25), f"seed {seed}")


def test_indexes_of_other_sizes_in_turn(few: Items) -> None:
    """Buffers are kept from call to call; nothing of another index or of more requests may show."""
    large = random_items(8, 3000, 40, clusters=70)
    for count in (1, 9, 2, 5):
        for items in (few, large):
            items.check(random_requests(items, count, count, 20, trouble=0.1), LIMITS, f"seed {count}")


@pytest.mark.parametrize("seed", range(10))
def test_random_words_do_no_harm(few: Items, seed: int) -> None:
    """Everything that comes with a request is untrusted."""
    random = Random(seed)

    def word(bits: int) -> int:
        return random.choice([random.getrandbits(bits) - 2 ** (bits - 1), random.randint(-3, 3), 0])

    requests = []
    for _ in range(30):
        query = np.array([word(32) for _ in range(6)], np.int32).view(np.float32)
        code = [random.choice([word(64), head(random.randrange(9), 0, random.randrange(3))]) for _ in range(4)]
        program = random.choice([words_of(code), [word(64) for _ in range(6)], (0, 0)])
        exclude = random.choice([[word(64) for _ in range(5)], []])
        limits = (word(32), word(32)) if random.random() < 0.3 else (random.randint(0, 4), random.randint(0, 20))
        requests.append(Request(query, program, exclude, limits, random.choice([0, 0, word(32)])))
    items_checked = few.check(requests, LIMITS, f"seed {seed}")
    assert len({answer.status for answer in items_checked}) > 2
