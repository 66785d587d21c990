"""Explanations by the stock server against the raw vectors and attributes."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from builder import ops
from builder.serving.server import StockServer
from client import Condition, Explanation, F, Request, RetrievalClient, Schema, item_in, matches
from tests.end_to_end.conftest import COLOURS, GENRES, ITEMS, RESULTS, RULES, SETTINGS, Shop

pytestmark = pytest.mark.server

REQUESTS = 25


@pytest.fixture(scope="module")
def whole(diverse: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    """Artifacts that read few clusters where they are asked to: of so few items they else read all of them."""
    ops.load()
    repository = tmp_path_factory.mktemp("explained") / "repository"
    shutil.copytree(diverse.folder / "repository", repository)
    for model in SETTINGS:
        path = str(repository / model / "1" / "model.pt")
        network = torch.jit.load(path)
        network.search.exact_rows = 0
        network.save(path)
    with StockServer(repository, log=repository.parent / "server.log") as server:
        yield server


def random_filter(random: Random, depth: int) -> Condition:
    if depth and random.random() < 0.7:
        left, right = random_filter(random, depth - 1), random_filter(random, depth - 1)
        return random.choice([left & right, left | right, ~left])
    return random.choice(
        [
            F.colour.any_of(*random.sample(COLOURS, 2)),
            F.genres.any_of(*random.sample(GENRES, 2)),
            F.genres.all_of(*random.sample(GENRES[:4], 2)),
            F.year >= random.randrange(1950, 2020),
            F.colour.is_unknown(),
            item_in(random.sample(range(10 * ITEMS), 800)),
        ]
    )


def random_request(random: Random, shop: Shop, schema: Schema) -> Request:
    return Request(
        query=random.choice(shop.queries),
        filter=random_filter(random, random.randrange(4)) if random.random() < 0.6 else None,
        exclude=random.sample(shop.ids.tolist(), 300) if random.random() < 0.3 else None,
        k=random.choice([None, 1, 5, 20]),
        probes=random.choice([None, None, 1, 2, 3, schema.clusters]),
        candidates=random.choice([None, None, 3, 30, schema.max_candidates]),
    )


class Truth:
    """What a request and an item mean by the raw data, and how results are asked for."""

    def __init__(self, shop: Shop, client: RetrievalClient, request: Request, rules: dict[str, int]) -> None:
        self.shop, self.client, self.request, self.rules = shop, client, request, rules
        self.schema = client.schema
        self.k = request.k or RESULTS
        self.rows = {item: row for row, item in enumerate(shop.ids.tolist())}
        self.scores = (shop.vectors.astype(np.float64) @ np.asarray(request.query, np.float64)).tolist()
        self.passing = [request.filter is None or matches(request.filter, item, self.schema) for item in shop.items]
        self.results = client.retrieve_many([request])[0].item_ids.tolist()

    def allowed(self) -> list[int]:
        """Ids of the items that may be returned, best first."""
        excluded = set(self.request.exclude or [])
        allowed = [item for item, row in self.rows.items() if self.passing[row] and item not in excluded]
        return sorted(allowed, key=lambda item: (-self.scores[self.rows[item]], item))

    def asked(self, explanation: Explanation) -> list[int]:
        """Ids of all results of the search that decided."""
        probes = explanation.probes or self.request.probes
        candidates = explanation.candidates or self.request.candidates
        (result,) = self.client.retrieve_many([replace(self.request, k=None, probes=probes, candidates=candidates)])
        return result.item_ids.tolist()

    def shares(self, item: int, before: list[int]) -> bool:
        """Whether as many as a rule allows share a value with the item."""

        def values(one: int) -> list[tuple[str, str]]:
            attributes = self.shop.items[self.rows[one]]
            return [("colour", attributes["colour"])] * bool(attributes["colour"]) + [
                ("genres", genre) for genre in attributes["genres"]
            ]

        taken = Counter(value for one in before for value in values(one))
        return any(taken[value] >= self.rules[value[0]] for value in values(item))

    def check(self, explanation: Explanation, item: int, tolerance: float, spread: bool) -> None:
        reasons, outcome, k = list(explanation.reasons), explanation.outcome, self.k
        excluded = item in (self.request.exclude or [])
        if item not in self.rows:
            assert reasons == ["unknown_item", *(["excluded"] if excluded else [])]
            return
        row = self.rows[item]
        assert explanation.score == pytest.approx(self.scores[row], abs=tolerance)
        assert (outcome == "returned") == (item in self.results)
        assert (reasons == []) == (outcome == "returned")
        if outcome == "returned":
            assert self.results[(explanation.position or 0) - 1] == item
            return
        assert ("excluded" in reasons, "filtered" in reasons) == (excluded, not self.passing[row])
        assert reasons[0] == outcome
        assert not any(matches(part, self.shop.items[row], self.schema) for part in explanation.failing)
        found = self.asked(explanation)
        if "outranked" in reasons and not spread:
            last = found[k - 1]
            assert explanation.kth_score == pytest.approx(self.scores[self.rows[last]], abs=tolerance)
            assert explanation.gap == pytest.approx(self.scores[self.rows[last]] - self.scores[row], abs=2 * tolerance)
            assert item not in found[:k]
        if outcome in ("not_probed", "not_a_candidate") and explanation.position is not None:
            assert found.index(item) + 1 == explanation.position <= k
            assert (explanation.candidates is None) == (outcome == "not_probed")
        if outcome == "not_a_candidate" and not spread and tolerance < 1e-3:  # codes find what vectors would
            assert self.allowed().index(item) >= (self.request.candidates or self.schema.max_candidates)
        if outcome == "diversity" and not spread:
            own = (-self.scores[row], item)
            assert self.shares(item, [one for one in found[:k] if (-self.scores[self.rows[one]], one) < own])
        if outcome == "diversity" and spread:
            assert item not in found[:k]
            assert explanation.certain == (
                len(self.allowed()) <= (explanation.candidates or self.request.candidates or 0)
            )


def explain_all(
    client: RetrievalClient, shop: Shop, seed: int, *, tolerance: float, rules: dict[str, int], spread: bool = False
) -> Counter[str]:
    random, outcomes = Random(seed), Counter[str]()
    for _ in range(REQUESTS):
        request = random_request(random, shop, client.schema)
        truth = Truth(shop, client, request, rules)
        ranked = truth.allowed()
        near = ranked[max(0, truth.k - 4) : truth.k + 8]  # at the edge
        missed = [item for item in ranked[: truth.k] if item not in truth.results]
        items = [
            *random.sample(near, min(4, len(near))),
            *missed[:3],
            *ranked[:2],
            *random.sample(shop.ids.tolist(), 3),
        ]
        for item in [*items, *list(request.exclude or [])[:1], random.randrange(10 * ITEMS)]:
            explanation = client.explain(item, request)
            try:
                truth.check(explanation, item, tolerance, spread)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {item}, {request}: {explanation!r}: {explanation}") from error
            outcomes[explanation.outcome] += 1
    return outcomes


COMMON = {"returned", "unknown_item", "excluded", "filtered", "outranked"}


def test_explanations_of_a_usual_artifact(client: RetrievalClient, shop: Shop) -> None:
    outcomes = explain_all(client, shop, 1, tolerance=0.03, rules={})
    assert outcomes.keys() >= COMMON, outcomes


@pytest.mark.parametrize(
    ("model", "rules", "expected"),
    [
        ("plain", {}, COMMON | {"not_probed", "not_a_candidate"}),
        ("at_most", RULES, COMMON | {"not_probed", "not_a_candidate", "diversity"}),
        ("mmr", RULES, {"returned", "filtered", "outranked", "diversity"}),
    ],
)
def test_explanations_of_whole_numbers_are_exact(
    whole: StockServer, diverse: Shop, model: str, rules: dict[str, int], expected: set[str]
) -> None:
    with RetrievalClient(whole.url, model=model, timeout=10.0) as client:
        outcomes = explain_all(client, diverse, 2, tolerance=1e-4, rules=rules, spread=model == "mmr")
    assert outcomes.keys() >= expected, outcomes
