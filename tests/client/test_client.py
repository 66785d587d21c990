"""The client over a transport that needs no server."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client import (
    ClientClosed,
    DeadlineExceeded,
    F,
    InvalidValue,
    LimitExceeded,
    Request,
    RequestError,
    Retrieval,
    RetrievalClient,
    RowStatusError,
    Schema,
    SchemaError,
    SchemaMismatch,
    ServerError,
    Status,
    UnknownName,
    _serving,
)


@pytest.fixture
def client(transport: Any) -> Iterator[RetrievalClient]:
    with RetrievalClient("server:8001", timeout=5.0, transport=transport) as client:
        yield client


def test_retrieve(client: RetrievalClient, transport: Any) -> None:
    result = client.retrieve(user={"user_id": 42}, history=[1], filter=F.year >= 1990, exclude=[3], k=4)
    assert result.item_ids.tolist() == [0, 1, 2, 3]
    assert 0 < result.latency < 5
    (inputs,) = transport.requests
    assert inputs["user_id"].tolist() == [[42]]
    assert 4 < transport.timeouts[0] <= 5


def test_retrieve_takes_what_a_request_takes() -> None:
    arguments = [name for name in inspect.signature(RetrievalClient.retrieve).parameters if name != "self"]
    fields = [field.name for field in dataclasses.fields(Request)]
    assert sorted(arguments) == sorted([*fields, "timeout", "headers"])


def test_every_argument_reaches_the_request(client: RetrievalClient, transport: Any) -> None:
    arguments: dict[str, Any] = {
        "user": {"age": 3},
        "history": [1],
        "filter": F.year.is_unknown(),
        "exclude": [2],
        "k": 3,
        "task_weights": {"click": 4.0},
        "probes": 5,
        "candidates": 6,
    }
    one = client.retrieve(**arguments)
    (many,) = client.retrieve_many([Request(**arguments)])
    assert isinstance(many, Retrieval)
    assert one.count == many.count == 3
    first, second = transport.requests
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, second[name])
    assert first["search"].tolist() == [[5, 6]]


def test_the_schema_is_read_once(client: RetrievalClient, transport: Any, schema: Schema) -> None:
    assert transport.config_reads == 0
    assert client.schema == schema
    client.retrieve()
    client.retrieve_many([Request()])
    assert transport.config_reads == 1


def test_a_wrong_request_is_raised_and_not_sent(client: RetrievalClient, transport: Any) -> None:
    with pytest.raises(LimitExceeded):
        client.retrieve(k=21)
    with pytest.raises(UnknownName):
        client.retrieve(user={"agee": 1})
    assert transport.requests == []


def test_a_refused_row_is_raised(client: RetrievalClient, transport: Any, schema: Schema, answer: Any) -> None:
    transport.answers = lambda batch: {**answer(schema, batch), "status": np.array([[2]], np.int32)}
    with pytest.raises(RowStatusError, match="history") as caught:
        client.retrieve()
    assert caught.value.status is Status.HISTORY


def test_many_with_wrong_rows(client: RetrievalClient, transport: Any, schema: Schema, answer: Any) -> None:
    def answers(batch: int) -> dict[str, Any]:
        outputs = answer(schema, batch)
        outputs["status"][1] = Status.SEARCH
        return dict(outputs)

    transport.answers = answers
    requests = [Request(k=1), Request(k=0), Request(k=2), Request(user={"x": 1}), Request(k=3)]
    good, wrong, refused, unknown, last = client.retrieve_many(iter(requests))
    assert isinstance(good, Retrieval)
    assert isinstance(last, Retrieval)
    assert (good.item_ids.tolist(), last.item_ids.tolist()) == ([0], [200, 201, 202])
    assert isinstance(wrong, LimitExceeded)
    assert isinstance(refused, RowStatusError)
    assert isinstance(unknown, UnknownName)
    (inputs,) = transport.requests
    assert len(inputs["search"]) == 3


def test_many_of_none_and_of_wrong_ones_only(client: RetrievalClient, transport: Any) -> None:
    assert client.retrieve_many([]) == []
    (error,) = client.retrieve_many([Request(k=0)])
    assert isinstance(error, RequestError)
    assert transport.requests == []


@pytest.mark.parametrize("wrong", [{"k": 1}, F.year > 1990, None, 7], ids=str)
def test_what_is_no_request(client: RetrievalClient, transport: Any, wrong: Any) -> None:
    for ask in (lambda: client.retrieve_many([Request(), wrong]), lambda: client.explain(7, wrong)):
        with pytest.raises(InvalidValue, match=r"request: got .*, expected a client\.Request"):
            ask()
    assert transport.requests == []


@pytest.mark.parametrize(("max_batch_size", "batches"), [(64, [7]), (7, [7]), (3, [3, 3, 1]), (0, [1] * 7)])
def test_many_are_split_by_the_model(
    transport: Any, client: RetrievalClient, max_batch_size: int, batches: list[int]
) -> None:
    transport.max_batch_size = max_batch_size
    results = client.retrieve_many([Request(user={"user_id": user}) for user in range(7)])
    assert [len(inputs["search"]) for inputs in transport.requests] == batches
    sent = np.concatenate([inputs["user_id"] for inputs in transport.requests])
    assert sent[:, 0].tolist() == list(range(7))
    assert all(isinstance(result, Retrieval) for result in results)


def test_one_deadline_covers_schema_and_batches(transport: Any, client: RetrievalClient) -> None:
    transport.max_batch_size = 1
    answers = transport.answers

    def slow(batch: int) -> Any:
        time.sleep(0.05)
        return answers(batch)

    transport.answers = slow
    with pytest.raises(DeadlineExceeded, match="allow more with timeout="):
        client.retrieve_many([Request()] * 100, timeout=0.12)
    assert 2 <= len(transport.requests) <= 3
    assert transport.timeouts == sorted(transport.timeouts, reverse=True)
    assert transport.timeouts[0] <= 0.12


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 1e10, "1", None, True])
def test_timeouts_are_checked(client: RetrievalClient, transport: Any, timeout: Any) -> None:
    with pytest.raises(InvalidValue, match="seconds, above 0 and at most 1,000,000,000"):
        RetrievalClient("server:8001", timeout=timeout, transport=transport)
    if timeout is not None:
        with pytest.raises(InvalidValue, match="seconds, above 0 and at most 1,000,000,000"):
            client.retrieve(timeout=timeout)


def test_a_closed_client(transport: Any) -> None:
    client = RetrievalClient("server:8001", transport=transport)
    with client:
        client.retrieve()
    client.close()
    for call in (client.retrieve, lambda: client.retrieve_many([]), lambda: client.schema):
        with pytest.raises(ClientClosed, match="make a new client"):
            call()


def test_a_failed_call_does_not_break_the_client(client: RetrievalClient, transport: Any) -> None:
    client.retrieve()
    transport.fail = ServerError("boom")
    with pytest.raises(ServerError):
        client.retrieve()
    assert client.retrieve().count == 20
    assert transport.config_reads == 1


@pytest.mark.parametrize("parameters", [{}, {"schema": ""}])
def test_a_model_of_another_kind(client: RetrievalClient, transport: Any, parameters: dict[str, str]) -> None:
    transport.parameters = parameters
    with pytest.raises(SchemaMismatch, match="'retrieval' at server:8001 has no parameter 'schema'"):
        client.retrieve()


def test_an_unreadable_schema(client: RetrievalClient, transport: Any) -> None:
    transport.parameters = {"schema": "{"}
    with pytest.raises(SchemaError, match="model 'retrieval' at server:8001: the schema is not JSON"):
        client.retrieve()


@pytest.mark.parametrize("address", ["http://localhost:8000", "https://x", "grpc://localhost:8001"])
def test_an_address_is_no_url(address: str) -> None:
    with pytest.raises(InvalidValue, match="host:port of the gRPC endpoint"):
        RetrievalClient(address)


def test_threads_share_a_client(client: RetrievalClient, transport: Any) -> None:
    wrong: list[object] = []

    def work(user: int) -> None:
        for _ in range(50):
            result = client.retrieve(user={"user_id": user}, k=user)
            if result.count != user:
                wrong.append(result)

    threads = [threading.Thread(target=work, args=(user,)) for user in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(transport.requests) == 400


def test_threads_that_read_the_schema_at_once_ask_once_each(
    client: RetrievalClient, transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the schema another for each of them, all but one would encode their requests anew and send them again."""
    transport.version = "1"
    both, infer, left = threading.Barrier(2, timeout=10), transport.infer, [1, 2]

    def read(text: str) -> Schema:
        both.wait()
        return Schema.from_json(text)

    def meet(*arguments: Any, **named: Any) -> Any:
        if left:
            left.pop()
            both.wait()
        return infer(*arguments, **named)

    monkeypatch.setattr(_serving, "Schema", SimpleNamespace(from_json=read))
    monkeypatch.setattr(transport, "infer", meet)
    threads = [threading.Thread(target=client.retrieve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(transport.requests) == 2


def test_repr() -> None:
    with RetrievalClient("server:8001", model="movies", timeout=0.5) as client:
        assert repr(client) == "RetrievalClient('server:8001', model='movies', timeout=0.5)"
