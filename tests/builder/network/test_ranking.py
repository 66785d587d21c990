"""Given items get the scores that the search gives them, scripted as it is served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builder import ops
from builder.data.columns import CategoryColumn, NumberColumn
from builder.export.torchscript import script
from builder.formula import parse_formula
from builder.index.build import build_index
from builder.network.items import ItemFeatures
from builder.network.neighbours import Neighbours
from builder.network.pipeline import Pipeline
from builder.network.ranking import RANKING_OUTPUTS, Ranking, ranking_names
from builder.network.rerank import Reranker, Reranking, RetrievalScore
from builder.network.search import Search
from builder.network.value import ValueModel
from builder.network.vocabulary import Vocabulary
from client.schema import Feature, Schema, Status
from tests.builder.artifacts import neutral

SEED, ITEMS, DIMS, RESULTS, AT_ONCE = 6, 300, 6, 40, 50
RNG = np.random.default_rng(SEED)
VECTORS = RNG.normal(size=(ITEMS, DIMS)).astype(np.float32)
IDS = RNG.permutation(10 * ITEMS)[:ITEMS].astype(np.int64)  # neither sorted nor dense
COLUMNS = (
    NumberColumn(Feature("weight", "number"), RNG.normal(size=ITEMS)),
    CategoryColumn(Feature("colour", "category", "integer"), RNG.integers(0, 3, ITEMS)),
    NumberColumn(Feature("price", "number"), np.where(RNG.random(ITEMS) < 0.2, np.nan, RNG.normal(size=ITEMS))),
)
NAN = float("nan")
RERANKERS = ("mlp", "mol", "graph")
KINDS = ("score", "formula", *RERANKERS)


def schema(user: tuple[Feature, ...] = (), history: int = 0, *, tasks: int = 1, tower: bool = False) -> Schema:
    names = tuple(f"task{t}" for t in range(tasks))
    features = tuple(column.feature for column in COLUMNS)
    return Schema("t", user, features, names, history, 0 if tower else DIMS, RESULTS, AT_ONCE, 3)


def reranking(kind: Any, index: Any, tasks: int) -> Reranking:
    """As after training: no layer is zero any more."""
    torch.manual_seed(SEED)
    items = torch.arange(ITEMS, dtype=torch.int32)
    graph = Neighbours(torch.stack([(items + 1) % ITEMS, (items + 7) % ITEMS], dim=1), torch.rand(ITEMS, 2), history=5)
    reranker = Reranker(kind, COLUMNS, np.arange(ITEMS), dims=DIMS, tasks=tasks, hidden=16, neighbours=graph)
    for parameter in reranker.parameters():
        nn.init.normal_(parameter, std=0.3)
    kept = reranker.keep(VECTORS)
    item_of_row = torch.from_numpy(index.layout.item_of_row)
    of_rows = torch.where((item_of_row >= 0).unsqueeze(1), kept[item_of_row.clamp(min=0)], 0)
    row_of_item = torch.from_numpy(index.layout.row_of_item.astype(np.int32))
    by_id = Neighbours(row_of_item[graph.rows.long()], graph.weights, history=5)
    return Reranking(reranker.scorer, of_rows, by_id, Vocabulary(np.sort(IDS)))


def networks(of: Schema, kind: str = "score", tower: nn.Module | None = None) -> tuple[Any, Any]:
    """The retrieval network and its ranking network."""
    ops.load()
    index = build_index(VECTORS, IDS, COLUMNS, clusters=3, seed=0)
    search = Search(index, fingerprint=of.fingerprint, probes=3, candidates=AT_ONCE, max_candidates=AT_ONCE)
    rerank = reranking(kind, index, len(of.tasks)) if kind in RERANKERS else RetrievalScore()
    formula = parse_formula("exp(task0 / 4) + 2 * price", {*of.tasks, "price", "weight"}) if kind == "formula" else None
    items = ItemFeatures(index.forward, {"price"} if formula else ())
    value = ValueModel(of.tasks, formula, items.used)
    pipeline = Pipeline(tower, search, rerank, value, items, results=RESULTS)
    return script(pipeline, of), script(Ranking(pipeline), of)


def given(items: Any, query: Tensor | None = None, weight: float = NAN, tasks: int = 1) -> dict[str, Tensor]:
    items = torch.as_tensor(items)
    inputs = {} if query is None else {"query": query}
    return {**inputs, "items": items, "task_weights": torch.full((len(items), tasks), weight)}


@pytest.mark.parametrize("weight", [NAN, -1.7])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_retrieved_ranks_with_the_same_scores(kind: str, weight: float) -> None:
    of = schema(tasks=2 if kind in RERANKERS else 1)
    retrieval, ranking = networks(of, kind)
    queries = torch.from_numpy(np.random.default_rng(1).normal(size=(9, DIMS)).astype(np.float32))
    asked = {**neutral(9, queries), "task_weights": torch.full((9, len(of.tasks)), weight)}
    found, values, tasks, count, _, _ = retrieval(**asked)
    assert count.tolist() == [[RESULTS]] * 9
    order = torch.randperm(RESULTS, generator=torch.Generator().manual_seed(SEED))
    scores, task_scores, known, status = ranking(**given(found[:, order], queries, weight, len(of.tasks)))
    # A reranker multiplies matrices, whose sums may depend on how many items stand side by side.
    tolerance = 1e-6 if kind in RERANKERS else 0.0
    torch.testing.assert_close(scores, values[:, order], rtol=tolerance, atol=tolerance, equal_nan=True)
    torch.testing.assert_close(task_scores, tasks[:, order], rtol=tolerance, atol=tolerance)
    assert known.tolist() == [[1] * RESULTS] * 9
    assert status.tolist() == [[0]] * 9
    assert kind != "formula" or values.isnan().any()  # an unknown price is compared too


def test_every_item_in_the_order_given_against_brute_force() -> None:
    query = torch.from_numpy(np.random.default_rng(2).normal(size=(1, DIMS)).astype(np.float32))
    of = schema()
    scores, tasks, known, status = networks(of)[1](**given(IDS[None], query))  # six times what goes at once
    np.testing.assert_allclose(scores[0], VECTORS.astype(np.float64) @ query[0].numpy(), rtol=2e-3, atol=2e-3)
    assert torch.equal(tasks[:, :, 0], scores)
    assert known.all()
    assert [tensor.dtype for tensor in (scores, tasks, known, status)] == [torch.float32] * 2 + [torch.int32] * 2
    assert len(RANKING_OUTPUTS) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_ids_and_padding_get_nothing_and_change_nothing(kind: str) -> None:
    unknown = [int(x) for x in range(10 * ITEMS) if x not in set(IDS.tolist())][:3]
    items = [[int(IDS[4]), unknown[0], -1, int(IDS[4]), 2**63 - 1, unknown[1], int(IDS[0])]]
    query = torch.ones(1, DIMS)
    ranking = networks(schema(), kind)[1]
    scores, tasks, known, status = ranking(**given(items, query))
    assert known.tolist() == [[1, 0, 0, 1, 0, 0, 1]]
    assert scores[known == 0].tolist() == tasks[known == 0].flatten().tolist() == [-np.inf] * 4
    assert status.tolist() == [[0]]
    alone = ranking(**given(IDS[[4, 4, 0]][None], query))
    torch.testing.assert_close(scores[known == 1][None], alone[0], rtol=1e-6, atol=1e-6, equal_nan=True)
    nothing = ranking(**given([[-1]], query))
    assert (nothing[0].tolist(), nothing[2].tolist(), nothing[3].tolist()) == ([[-np.inf]], [[0]], [[0]])


class SumTower(nn.Module):
    def forward(self, features: list[Tensor], history: Tensor) -> Tensor:
        query = torch.ones(history.size(0), 6)
        for feature in features:
            query[:, 0] += torch.nan_to_num(feature[:, 0].float())
        query[:, 1] = history.clamp(min=0).sum(1).float()
        return query


USER = (Feature("age", "number"), Feature("status", "number"))


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("age", float("inf"), Status.USER_FEATURE),
        ("history", -2, Status.HISTORY),
        ("task_weights", float("-inf"), Status.TASK_WEIGHTS),
        ("items", -2, Status.ITEMS),
        ("items", -(2**63), Status.ITEMS),
    ],
)
def test_a_bad_row_is_empty_and_its_neighbours_are_not_touched(name: str, value: float, status: Status) -> None:
    of = schema(USER, 3, tower=True)
    ranking = networks(of, tower=SumTower())[1]
    inputs = {
        "age": torch.tensor([[1.0], [2.0], [3.0]]),
        "status": torch.zeros(3, 1),
        "history": torch.tensor([[-1, 1], [-1, 2], [-1, -1]]),
        **given(np.stack([IDS[:5]] * 3)),
    }
    good = ranking(**inputs)
    assert good[3].tolist() == [[0]] * 3
    inputs[name] = inputs[name].clone()
    inputs[name][1] = value
    mixed = ranking(**inputs)
    assert mixed[3].tolist() == [[0], [int(status)], [0]]
    assert torch.isneginf(mixed[0][1]).all()
    assert torch.isneginf(mixed[1][1]).all()
    assert mixed[2][1].tolist() == [0] * 5
    for one, other in zip(good, mixed, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_query_that_is_no_number_is_a_status(kind: str, value: float) -> None:
    query = torch.ones(2, DIMS)
    query[0, 3] = value
    scores, _, known, status = networks(schema(), kind)[1](**given(np.stack([IDS[:4]] * 2), query))
    assert status.tolist() == [[Status.QUERY], [0]]
    assert torch.isneginf(scores[0]).all()
    assert known.tolist() == [[0] * 4, [1] * 4]


def test_the_first_of_several_faults_is_reported() -> None:
    of = schema(USER, 3, tower=True)
    inputs = {
        "age": torch.tensor([[float("inf")], [NAN], [NAN]]),
        "status": torch.zeros(3, 1),
        "history": torch.tensor([[-5], [-5], [0]]),
        **given([[-2], [-2], [-2]], weight=float("inf")),
    }
    status = networks(of, tower=SumTower())[1](**inputs)[3]
    assert status.tolist() == [[Status.USER_FEATURE], [Status.HISTORY], [Status.TASK_WEIGHTS]]


def test_arguments_and_tensors_are_those_of_the_retrieval_network() -> None:
    of = schema(USER, 0, tower=True)
    retrieval, ranking = networks(of, "mlp", SumTower())
    assert ranking_names(of) == ("age", "status", "items", "task_weights")
    assert [argument.name for argument in ranking.forward.schema.arguments[1:]] == list(ranking_names(of))
    assert ranking_names(schema()) == ("query", "items", "task_weights")
    for name in ("vectors", "scales", "item_rows"):
        assert getattr(ranking, name).data_ptr() == getattr(retrieval.search, name).data_ptr(), name
    assert ranking.rerank.items.data_ptr() == retrieval.rerank.items.data_ptr()
    named = {name.split(".")[0] for name, _ in ranking.named_buffers()}
    assert named == {
        "vectors",
        "scales",
        "item_rows",
        "row_ids",
        "ids",
        "rerank",
        "value",
    }  # no codes, no filters, no columns
