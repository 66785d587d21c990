"""The search module: limits, exclusions, statuses and figures of each request on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from builder import ops
from builder.index.build import build_index
from builder.network.search import Search, finite, first_status, flag
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


def test_limits_take_the_request_or_the_artifact(search: Search) -> None:
    asked = [[0, 0], [5, 0], [0, 7], [CLUSTERS, MAX], [CLUSTERS + 1, 1], [1, MAX + 1], [-1, 0], [0, -1]]
    probes, candidates, status = search.limits(torch.tensor(asked, dtype=torch.int32))
    assert probes.tolist() == [3, 5, 3, CLUSTERS, 3, 3, 3, 3]
    assert candidates.tolist() == [30, 30, 7, MAX, 30, 30, 30, 30]
    assert status.tolist() == [0, 0, 0, 0, 8, 8, 8, 8]
    assert {tensor.dtype for tensor in (probes, candidates, status)} == {torch.int32}


def test_rows_of_ids(search: Search, ids: np.ndarray) -> None:
    rows = search.rows_of(torch.from_numpy(ids))
    assert search.ids[rows.long()].tolist() == ids.tolist()
    absent = torch.tensor([[-1, 0, 2, ids.max() + 1, -(2**63), 2**63 - 1]])
    assert search.rows_of(absent).tolist() == [[-1] * 6]


def test_every_probe_is_the_exact_search(search: Search, vectors: np.ndarray, ids: np.ndarray) -> None:
    queries = np.random.default_rng(1).normal(size=(20, DIMS)).astype(np.float32)
    inputs = neutral(20)
    inputs["search"][:] = torch.tensor([CLUSTERS, MAX])
    rows, scores, stats, status = search(torch.from_numpy(queries), **inputs)
    assert status.tolist() == [0] * 20
    assert stats.tolist() == [[CLUSTERS, ITEMS, ITEMS, 1]] * 20
    truth = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    position = {int(item): at for at, item in enumerate(ids)}
    for q in range(20):
        found = [position[int(item)] for item in search.ids[rows[q].long()]]
        assert len(set(found)) == MAX, f"seed {SEED}"
        np.testing.assert_allclose(scores[q].numpy(), truth[q, found], atol=5e-3)
        assert len(set(found[:MAX]) & set(np.argsort(-truth[q])[: MAX // 2].tolist())) == MAX // 2, f"seed {SEED}"


def test_fewer_probes_scan_fewer_rows_and_say_so(search: Search) -> None:
    query = torch.ones(CLUSTERS, DIMS)
    inputs = neutral(CLUSTERS)
    inputs["search"][:, 0] = torch.arange(1, CLUSTERS + 1)
    _, _, stats, _ = search(query, **inputs)
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
    together = search(queries, **inputs)
    assert together[3].tolist() == [0, 0, 0, 0, Status.QUERY, Status.EXCLUDE, Status.FILTER_FINGERPRINT] + [0] * 5
    for row in range(rows):
        alone = search(queries[row : row + 1], **{name: t[row : row + 1] for name, t in inputs.items()})
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_of_them[row]), f"row {row}"


def test_excluded_ids_do_not_leave_the_search(search: Search) -> None:
    inputs = neutral(1)
    inputs["search"][:, 0] = CLUSTERS
    rows, _, _, _ = search(torch.ones(1, DIMS), **inputs)
    first = search.ids[rows[0, :3].long()]
    again, _, stats, _ = search(torch.ones(1, DIMS), **{**inputs, "exclude": first[None]})
    assert not set(first.tolist()) & set(search.ids[again[0].clamp(min=0).long()].tolist())
    assert again[0, :26].tolist() == rows[0, 3:29].tolist()
    assert stats[0, 1] == ITEMS - 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_queries_that_are_not_finite_become_zero(bad: float) -> None:
    query = torch.tensor([[1.0, 2.0], [bad, 1.0]])
    clean, status = finite(query)
    assert clean.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert status.tolist() == [0, Status.QUERY]


def test_the_smallest_status_wins() -> None:
    statuses = [torch.tensor(values, dtype=torch.int32) for values in ([0, 7, 0, 8], [0, 2, 0, 0], [0, 5, 3, 0])]
    assert first_status(statuses).tolist() == [0, 2, 3, 8]
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
        for one, loaded in zip(search(query, **neutral(1)), other(query, **neutral(1)), strict=True):
            assert torch.equal(one, loaded)
    assert {"codes", "vectors", "ids", "item_rows", "centroid_codes", "valid", "filters.term_keys"} <= set(state)
