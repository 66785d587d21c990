"""Given items for one user: what travels, what comes of the answer, and models of different exports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client import (
    Answer,
    ClientClosed,
    Hit,
    InvalidValue,
    LimitExceeded,
    ModelConfig,
    ModelUnavailable,
    RetrievalClient,
    RowStatusError,
    Schema,
    SchemaError,
    SchemaMismatch,
    Status,
    UnknownName,
)
from client.hashing import UNKNOWN_KEY

KNOWN = {3: 0.5, 5: 2.0, 7: -1.0, 8: 2.0, 9: np.nan, 11: -np.inf}
Tensors = Mapping[str, NDArray[Any]]


class RankingTransport:
    """A server of both models, whose `KNOWN` items have those scores; keeps what it was sent."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.snapshots = {"retrieval": "one", "retrieval_rank": "one"}
        self.status = 0
        self.change: dict[str, NDArray[Any]] = {}
        self.sent: list[tuple[str, Tensors]] = []
        self.reads: list[str] = []

    def infer(self, model: str, inputs: Tensors, timeout: float, **_: Any) -> Answer:
        assert 0 < timeout <= 5
        self.sent.append((model, inputs))
        items, tasks = inputs["items"], len(self.schema.tasks)
        known = np.isin(items, list(KNOWN)) & (self.status == 0)
        scores = np.where(known, np.vectorize(lambda item: KNOWN.get(item, 0.0))(items), -np.inf).astype(np.float32)
        outputs = {
            "scores": scores,
            "task_scores": np.stack([scores * (task + 2) for task in range(tasks)], axis=2),
            "known": known.astype(np.int32),
            "status": np.full((len(items), 1), self.status, np.int32),
            **self.change,
        }
        return Answer(outputs)

    def model_config(self, model: str, timeout: float, **_: Any) -> ModelConfig:
        assert 0 < timeout <= 5
        if model == "retrieval_canary":
            raise ModelUnavailable(model)
        self.reads.append(model)
        if model not in self.snapshots:
            raise ModelUnavailable(model)
        return ModelConfig({"schema": self.schema.to_json(), "snapshot": self.snapshots[model]}, 64)


@pytest.fixture
def transport(schema: Schema) -> RankingTransport:
    return RankingTransport(schema)


@pytest.fixture
def client(transport: RankingTransport) -> RetrievalClient:
    return RetrievalClient("server:8001", timeout=5.0, transport=transport)


def test_what_travels_is_the_user_the_items_and_the_weights(
    client: RetrievalClient, transport: RankingTransport
) -> None:
    client.rank(user={"user_id": 42, "age": 33}, history=[1, 2], items=range(9), task_weights={"watch": 0.5})
    ((model, inputs),) = transport.sent
    assert model == "retrieval_rank"
    assert set(inputs) == {"user_id", "gender", "age", "history", "task_weights", "items"}
    assert inputs["user_id"].tolist() == [[42]]
    assert inputs["gender"].tolist() == [[UNKNOWN_KEY]]
    assert inputs["history"].tolist() == [[1, 2, *[-1] * 6]]
    np.testing.assert_array_equal(inputs["task_weights"], np.array([[np.nan, 0.5]], np.float32))
    assert inputs["items"].tolist() == [[*range(9), *[-1] * 7]]
    assert inputs["items"].dtype == np.int64
    assert transport.reads == ["retrieval_rank"]  # who only ranks needs no other model


def test_a_query_vector_travels_in_place_of_a_user(query_schema: Schema) -> None:
    transport = RankingTransport(query_schema)
    with RetrievalClient("server:8001", timeout=5.0, transport=transport) as client:
        client.rank(query=[1, 2, 3, 4], items=[3])
    assert {name: tensor.shape for name, tensor in transport.sent[0][1].items()} == {
        "query": (1, 4),
        "items": (1, 8),
        "task_weights": (1, 1),
    }


def test_the_best_come_first_and_unknown_ids_are_told(client: RetrievalClient) -> None:
    result = client.rank(items=[4, 11, 9, 8, 3, 5, 12, 7, 3])
    assert result.item_ids.tolist() == [5, 8, 3, 3, 7, 9, 11]  # of equal scores the smaller id, NaN as if -inf
    np.testing.assert_array_equal(result.scores, np.array([2, 2, 0.5, 0.5, -1, np.nan, -np.inf], np.float32))
    np.testing.assert_array_equal(result.task_scores[:, 1], result.scores * 3)
    assert result.positions.tolist() == [5, 3, 4, 8, 7, 2, 1]
    assert result.unknown.tolist() == [4, 12]
    assert (result.count, len(result)) == (7, 7)
    assert result[2] == Hit(3, 0.5, {"click": 1.0, "watch": 1.5})
    assert result.hits[:2] == list(result)[:2] == [Hit(5, 2.0, {"click": 4.0, "watch": 6.0}), result[1]]
    assert 0 < result.latency < 5
    assert repr(result).startswith("<Ranking of 7 [5: 2, 8: 2, 3: 0.5, ...] in ")
    assert repr(result).endswith(" ms, 2 unknown>")


@pytest.mark.parametrize(("k", "expected"), [(None, [5, 3, 7]), (1, [5]), (2, [5, 3]), (99, [5, 3, 7])])
def test_k(client: RetrievalClient, k: int | None, expected: list[int]) -> None:
    result = client.rank(items=[7, 1, 3, 5], k=k)
    assert result.item_ids.tolist() == expected
    assert result.unknown.tolist() == [1]


def test_no_items_give_an_empty_ranking(client: RetrievalClient, transport: RankingTransport) -> None:
    result = client.rank(items=iter([]))
    assert (result.count, result.unknown.tolist(), bool(result)) == (0, [], False)
    assert transport.sent[0][1]["items"].tolist() == [[-1] * 8]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"items": [1, -1]}, InvalidValue),
        ({"items": [1.5]}, InvalidValue),
        ({"items": "50"}, InvalidValue),
        ({"items": [1], "k": 0}, LimitExceeded),
        ({"items": [1], "k": 1.0}, InvalidValue),
        ({"items": [1], "k": True}, InvalidValue),
        ({"items": [1], "user": {"agee": 3}}, UnknownName),
        ({"items": [1], "query": [1.0]}, InvalidValue),
        ({"items": [1], "task_weights": {"clik": 1.0}}, UnknownName),
        ({"items": [1], "timeout": 0}, InvalidValue),
    ],
)
def test_wrong_requests_are_not_sent(
    client: RetrievalClient, transport: RankingTransport, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        client.rank(**arguments)
    assert transport.sent == []


def test_a_refused_row_is_raised(client: RetrievalClient, transport: RankingTransport) -> None:
    transport.status = Status.ITEMS
    with pytest.raises(RowStatusError, match="items: the given items hold an id below -1") as caught:
        client.rank(items=[3])
    assert caught.value.status is Status.ITEMS


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("scores", np.zeros((1, 9), np.float32)),
        ("task_scores", np.zeros((1, 8, 3), np.float32)),
        ("known", np.zeros((1, 8), np.bool_)),
        ("status", np.zeros((1, 1), np.int64)),
    ],
)
def test_an_answer_of_another_form_is_refused_and_the_schema_read_again(
    client: RetrievalClient, transport: RankingTransport, name: str, tensor: NDArray[Any]
) -> None:
    transport.change = {name: tensor}
    with pytest.raises(SchemaMismatch, match=f"output '{name}'"):
        client.rank(items=[3])
    transport.change = {}
    assert client.rank(items=[3]).count == 1
    assert transport.reads == ["retrieval_rank"] * 2


def test_models_of_different_exports_are_not_used_together(
    client: RetrievalClient, transport: RankingTransport
) -> None:
    transport.snapshots["retrieval_rank"] = "two"
    assert client.rank(items=[3]).count == 1  # alone it may be of any
    assert client.schema is not None
    with pytest.raises(SchemaMismatch, match=r"'retrieval_rank' at server:8001 is of another export than 'retrieval' "):
        client.rank(items=[3])
    transport.snapshots["retrieval"] = "two"  # the other one was replaced as well
    assert client.rank(items=[3]).count == 1
    assert client.rank(items=[5]).count == 1
    both, beside = ["retrieval_rank", "retrieval"], "retrieval_canary_rank"
    assert transport.reads == [*both, *both, beside, *both, beside, *both]


def test_both_replaced_between_calls(client: RetrievalClient, transport: RankingTransport) -> None:
    assert client.schema is not None
    transport.snapshots = dict.fromkeys(transport.snapshots, "two")
    assert client.rank(items=[3]).count == 1
    assert transport.reads == ["retrieval", "retrieval_rank", "retrieval"]


def test_a_server_without_a_ranking_model(client: RetrievalClient, transport: RankingTransport) -> None:
    del transport.snapshots["retrieval_rank"]
    with pytest.raises(ModelUnavailable, match="retrieval_rank"):
        client.rank(items=[3])


def test_what_is_no_ranking_model(client: RetrievalClient, transport: RankingTransport, schema: Schema) -> None:
    transport.model_config = lambda model, timeout, **_: ModelConfig({}, 8)  # type: ignore[method-assign]
    with pytest.raises(SchemaMismatch, match="model 'retrieval_rank' at server:8001 has no parameter 'schema'"):
        client.rank(items=[3])
    transport.model_config = lambda model, timeout, **_: ModelConfig({"schema": "{"}, 8)  # type: ignore[method-assign]
    with pytest.raises(SchemaError, match="model 'retrieval_rank' at server:8001: the schema is not JSON"):
        client.rank(items=[3])


def test_a_closed_client(client: RetrievalClient) -> None:
    client.rank(items=[3])
    client.close()
    with pytest.raises(ClientClosed):
        client.rank(items=[3])


def test_a_user_feature_cannot_be_called_items(schema: Schema) -> None:
    feature = dataclasses.replace(schema.user_features[0], name="items")
    with pytest.raises(SchemaError, match="user feature 'items' has the name of another input"):
        dataclasses.replace(schema, user_features=(feature,))
