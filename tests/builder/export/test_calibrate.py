"""The default reach finds its target, and the recall that is reported is the one a user will see."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from builder import ops
from builder.export.calibrate import (
    TIMED_QUERIES,
    Calibration,
    Truth,
    _exact_rows,
    calibrate,
    candidates_for,
    exact_truth,
    measure_recall,
    median_milliseconds,
)
from builder.index.build import build_index
from builder.index.projection import leading_directions
from builder.network.search import Search

DIMS, AT = 16, 10


@pytest.fixture(autouse=True)
def probing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catalogues as small as these would be scanned whole, because that costs less than choosing clusters."""
    monkeypatch.setattr("builder.export.calibrate._exact_rows", lambda search, queries: 0)


def clustered(seed: int, items: int, queries: int, noise: float) -> tuple[np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, DIMS))

    def near(count: int) -> np.ndarray:
        return (centres[rng.integers(0, 60, size=count)] + noise * rng.normal(size=(count, DIMS))).astype(np.float32)

    return near(items), torch.from_numpy(near(queries))


def make_search(vectors: np.ndarray, ids: np.ndarray, clusters: int, candidates: int = 40) -> Search:
    ops.load()
    index = build_index(vectors, ids, (), clusters=clusters, seed=0)
    return Search(index, fingerprint=0, candidates=candidates, max_candidates=candidates)


def calibrated(
    search: Search, vectors: np.ndarray, ids: np.ndarray, queries: torch.Tensor, *, at: int, **settings: Any
) -> Calibration:
    return calibrate(search, exact_truth(search, vectors, ids, queries, at=at), **settings)


def brute_force_recall(search: Search, vectors: np.ndarray, ids: np.ndarray, queries: torch.Tensor, at: int) -> float:
    """Share of the exact top `at` in float64 among the `at` best candidates of the search, by id."""
    neutral = torch.zeros(len(queries), 2, dtype=torch.int64)
    status = torch.zeros(len(queries), dtype=torch.int32)
    rows, _, scores, _, _ = search(queries, neutral, torch.full((len(queries), 1), -1), neutral.int(), status)
    hits = 0
    for query, found, score in zip(queries.double().numpy(), rows.numpy(), scores.numpy(), strict=True):
        best = found[np.argsort(-score, kind="stable")[:at]]
        truth = ids[np.argsort(-(vectors.astype(np.float64) @ query))[:at]]
        hits += len(np.intersect1d(search.ids.numpy()[best[best >= 0]], truth))
    return hits / (at * len(queries))


@pytest.mark.parametrize("target", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("seed", [0, 1])
def test_reaches_the_target_and_reports_what_brute_force_measures(target: float, seed: int) -> None:
    vectors, queries = clustered(seed, 4000, 100, noise=0.6)
    ids = np.random.default_rng(seed).permutation(10_000)[:4000]
    search = make_search(vectors, ids, clusters=64)
    found = calibrated(search, vectors, ids, queries, target=target, at=AT, results=AT, probes=None)
    measured = brute_force_recall(search, vectors, ids, queries, AT)
    assert found.recall >= target, f"seed {seed}"
    assert found.recall == pytest.approx(measured, abs=0.005), f"seed {seed}"  # near-ties count as found
    assert (found.at, found.queries, found.probes, search.probes) == (AT, 100, 0, 0)
    np.testing.assert_allclose(search.reach.numpy(), found.reach, atol=1e-3)
    assert found.mean_probes < 64, f"seed {seed}"  # and not because everything is probed
    if found.mean_probes > 5:  # four are always considered
        search.reach = search.reach - 0.5
        assert brute_force_recall(search, vectors, ids, queries, AT) < found.recall, f"seed {seed}"


def test_given_probes_are_only_measured() -> None:
    vectors, queries = clustered(2, 2000, 50, noise=1.0)
    ids = np.arange(2000)
    search = make_search(vectors, ids, clusters=40)
    found = calibrated(search, vectors, ids, queries, target=0.99, at=AT, results=AT, probes=2)
    assert search.probes == found.probes == found.mean_probes == 2
    assert found.recall == pytest.approx(brute_force_recall(search, vectors, ids, queries, AT), abs=0.005)
    assert found.recall < 0.9


def test_too_few_candidates_end_in_an_honest_figure() -> None:
    """Whatever is probed, the target is missed: that is reported, not hidden, and no more is probed than is of use."""
    vectors, queries = clustered(3, 1000, 30, noise=1.0)
    search = make_search(vectors, np.arange(1000), clusters=10, candidates=5)
    found = calibrated(search, vectors, np.arange(1000), queries, target=0.9, at=AT, results=AT, probes=None)
    assert found.recall == pytest.approx(0.5, abs=0.02)
    search.reach = search.reach + 10
    assert brute_force_recall(search, vectors, np.arange(1000), queries, AT) <= found.recall + 0.01


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_magnitude_changes_nothing(scale: float) -> None:
    vectors, queries = clustered(4, 500, 20, noise=0.6)
    scaled = (vectors * np.float32(scale)).astype(np.float32)
    search = make_search(scaled, np.arange(500), clusters=8)
    found = calibrated(search, scaled, np.arange(500), queries * scale, target=0.9, at=AT, results=AT, probes=None)
    assert found.recall >= 0.9
    full = calibrated(search, scaled, np.arange(500), queries * scale, target=0.9, at=AT, results=AT, probes=8)
    assert full.recall >= 0.99


def test_a_zero_query_finds_everything_equal() -> None:
    vectors, _ = clustered(5, 100, 1, noise=0.6)
    search = make_search(vectors, np.arange(100), clusters=3)
    found = calibrated(
        search, vectors, np.arange(100), torch.zeros(2, DIMS), target=0.9, at=AT, results=AT, probes=None
    )
    assert found.recall == 1.0


def truth_of(search: Search, vectors: np.ndarray, queries: torch.Tensor) -> Truth:
    return exact_truth(search, vectors, np.arange(len(vectors)), queries, at=AT)


def test_reach_shrinks_as_a_filter_lets_fewer_pass() -> None:
    """Where 4^-g of the items pass, a random choice, the same share of the results is found with less reach."""
    items = 20_000
    vectors, queries = clustered(6, items, 150, noise=0.8)
    ids = np.arange(items)
    search = make_search(vectors, ids, clusters=200)
    found = calibrated(search, vectors, ids, queries, target=0.9, at=AT, results=AT)
    reach = torch.tensor(found.reach)
    assert len(reach) >= 4  # 10 x 4^3 results are 3 in 100 of the items
    assert reach[3] < reach[0] - 0.3
    scores = queries @ torch.from_numpy(vectors).T
    neutral = torch.zeros(len(queries), 2, dtype=torch.int64)
    status = torch.zeros(len(queries), dtype=torch.int32)
    for g in (1, 2, 3):
        passing = np.random.default_rng(7 + g).random(items) < 4.0**-g
        exclude = torch.from_numpy(ids[~passing]).repeat(len(queries), 1)
        best = scores.masked_fill(torch.from_numpy(~passing), -torch.inf).topk(AT, dim=1).indices.numpy()
        _, rows, _, stats, _ = search(queries, neutral, exclude, neutral.int(), status)
        recall = np.mean([np.isin(of, row).mean() for of, row in zip(best, rows.numpy(), strict=True)])
        assert recall >= 0.86, f"share 4^-{g}"  # 1,500 results: two standard errors are 0.02
        assert stats[:, 0].float().mean() < 150, f"share 4^-{g}"


def test_as_few_candidates_as_find_the_target() -> None:
    """Codes of 4 dims of 16 order so badly that more candidates are needed than with codes of all dims."""
    vectors, queries = clustered(8, 6000, 200, noise=0.6)
    chosen = {}
    for dims in (4, DIMS):
        ops.load()
        projection = leading_directions(vectors, dims, seed=0)
        index = build_index(vectors, np.arange(6000), (), clusters=30, seed=0, projection=projection)
        search = Search(index, fingerprint=0, candidates=400, max_candidates=400)
        truth = exact_truth(search, vectors, np.arange(6000), queries, at=100)
        found = calibrate(search, truth, target=0.99, results=100, probes=30)
        assert search.candidates == found.candidates
        assert found.recall == float(measure_recall(search, truth).mean())
        chosen[dims] = found.candidates
    assert chosen[4] == 400
    assert chosen[DIMS] < 300


def test_given_candidates_are_taken_as_they_are() -> None:
    vectors, queries = clustered(9, 1000, 20, noise=0.6)
    search = make_search(vectors, np.arange(1000), clusters=10)
    found = calibrate(search, truth_of(search, vectors, queries), target=0.9, results=AT, candidates=17)
    assert search.candidates == found.candidates == 17


@pytest.mark.parametrize(
    ("factor", "results", "most", "expected"), [(4, 100, 1024, 400), (4, 100, 300, 300), (1.2, 10, 1024, 64)]
)
def test_candidates_for(factor: float, results: int, most: int, expected: int) -> None:
    assert candidates_for(factor, results, most) == expected


@pytest.mark.parametrize(
    ("target", "times", "chosen"),
    [
        (0.95, {}, 300),  # 200 and fewer do not find it
        (0.89, {}, 150),
        (0.89, {150: 5.0, 200: 4.9, 300: 3.0}, 300),
        (0.89, {150: 5.0, 200: 5.2, 300: 1.0}, 150),  # what is slower already ends the search
        (0.99, {}, 400),  # none finds it: the most
    ],
)
def test_the_fastest_candidates_that_find_the_target(
    monkeypatch: pytest.MonkeyPatch, target: float, times: dict[int, float], chosen: int
) -> None:
    vectors, queries = clustered(11, 1000, 20, noise=0.6)
    search = make_search(vectors, np.arange(1000), clusters=10, candidates=400)
    truth = truth_of(search, vectors, queries)
    recalls = {400: 0.9503, 300: 0.9501, 200: 0.9499, 150: 0.9, 120: 0.8, 110: 0.7}  # by candidates
    monkeypatch.setattr(
        "builder.export.calibrate.measure_recall", lambda search, truth: np.full(20, recalls[search.candidates])
    )
    monkeypatch.setattr(
        "builder.export.calibrate.median_milliseconds",
        lambda search, queries: times.get(search.candidates, float(search.candidates)),
    )
    found = calibrate(search, truth, target=target, results=100, probes=3)
    assert (found.candidates, found.recall) == (chosen, pytest.approx(recalls[chosen]))
    assert search.candidates == chosen


def test_exact_rows_are_some_and_not_all() -> None:
    vectors, queries = clustered(10, 6000, 20, noise=0.6)
    search = make_search(vectors, np.arange(6000), clusters=60)
    search.probes = 7
    threads = torch.get_num_threads()
    assert 0 < _exact_rows(search, queries) <= 6000
    assert (search.probes, torch.get_num_threads()) == (7, threads)
    small = make_search(vectors[:3], np.arange(3), clusters=1)
    assert _exact_rows(small, queries) == 3


def test_the_median_time_is_of_single_queries_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = clustered(12, 500, 2 * TIMED_QUERIES, noise=0.6)
    search = make_search(vectors, np.arange(500), clusters=5)
    asked: list[torch.Tensor] = []

    def slow(search: Search, query: torch.Tensor) -> None:
        assert torch.get_num_threads() == 1
        asked.append(query)
        time.sleep(0.001 if len(asked) % 4 else 0.008)

    monkeypatch.setattr("builder.export.calibrate.run", slow)
    threads = torch.get_num_threads()
    assert 1 <= median_milliseconds(search, queries) < 8
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.cat(asked[1:]), queries[:TIMED_QUERIES])  # after one to warm up
