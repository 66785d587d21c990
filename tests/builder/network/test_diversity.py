"""Rules of the last selection within the network, against plain lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from builder import ops
from builder.data.columns import CategoryColumn, NumberColumn, TagsColumn
from builder.export.torchscript import script
from builder.index.build import Index, build_index
from builder.network.diversity import DiverseSelection
from builder.network.items import ItemFeatures
from builder.network.pipeline import Pipeline
from builder.network.rerank import RetrievalScore
from builder.network.search import Search
from builder.network.value import ValueModel
from client import F, compile_filter
from client.hashing import UNKNOWN_KEY
from client.schema import Feature, Schema
from tests.builder.artifacts import exact, keep_at_most, neutral

ITEMS, DIMS, RESULTS, SEED = 200, 6, 20, 6
RNG = np.random.default_rng(SEED)
VECTORS = RNG.normal(size=(ITEMS, DIMS)).astype(np.float32)
VECTORS[7] = 0
AUTHOR = np.where(RNG.random(ITEMS) < 0.1, UNKNOWN_KEY, RNG.integers(-3, 9, ITEMS))
GENRES = [sorted(RNG.permutation(6)[: RNG.integers(0, 4)].tolist()) for _ in range(ITEMS)]
COLUMNS = (
    CategoryColumn(Feature("author", "category", "integer"), AUTHOR),
    NumberColumn(Feature("price", "number", filter=True), np.arange(ITEMS, dtype=np.float64)),
    TagsColumn(
        Feature("genres", "tags", "integer"),
        np.cumsum([0, *map(len, GENRES)]),
        np.array([genre for of_item in GENRES for genre in of_item]),
    ),
    TagsColumn(Feature("nothing", "tags", "integer"), np.zeros(ITEMS + 1, np.int64), np.empty(0, np.int64)),
)
VALUES = {
    item: {
        "author": [] if author == UNKNOWN_KEY else [str(author)],
        "genres": list(map(str, genres)),
        "nothing": [],
    }
    for item, (author, genres) in enumerate(zip(AUTHOR.tolist(), GENRES, strict=True))
}
OF = Schema("t", (), tuple(column.feature for column in COLUMNS), ("score",), 0, DIMS, RESULTS, ITEMS, 3)
QUERIES = RNG.normal(size=(10, DIMS)).astype(np.float32)


@pytest.fixture(scope="module")
def index() -> Index:
    ops.load()
    return build_index(VECTORS, np.arange(ITEMS), COLUMNS, clusters=3, seed=0)


def network(index: Index, at_most: dict[str, int] | None = None, mmr: float | None = None) -> Any:
    search = Search(index, fingerprint=OF.fingerprint, probes=3, candidates=ITEMS, max_candidates=ITEMS)
    diversity = None if at_most is None else DiverseSelection(index.forward, index.vectors, at_most=at_most, mmr=mmr)
    value, items = ValueModel(["score"]), ItemFeatures(index.forward)
    return script(Pipeline(None, search, RetrievalScore(), value, items, results=RESULTS, diversity=diversity), OF)


def lists(outputs: tuple[torch.Tensor, ...]) -> list[list[int]]:
    return [ids[:count].tolist() for ids, count in zip(outputs[0], outputs[3][:, 0].tolist(), strict=True)]


@pytest.mark.parametrize(
    "rules",
    [{"author": 1}, {"author": 2}, {"genres": 3}, {"genres": 2, "author": 3}, {"author": 50}, {"nothing": 1}, {}],
    ids=str,
)
def test_at_most(index: Index, rules: dict[str, int]) -> None:
    """Every item is a candidate, so that what is found can only be what the rules leave of the whole ranking."""
    outputs = network(index, rules)(**neutral(len(QUERIES), torch.from_numpy(QUERIES)))
    for query, found in zip(QUERIES, lists(outputs), strict=True):
        expected = keep_at_most(exact(VECTORS, query, ITEMS), VALUES, rules, RESULTS)
        assert found == expected, f"seed {SEED}"
    assert torch.equal(outputs[1], outputs[2][:, :, 0])
    if rules == {"author": 1}:  # 12 authors, and some 20 items of none
        without = int((AUTHOR == UNKNOWN_KEY).sum())
        assert len(lists(outputs)[0]) == min(RESULTS, 12 + without)


def test_fewer_results_where_no_other_item_fits(index: Index) -> None:
    """Filters come first: of the first 30 items, one of each author is all there is."""
    program = torch.from_numpy(compile_filter((F.price < 30) & ~(F.price == 4), OF))[None]
    inputs = {**neutral(1, torch.from_numpy(QUERIES[:1])), "filter": program, "exclude": torch.tensor([[2, -1]])}
    ranked = [item for item in exact(VECTORS, QUERIES[0], ITEMS) if item < 30 and item not in (2, 4)]
    outputs = network(index, {"author": 1, "genres": 2})(**inputs)
    expected = keep_at_most(ranked, VALUES, {"author": 1, "genres": 2}, RESULTS)
    assert len(expected) < RESULTS
    assert lists(outputs) == [expected]
    assert outputs[0][0, len(expected) :].eq(-1).all()
    assert torch.isneginf(outputs[1][0, len(expected) :]).all()


def test_a_bad_request_gets_nothing(index: Index) -> None:
    inputs = neutral(3, torch.from_numpy(QUERIES[:3]))
    served = network(index, {"author": 1}, 0.5)
    good = served(**inputs)
    inputs["exclude"] = torch.tensor([[-1], [-2], [-1]])
    mixed = served(**inputs)
    assert (mixed[3][1].item(), mixed[0][1].tolist()) == (0, [-1] * RESULTS)
    for one, other in zip(good, mixed, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])


def marginal_relevance(query: np.ndarray, mmr: float, rules: dict[str, int]) -> list[int]:
    """Maximal marginal relevance in float64 from the vectors themselves."""
    vectors = VECTORS.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / np.where(lengths > 0, lengths, 1)[:, None]
    scores = vectors @ query
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    chosen: list[int] = []
    while len(chosen) < RESULTS:
        fits = [
            i
            for i in range(ITEMS)
            if i not in chosen and len(keep_at_most([*chosen, i], VALUES, rules, ITEMS)) > len(chosen)
        ]
        nearest = (units @ units[chosen].T).max(1) if chosen else np.zeros(ITEMS)
        chosen.append(max(fits, key=lambda i: mmr * relevance[i] - (1 - mmr) * nearest[i]))
    return chosen


@pytest.mark.parametrize("mmr", [0.8, 0.4])
@pytest.mark.parametrize("rules", [{}, {"author": 2, "genres": 6}], ids=str)
def test_maximal_marginal_relevance(index: Index, mmr: float, rules: dict[str, int]) -> None:
    outputs = network(index, rules, mmr)(**neutral(len(QUERIES), torch.from_numpy(QUERIES)))
    plain = [exact(VECTORS, query, RESULTS) for query in QUERIES]
    found = lists(outputs)
    assert found == [marginal_relevance(query, mmr, rules) for query in QUERIES], f"seed {SEED}"
    assert all(one != other for one, other in zip(found, plain, strict=True))
    for query, items, scores in zip(QUERIES, found, outputs[1].numpy(), strict=True):
        np.testing.assert_allclose(scores, VECTORS[items] @ query, atol=5e-3)  # values, in the order chosen


def test_relevance_alone_needs_no_lengths(index: Index) -> None:
    inputs = neutral(len(QUERIES), torch.from_numpy(QUERIES))
    assert lists(network(index, {}, 1.0)(**inputs)) == lists(network(index)(**inputs))
    assert len(DiverseSelection(index.forward, index.vectors, at_most={}, mmr=1.0).inverse_lengths) == 0


def test_without_rules_nothing_is_added(index: Index) -> None:
    plain, ruled = network(index), network(index, {"author": 2})
    added = {name for name, _ in ruled.named_buffers()} - {name for name, _ in plain.named_buffers()}
    assert added == {f"diversity.{name}" for name in ("group_offsets", "groups", "most", "inverse_lengths")}
    assert "select_diverse" not in str(plain.inlined_graph)
    assert "silvertriton::select(" in str(plain.inlined_graph)
    assert "select_diverse" in str(ruled.inlined_graph)


def test_the_groups_of_rows(index: Index) -> None:
    rules = DiverseSelection(index.forward, index.vectors, at_most={"genres": 3, "nothing": 1, "author": 2}, mmr=0.5)
    authors = sorted(set(AUTHOR.tolist()) - {UNKNOWN_KEY})
    assert rules.most.tolist() == [3] * 6 + [2] * len(authors)
    offsets = rules.group_offsets.tolist()
    for row, item in enumerate(index.ids.tolist()):
        groups = rules.groups[offsets[row] : offsets[row + 1]].tolist()
        author = [] if item < 0 or AUTHOR[item] == UNKNOWN_KEY else [6 + authors.index(int(AUTHOR[item]))]
        assert groups == ([] if item < 0 else GENRES[item]) + author
        length = 0.0 if item < 0 else float(np.linalg.norm(index.vectors[row].double()))
        assert rules.inverse_lengths[row].item() == pytest.approx(1 / length if length else 0.0, rel=1e-6)
