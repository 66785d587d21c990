"""A search of clusters, candidates and rules in plain Python behind the fake server; every step can be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import Contract, Feature, Request, Rules, Schema, matches
from client._fake_network import FakeNetwork, Tensors
from client.testing import FakeServer

CLUSTERS, GROUPS, DEFAULT_PROBES, DEFAULT_CANDIDATES = 8, 4, 3, 12
SCHEMA = Schema(
    name="clustered",
    user_features=(),
    item_features=(Feature("group", "category", "integer", filter=True), Feature("year", "number", filter=True)),
    tasks=("value",),
    history_length=0,
    query_dims=1,
    max_results=10,
    max_candidates=30,
    clusters=CLUSTERS,
)


@dataclass
class Found:
    """The steps of one search: ids of clusters, and of items best first."""

    clusters: list[int]
    passing: list[int]
    candidates: list[int]
    chosen: list[int]


class Clustered(FakeNetwork):
    """Items with a `cluster`, a score `found_by` that finds candidates and a final `score` that orders them.

    `at_most` of each group; `mmr` below 1 prefers items whose ids are far from those that are chosen. Scores are few,
    so that many are equal.
    """

    def __init__(self, random: Random, at_most: int | None = None, mmr: float = 1.0, schema: Schema = SCHEMA) -> None:
        ids = random.sample(range(500), 80)
        self.items = {
            item: {"item_id": item, "group": random.randrange(GROUPS), "year": random.randrange(1990, 2000)}
            for item in ids
        }
        self.cluster = {item: random.randrange(CLUSTERS) for item in ids}
        self.found_by = {item: random.randrange(40) / 8 for item in ids}
        self.score = {item: self.found_by[item] + random.choice([0, 0, 0.25, 2, -1]) for item in ids}
        self.at_most, self.mmr = at_most, mmr
        rules = None
        if at_most is not None or mmr < 1:
            rules = Rules((() if at_most is None else (("group", at_most),)), mmr)
        self.contract = Contract(rules=rules)
        super().__init__(schema, list(self.items.values()), [self.score[item] for item in ids], None, self.contract)

    def search(self, passing: set[int], excluded: set[int], probes: int, candidates: int) -> Found:
        most = self.schema.max_candidates
        probes, candidates = probes or DEFAULT_PROBES, candidates or min(DEFAULT_CANDIDATES, most)
        allowed = sorted(passing - excluded)
        clusters = [c for c in range(CLUSTERS) if any(self.cluster[item] == c for item in allowed)]
        if len(allowed) > candidates:
            read, clusters = clusters, []
            while read and not (len(clusters) >= probes and self._count(allowed, clusters) >= candidates):
                clusters.append(read.pop(0))
        read_items = [item for item in allowed if self.cluster[item] in clusters]
        found = sorted(read_items, key=lambda item: (-self.found_by[item], item))[:candidates]
        return Found(clusters, allowed, found, self.choose(found))

    def choose(self, candidates: list[int]) -> list[int]:
        left = sorted(candidates, key=lambda item: (-self.score[item], item))
        chosen: list[int] = []
        while len(chosen) < SCHEMA.max_results:
            fitting = [item for item in left if self._fits(item, chosen)]
            if not fitting:
                return chosen
            best = fitting[0]
            if self.mmr < 1:
                best = max(fitting, key=lambda item: self._marginal(item, chosen, candidates))
            chosen.append(best)
            left.remove(best)
        return chosen

    def retrieve(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        outputs = super().retrieve(inputs)
        for row in range(len(outputs["count"])):
            if outputs["status"][row]:
                continue
            passing = self._programs.passing(inputs["filter"][row])
            probes, candidates = inputs["search"][row].tolist()
            found = self.search(
                set(self._ids[passing].tolist()), set(inputs["exclude"][row].tolist()), probes, candidates
            )
            count = len(found.chosen)
            outputs["item_ids"][row] = [*found.chosen, *[-1] * (SCHEMA.max_results - count)]
            outputs["scores"][row] = -np.inf
            outputs["scores"][row, :count] = [self.score[item] for item in found.chosen]
            outputs["task_scores"][row, :, 0] = outputs["scores"][row]
            outputs["count"][row] = count
            read = self._count(found.passing, found.clusters)
            outputs["stats"][row] = len(found.clusters), len(found.passing), read, read == len(found.passing)
        return outputs

    def asked(self, request: Request, **instead: Any) -> Found:
        """The search of a request, with other probes, candidates or exclusions."""
        condition = request.filter
        passing = {i for i, item in self.items.items() if condition is None or matches(condition, item, SCHEMA)}
        settings = {"probes": request.probes or 0, "candidates": request.candidates or 0, **instead}
        return self.search(passing, set(request.exclude or ()), **settings)

    def _count(self, items: list[int], clusters: list[int]) -> int:
        return sum(self.cluster[item] in clusters for item in items)

    def _fits(self, item: int, chosen: list[int]) -> bool:
        group = self.items[item]["group"]
        return self.at_most is None or sum(self.items[one]["group"] == group for one in chosen) < self.at_most

    def _marginal(self, item: int, chosen: list[int], candidates: list[int]) -> float:
        values = [self.score[one] for one in candidates]
        relevance = (self.score[item] - min(values)) / ((max(values) - min(values)) or 1)
        nearest = max((1 - abs(item - one) / 500 for one in chosen), default=0.0)
        return self.mmr * relevance - (1 - self.mmr) * nearest


class ClusteredServer(FakeServer):
    """A fake server of such a network."""

    def __init__(self, network: Clustered) -> None:
        super().__init__(network.schema, [], contract=network.contract)
        self._network = network
