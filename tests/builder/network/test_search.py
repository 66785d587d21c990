"""The search module: limits, exclusions, statuses and figures of each request on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from builder import ops
from builder.index.build import build_index
from builder.index.projection import leading_directions
from builder.network.search import Search, first_status, flag
from client.schema import Status

ITEMS, DIMS, CLUSTERS, MAX = 500, 8, 7, 40
SEED = 9


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(SEED).normal(size=(ITEMS, DIMS)).astype(np.float32)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(SEED).permutation(10**6)[:ITEMS] * 3 + 1


@pytest.fixture(scope="module")
def search(vectors: np.ndarray, ids: np.ndarray) -> Search:
    ops.load()
    index = build_index(vectors, ids, (), clusters=CLUSTERS, seed=0)
    return Search(index, fingerprint=42, probes=3, candidates=30, max_candidates=MAX)


def neutral(rows: int) -> dict[str, Tensor]:
    return {
        "filter": torch.zeros(rows, 2, dtype=torch.int64),
        "exclude": torch.full((rows, 3), -1),
        "search": torch.zeros(rows, 2, dtype=torch.int32),
    }


def good(rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.int32)


def test_limits_take_the_request_or_the_artifact(search: Search) -> None:
    asked = [[0, 0], [5, 0], [0, 7], [CLUSTERS, MAX], [CLUSTERS + 1, 1], [1, MAX + 1], [-1, 0], [0, -1]]
    inputs = {**neutral(8), "search": torch.tensor(asked, dtype=torch.int32)}
    rows, _, _, stats, status = search(torch.ones(8, DIMS), **inputs, status=good(8))
    assert status.tolist() == [0, 0, 0, 0] + [Status.SEARCH] * 4
    assert (rows >= 0).sum(1).tolist() == [30, 30, 7, MAX, 0, 0, 0, 0]
    assert (stats[:4, 0] >= torch.tensor([3, 5, 3, CLUSTERS])).all()
    assert stats[4:].tolist() == [[0] * 4] * 4


def test_every_probe_is_the_exact_search(search: Search, vectors: np.ndarray, ids: np.ndarray) -> None:
    queries = np.random.default_rng(1).normal(size=(20, DIMS)).astype(np.float32)
    inputs = neutral(20)
    inputs["search"][:] = torch.tensor([CLUSTERS, MAX])
    rows, found_ids, scores, stats, status = search(torch.from_numpy(queries), **inputs, status=good(20))
    assert torch.equal(found_ids, search.ids[rows.long()])
    assert status.tolist() == [0] * 20
    assert stats.tolist() == [[CLUSTERS, ITEMS, ITEMS, 1]] * 20
    truth = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    position = {int(item): at for at, item in enumerate(ids)}
    for q in range(20):
        found = [position[int(item)] for item in found_ids[q]]
        assert len(set(found)) == MAX, f"seed {SEED}"
        np.testing.assert_allclose(scores[q].numpy(), truth[q, found], atol=5e-3)
        assert len(set(found[:MAX]) & set(np.argsort(-truth[q])[: MAX // 2].tolist())) == MAX // 2, f"seed {SEED}"


def test_fewer_probes_scan_fewer_rows_and_say_so(search: Search) -> None:
    query = torch.ones(CLUSTERS, DIMS)
    inputs = neutral(CLUSTERS)
    inputs["search"][:, 0] = torch.arange(1, CLUSTERS + 1)
    _, _, _, stats, _ = search(query, **inputs, status=good(CLUSTERS))
    assert (stats[:, 0] >= torch.arange(1, CLUSTERS + 1)).all()  # more when its clusters hold too few candidates
    assert (stats[1:, 2] >= stats[:-1, 2]).all()
    assert stats[:, 3].tolist() == (stats[:, 0] == CLUSTERS).int().tolist()
    assert stats[-1].tolist() == [CLUSTERS, ITEMS, ITEMS, 1]


def test_a_request_answers_the_same_alone_and_among_others(search: Search, ids: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    rows = 12
    queries = torch.from_numpy(rng.normal(size=(rows, DIMS)).astype(np.float32))
    inputs = neutral(rows)
    inputs["exclude"][:] = torch.from_numpy(rng.choice(ids, (rows, 3)))
    inputs["search"][:] = torch.from_numpy(rng.integers(0, CLUSTERS + 1, (rows, 2)).astype(np.int32))
    queries[4, 0] = float("nan")
    inputs["exclude"][5, 0] = -7
    inputs["filter"][6] = torch.tensor([1, 1])  # wrong fingerprint
    incoming = good(rows)
    incoming[7] = Status.HISTORY
    together = search(queries, **inputs, status=incoming)
    assert (
        together[4].tolist()
        == [0, 0, 0, 0, Status.QUERY, Status.EXCLUDE, Status.FILTER_FINGERPRINT, Status.HISTORY] + [0] * 4
    )
    for row in range(rows):
        alone = search(
            queries[row : row + 1], **{name: t[row : row + 1] for name, t in {**inputs, "status": incoming}.items()}
        )
        for one, all_of_them in zip(alone, together, strict=True):
            mine = all_of_them[row].flatten()[: one[0].numel()]  # it may be wider, for another request
            assert torch.equal(one[0].flatten(), mine), f"row {row}"


def test_excluded_ids_do_not_leave_the_search(search: Search) -> None:
    inputs = neutral(1)
    inputs["search"][:, 0] = CLUSTERS
    rows, found, _, _, _ = search(torch.ones(1, DIMS), **inputs, status=good(1))
    inputs["exclude"] = found[:, :3]
    again, ids, _, stats, _ = search(torch.ones(1, DIMS), **inputs, status=good(1))
    assert not set(found[0, :3].tolist()) & set(ids[0].tolist())
    assert again[0, :26].tolist() == rows[0, 3:29].tolist()
    assert stats[0, 1] == ITEMS - 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_query_that_is_not_finite_is_the_rows_own_fault(search: Search, bad: float) -> None:
    query = torch.ones(3, DIMS)
    query[1, 2] = bad
    rows, ids, scores, stats, status = search(query, **neutral(3), status=good(3))
    assert status.tolist() == [0, Status.QUERY, 0]
    assert (rows[1].unique().tolist(), ids[1].unique().tolist()) == ([-1], [-1])
    assert scores[1].unique().tolist() == [float("-inf")]
    assert stats[1].tolist() == [0] * 4
    assert torch.equal(rows[0], rows[2])


def test_codes_of_fewer_dims_find_what_lies_in_those() -> None:
    """Items in a plane of 4 of 8 dims: with codes of 4 dims the search is as exact as with all."""
    rng = np.random.default_rng(SEED)
    plane = np.linalg.qr(rng.normal(size=(DIMS, 4)))[0]
    vectors = (rng.normal(size=(ITEMS, 4)) @ plane.T).astype(np.float32)
    queries = torch.from_numpy(rng.normal(size=(10, DIMS)).astype(np.float32))
    projection = leading_directions(vectors, 4, seed=0)
    index = build_index(vectors, np.arange(ITEMS), (), clusters=CLUSTERS, seed=0, projection=projection)
    assert index.codes.shape[1] == 1
    module = Search(index, fingerprint=1, probes=CLUSTERS, candidates=MAX, max_candidates=MAX)
    _, ids, _, _, _ = module(queries, **neutral(10), status=good(10))
    truth = np.argsort(-(queries.numpy() @ vectors.T), axis=1)[:, : MAX // 2]
    for q in range(10):
        assert set(truth[q].tolist()) <= set(ids[q].tolist()), f"seed {SEED}, query {q}"


@pytest.mark.parametrize("passing", [40, 41])
def test_exact_rows_and_probes_reach_the_operator(vectors: np.ndarray, ids: np.ndarray, passing: int) -> None:
    index = build_index(vectors, ids, (), clusters=CLUSTERS, seed=0)
    limits = {"fingerprint": 42, "probes": 1, "candidates": 1, "max_candidates": MAX}
    inputs = {**neutral(1), "exclude": torch.from_numpy(ids[passing:])[None]}
    for exact_rows in (0, 40):
        search = Search(index, **limits, exact_rows=exact_rows)
        _, _, _, stats, _ = search(torch.ones(1, DIMS), **inputs, status=good(1))
        assert stats[0, 1] == passing
        assert stats[0, 0] == (CLUSTERS if passing <= exact_rows else 1)


def test_reach_finds_more_and_takes_more(vectors: np.ndarray, ids: np.ndarray) -> None:
    clusters = 30
    index = build_index(vectors, ids, (), clusters=clusters, seed=0)
    queries = torch.from_numpy(np.random.default_rng(2).normal(size=(20, DIMS)).astype(np.float32))
    truth = np.argsort(-(queries.numpy() @ vectors.T), axis=1)[:, :5]
    taken, recall = [], []
    for reach in (0.0, 2.0, 50.0):
        settings = {"fingerprint": 42, "candidates": 10, "max_candidates": MAX, "reach": torch.tensor([reach])}
        _, found, _, stats, _ = Search(index, **settings)(queries, **neutral(20), status=good(20))
        taken.append(float(stats[:, 0].float().mean()))
        recall.append(np.mean([np.isin(ids[best], row).mean() for best, row in zip(truth, found.numpy(), strict=True)]))
    assert 4 <= taken[0] < taken[1] < taken[2] == clusters
    assert recall[0] < recall[1] <= recall[2] == 1


def test_the_smallest_status_wins() -> None:
    one, other = (torch.tensor(values, dtype=torch.int32) for values in ([0, 7, 0, 8, 2], [0, 2, 3, 0, 7]))
    assert first_status(one, other).tolist() == [0, 2, 3, 8, 2]
    assert flag(torch.tensor([True, False]), 6).tolist() == [6, 0]


def test_everything_is_a_buffer_that_moves_and_loads(search: Search, vectors: np.ndarray, ids: np.ndarray) -> None:
    other = Search(
        build_index(vectors[::-1].copy(), ids, (), clusters=CLUSTERS, seed=0),
        fingerprint=42,
        probes=3,
        candidates=30,
        max_candidates=MAX,
    )
    assert not list(search.parameters())
    state = {name: tensor.clone() for name, tensor in search.state_dict().items()}
    same_size = {name for name, tensor in other.state_dict().items() if tensor.shape == state[name].shape}
    if same_size == set(state):
        other.load_state_dict(state)
        query = torch.ones(1, DIMS)
        inputs = {**neutral(1), "status": good(1)}
        for one, loaded in zip(search(query, **inputs), other(query, **inputs), strict=True):
            assert torch.equal(one, loaded)
    assert {
        "projection",
        "reach",
        "centroid_spreads",
        "codes",
        "vectors",
        "ids",
        "item_rows",
        "centroid_codes",
        "valid",
        "filters.term_keys",
    } <= set(state)
