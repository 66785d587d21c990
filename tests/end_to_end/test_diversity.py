"""Artifacts with rules of the last selection, served by the stock server, against plain lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from builder import ops
from builder.serving.server import StockServer
from client import Condition, F, RetrievalClient, matches
from tests.builder.artifacts import keep_at_most, neutral
from tests.end_to_end.conftest import RESULTS, RULES, Shop

pytestmark = pytest.mark.server

FILTERS = [
    None,
    F.year >= 1990,
    F.genres.any_of("Drama", "War") & ~F.colour.is_in(["red"]),
    F.colour.is_unknown() | F.genres.is_unknown(),
    F.genres.any_of("Rare"),
    F.genres.any_of("nobody has this"),
]


@pytest.fixture(scope="module")
def server(diverse: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with StockServer(diverse.folder / "repository", log=log) as server:
        yield server


def values_of(shop: Shop) -> dict[int, dict[str, list[str]]]:
    return {
        item["sku"]: {"colour": [item["colour"]] if item["colour"] else [], "genres": item["genres"]}
        for item in shop.items
    }


@pytest.mark.parametrize("condition", FILTERS, ids=str)
def test_lists_obey_the_rules_and_equal_the_reference(
    server: StockServer, diverse: Shop, condition: Condition | None
) -> None:
    values = values_of(diverse)
    with RetrievalClient(server.url, model="at_most", timeout=10.0) as client:
        schema = client.schema
        passing = np.array([condition is None or matches(condition, item, schema) for item in diverse.items])
        passed_over = 0
        for query in diverse.queries:
            best = diverse.exact(query, passing, 3)
            result = client.retrieve(query=query, filter=condition, probes=schema.clusters, exclude=best)
            candidates = [item for item in diverse.exact(query, passing, 4 * RESULTS + 3) if item not in best]
            expected = keep_at_most(candidates[: 4 * RESULTS], values, RULES, RESULTS)
            assert result.item_ids.tolist() == expected
            assert result.stats.rows_passing == passing.sum() - len(best)
            shorter = client.retrieve(query=query, filter=condition, probes=schema.clusters, exclude=best, k=7)
            assert shorter.item_ids.tolist() == expected[:7]
            passed_over += expected != candidates[: len(expected)]
        assert passed_over or len(candidates) < 3


def test_more_candidates_fill_a_list(server: StockServer, diverse: Shop) -> None:
    values, everything = values_of(diverse), np.ones(len(diverse.ids), dtype=bool)
    with RetrievalClient(server.url, model="at_most", timeout=10.0) as client:
        most = client.schema.max_candidates
        for query in diverse.queries[:10]:
            result = client.retrieve(query=query, probes=client.schema.clusters, candidates=most)
            assert result.item_ids.tolist() == keep_at_most(
                diverse.exact(query, everything, most), values, RULES, RESULTS
            )
            assert result.count >= client.retrieve(query=query, probes=client.schema.clusters).count


def test_marginal_relevance_served_equals_the_network_in_process(server: StockServer, diverse: Shop) -> None:
    ops.load()
    path: Path = diverse.folder / "repository" / "mmr" / "1" / "model.pt"
    inputs = neutral(len(diverse.queries), torch.from_numpy(diverse.queries))
    with torch.inference_mode():
        item_ids, scores, _, counts, status, _ = torch.jit.load(str(path))(**inputs)
    assert status.sum() == 0
    values = values_of(diverse)
    with RetrievalClient(server.url, model="mmr", timeout=10.0) as client:
        for row, query in enumerate(diverse.queries):
            result = client.retrieve(query=query)
            found = result.item_ids.tolist()
            assert found == item_ids[row, : int(counts[row])].tolist()
            np.testing.assert_array_equal(result.scores, scores[row, : int(counts[row])].numpy())
            assert keep_at_most(found, values, RULES, RESULTS) == found
            assert (np.diff(result.scores) > 0).any()  # in the order chosen
