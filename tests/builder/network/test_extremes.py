"""What a row of data can hold at most, and what it cannot: nothing is thrown, and each row has its own status.

A request that throws takes its whole batch along, so every value that the types of the inputs allow is tried, alone and
beside others, through networks scripted as they are served. Programs of filters have tests, and a fuzzer, of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from builder.data.columns import CategoryColumn, NumberColumn
from builder.network.history import AttentionPooling, MeanPooling
from builder.network.pipeline import OUTPUT_NAMES
from builder.network.ranking import RANKING_OUTPUTS
from builder.network.towers import UserTower
from client.hashing import UNKNOWN_KEY
from client.schema import Feature, Status
from tests.builder.network.test_ranking import DIMS, IDS, SEED, networks, schema

USER = (Feature("a", "category", "integer"), Feature("b", "number"))
LENGTH, READ = 4, 5  # of a history: by the tower, and by the graph of the rerankers
INT32, INT64, FLOAT32 = torch.iinfo(torch.int32), torch.iinfo(torch.int64), torch.finfo(torch.float32)
NAN, INF = float("nan"), float("inf")

# What a row differs in from the neutral one, and its status.
ROWS: list[tuple[dict[str, Any], Status]] = [
    ({}, Status.OK),
    ({"a": UNKNOWN_KEY}, Status.OK),
    ({"a": INT64.max}, Status.OK),
    ({"a": INT64.min + 1}, Status.OK),
    ({"a": 5, "b": 2.0}, Status.OK),
    ({"b": FLOAT32.max}, Status.OK),
    ({"b": FLOAT32.min}, Status.OK),
    ({"b": 1e-45}, Status.OK),
    ({"b": -0.0}, Status.OK),
    ({"b": INF}, Status.USER_FEATURE),
    ({"b": -INF}, Status.USER_FEATURE),
    ({"history": [INT64.max] * 8}, Status.OK),
    ({"history": [int(item) for item in IDS[:8]]}, Status.OK),
    ({"history": [int(IDS[0]), -1, 0, -1, -1, int(IDS[1]), -1, 12345678901]}, Status.OK),
    ({"history": [-1] * 7 + [-2]}, Status.HISTORY),
    ({"history": [INT64.min] * 8}, Status.HISTORY),
    ({"exclude": [INT64.max] * 8}, Status.OK),
    ({"exclude": [int(IDS[0])] * 8}, Status.OK),
    ({"exclude": [INT64.min] + [-1] * 7}, Status.EXCLUDE),
    ({"task_weights": FLOAT32.max}, Status.OK),
    ({"task_weights": FLOAT32.min}, Status.OK),
    ({"task_weights": 1e-45}, Status.OK),
    ({"task_weights": 0.0}, Status.OK),
    ({"task_weights": INF}, Status.TASK_WEIGHTS),
    ({"search": [INT32.max, 0]}, Status.SEARCH),
    ({"search": [INT32.min, 0]}, Status.SEARCH),
    ({"search": [0, INT32.max]}, Status.SEARCH),
    ({"search": [0, INT32.min]}, Status.SEARCH),
    ({"search": [3, 1]}, Status.OK),
    ({"b": INF, "history": [-2] * 8, "exclude": [-2] * 8, "search": [-1, -1]}, Status.USER_FEATURE),
    ({"exclude": [-2] * 8, "task_weights": -INF, "search": [-1, -1]}, Status.EXCLUDE),
]


def tower(pooling: str) -> UserTower:
    torch.manual_seed(SEED)
    columns = [
        CategoryColumn(USER[0], np.array([1, 5, INT64.max], np.int64)),
        NumberColumn(USER[1], np.array([1.0, 2.0, 3.0])),
    ]
    attention = AttentionPooling(DIMS, LENGTH, blocks=2, heads=2, dropout=0.0)
    pooled = attention if pooling == "attention" else MeanPooling()
    return UserTower(columns, np.sort(IDS), dims=DIMS, history_length=LENGTH, pooling=pooled)


@pytest.fixture(scope="module", params=["mean", "attention"])
def pooling(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["score", "formula", "mlp", "mol", "graph"])
def served(request: pytest.FixtureRequest, pooling: str) -> tuple[Any, Any]:
    """A retrieval network and its ranking network."""
    return networks(schema(USER, LENGTH, tower=True), request.param, tower(pooling))


def neutral(rows: int, *, history: int = 8, filter: int = 16, exclude: int = 8) -> dict[str, Tensor]:
    return {
        "a": torch.full((rows, 1), UNKNOWN_KEY),
        "b": torch.full((rows, 1), NAN),
        "history": torch.full((rows, history), -1),
        "filter": torch.zeros(rows, filter, dtype=torch.int64),
        "exclude": torch.full((rows, exclude), -1),
        "task_weights": torch.full((rows, 1), NAN),
        "search": torch.zeros(rows, 2, dtype=torch.int32),
    }


def batch(changes: list[dict[str, Any]]) -> dict[str, Tensor]:
    inputs = neutral(len(changes))
    for row, changed in enumerate(changes):
        for name, value in changed.items():
            inputs[name][row] = torch.as_tensor(value, dtype=inputs[name].dtype)
    return inputs


def ask(network: Any, names: tuple[str, ...], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.inference_mode():
        return dict(zip(names, network(**inputs), strict=True))


def row_of(tensors: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: tensor[row : row + 1] for name, tensor in tensors.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor], where: str) -> None:
    """To the rounding of products of matrices, which depends on their sizes."""
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor.numpy(), other[name].numpy(), rtol=1e-4, atol=1e-5, err_msg=f"{where} {name}")


def test_every_row_has_its_own_status_and_answer(served: tuple[Any, Any]) -> None:
    retrieval, _ = served
    inputs = batch([changed for changed, _ in ROWS])
    together = ask(retrieval, OUTPUT_NAMES, inputs)
    assert together["status"][:, 0].tolist() == [status for _, status in ROWS]
    for row, (changed, status) in enumerate(ROWS):
        answer = row_of(together, row)
        assert (answer["count"].item() > 0) == (status == Status.OK), changed
        past = answer["item_ids"][0] == -1
        assert torch.isneginf(answer["scores"][0, past]).all()
        assert not torch.isnan(answer["task_scores"]).any(), changed
        alone = ask(retrieval, OUTPUT_NAMES, row_of(inputs, row))
        same({name: alone[name] for name in ("status", "count", "stats")}, answer, str(changed))
        if changed.get("task_weights") not in (FLOAT32.max, FLOAT32.min, 1e-45, 0.0):  # ties, by infinity or 0
            same(alone, answer, str(changed))


def test_every_row_that_is_ranked_has_its_own_status(served: tuple[Any, Any]) -> None:
    _, ranking = served
    kept = ("a", "b", "history", "task_weights")
    rows = [(changed, status) for changed, status in ROWS if not {"exclude", "search"} & changed.keys()]
    rows += [({"items": [-2] * 3}, Status.ITEMS), ({"items": [INT64.min, 0, -1]}, Status.ITEMS)]
    rows += [({"items": [INT64.max, -1, int(IDS[9])]}, Status.OK), ({"b": INF, "items": [-2] * 3}, Status.USER_FEATURE)]
    changes = [{"items": [int(IDS[3]), int(IDS[4]), int(IDS[3])], **changed} for changed, _ in rows]
    inputs = {name: tensor for name, tensor in neutral(len(rows)).items() if name in kept}
    inputs["items"] = torch.full((len(rows), 3), -1)
    for row, changed in enumerate(changes):
        for name, value in changed.items():
            inputs[name][row] = torch.as_tensor(value, dtype=inputs[name].dtype)
    answers = ask(ranking, RANKING_OUTPUTS, inputs)
    assert answers["status"][:, 0].tolist() == [status for _, status in rows]
    for row, (changed, status) in enumerate(rows):
        known = [] if status else [1, 1, 1] if "items" not in changed else [0, 0, 1]
        assert answers["known"][row].tolist() == (known or [0, 0, 0]), changed
        assert not torch.isnan(answers["task_scores"][row]).any(), changed
        if "items" not in changed:  # the same item twice
            assert torch.equal(answers["task_scores"][row, 0], answers["task_scores"][row, 2])


@pytest.mark.parametrize("length", [0, 1, 5, 3000])
def test_histories_of_any_length(served: tuple[Any, Any], length: int) -> None:
    """Those of no entries say what those of padding alone do; of longer ones the newest are read."""
    retrieval, ranking = served
    inputs = neutral(2, history=length)
    short = neutral(2)
    if length:
        filled = torch.from_numpy(np.resize(IDS, length))
        inputs["history"][1] = filled
        short["history"][1, -min(length, READ) :] = filled[-READ:]
    same(ask(retrieval, OUTPUT_NAMES, inputs), ask(retrieval, OUTPUT_NAMES, short), f"history of {length}")
    ranked = [
        {**{name: tensors[name] for name in ("a", "b", "history", "task_weights")}, "items": torch.tensor([[9]] * 2)}
        for tensors in (inputs, short)
    ]
    one, other = (ask(ranking, RANKING_OUTPUTS, tensors) for tensors in ranked)
    same(one, other, f"history of {length}")


def test_exclusions_and_items_of_any_number(served: tuple[Any, Any]) -> None:
    retrieval, ranking = served
    plain = ask(retrieval, OUTPUT_NAMES, neutral(2))
    same(ask(retrieval, OUTPUT_NAMES, neutral(2, exclude=0)), plain, "no exclusions")
    every = neutral(2, exclude=5000)
    every["exclude"][1, : len(IDS)] = torch.from_numpy(IDS)
    assert ask(retrieval, OUTPUT_NAMES, every)["count"][:, 0].tolist() == [plain["count"][0].item(), 0]
    inputs = {name: tensor for name, tensor in neutral(2).items() if name in ("a", "b", "history", "task_weights")}
    answers = ask(ranking, RANKING_OUTPUTS, {**inputs, "items": torch.empty(2, 0, dtype=torch.int64)})
    assert [tuple(answers[name].shape) for name in RANKING_OUTPUTS] == [(2, 0), (2, 0, 1), (2, 0), (2, 1)]
    assert answers["status"][:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("words", [0, 1])
def test_a_filter_without_room_for_its_length_is_malformed(served: tuple[Any, Any], words: int) -> None:
    inputs = neutral(3, filter=words)
    inputs["b"][1] = INF
    inputs["exclude"][2] = -2
    answers = ask(served[0], OUTPUT_NAMES, inputs)
    malformed = Status.FILTER_MALFORMED
    assert answers["status"][:, 0].tolist() == [malformed, Status.USER_FEATURE, malformed]
    assert answers["count"][:, 0].tolist() == [0, 0, 0]


def test_a_batch_of_no_rows(served: tuple[Any, Any]) -> None:
    assert all(len(tensor) == 0 for tensor in ask(served[0], OUTPUT_NAMES, neutral(0)).values())


@pytest.mark.parametrize("asked", [[0, INT32.max], [0, INT32.min], [-1, -1]])
def test_a_batch_in_which_no_row_is_searched(served: tuple[Any, Any], asked: list[int]) -> None:
    """No request asks for candidates: there are none to score."""
    inputs = neutral(3)
    inputs["search"][:] = torch.tensor(asked, dtype=torch.int32)
    answers = ask(served[0], OUTPUT_NAMES, inputs)
    assert answers["status"][:, 0].tolist() == [Status.SEARCH] * 3
    assert (answers["item_ids"] == -1).all()


VECTORS: list[tuple[list[float], Status]] = [
    ([1.0] * DIMS, Status.OK),
    ([0.0] * DIMS, Status.OK),
    ([1e-45] * DIMS, Status.OK),
    ([FLOAT32.max] * DIMS, Status.OK),
    ([FLOAT32.max, FLOAT32.min] * (DIMS // 2), Status.OK),
    ([FLOAT32.max] + [1e-45] * (DIMS - 1), Status.OK),
    ([NAN] + [0.0] * (DIMS - 1), Status.QUERY),
    ([0.0] * (DIMS - 1) + [-INF], Status.QUERY),
]


@pytest.mark.parametrize("kind", ["score", "mlp", "mol", "graph"])
def test_query_vectors_of_any_size(kind: str) -> None:
    retrieval, ranking = networks(schema(), kind)
    query = torch.tensor([vector for vector, _ in VECTORS])
    inputs = {**{name: tensor for name, tensor in neutral(len(VECTORS)).items() if name not in ("a", "b", "history")}}
    answers = ask(retrieval, OUTPUT_NAMES, {**inputs, "query": query})
    assert answers["status"][:, 0].tolist() == [status for _, status in VECTORS]
    assert (answers["count"][:, 0] > 0).tolist() == [status == Status.OK for _, status in VECTORS]
    ranked = ask(
        ranking,
        RANKING_OUTPUTS,
        {"query": query, "items": torch.full((len(query), 1), int(IDS[0])), "task_weights": inputs["task_weights"]},
    )
    assert ranked["status"][:, 0].tolist() == [status for _, status in VECTORS]
