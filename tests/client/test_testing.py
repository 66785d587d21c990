"""`FakeServer` against the contract: filters, order, limits, weights, statuses, rollouts, the ranking model, gRPC."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from client import (
    AccessDenied,
    AsyncRetrievalClient,
    Codec,
    ConnectionFailed,
    DeadlineExceeded,
    F,
    Feature,
    InvalidValue,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
    Request,
    RequestError,
    Retrieval,
    RetrievalClient,
    Schema,
    SchemaMismatch,
    ServerError,
    SilverTritonError,
    Status,
    matches,
)
from client.testing import FakeServer

ITEMS: list[dict[str, Any]] = [
    {"item_id": 7, "genres": ["Drama", "War"], "year": 1994, "studio": "A"},
    {"item_id": 3, "genres": ["Drama"], "year": 2001, "released": "2001-05-01"},
    {"item_id": 9, "genres": [], "year": 2010, "studio": "B"},
    {"item_id": 5, "genres": ["Noir"], "studio": "B"},
]


@pytest.fixture
def server(schema: Schema) -> FakeServer:
    return FakeServer(schema, ITEMS)


@pytest.fixture
def client(server: FakeServer) -> RetrievalClient:
    return server.client(timeout=5)


def ids(result: Retrieval | RequestError) -> list[int]:
    assert isinstance(result, Retrieval), result
    return result.item_ids.tolist()


def test_all_items_in_their_order(client: RetrievalClient) -> None:
    result = client.retrieve(user={"user_id": 1})
    assert ids(result) == [7, 3, 9, 5]
    np.testing.assert_allclose(result.task_scores[:, 0], [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(result.scores, result.task_scores.sum(axis=1))
    assert result.stats.exact
    assert result.stats.rows_passing == 4


@pytest.mark.parametrize(
    "condition",
    [
        F.genres.any_of("Drama"),
        F.genres.all_of("Drama", "War"),
        ~F.genres.any_of("Drama") & (F.year >= 2000),
        F.year.is_unknown(),
        F.genres.is_unknown() | (F.studio == "B"),
        F.released >= "2001-05-01",
        F.studio != "A",
        F.studio == "nobody",
    ],
    ids=str,
)
def test_filters_are_the_interpreters(client: RetrievalClient, schema: Schema, condition: Any) -> None:
    expected = [item["item_id"] for item in ITEMS if matches(condition, item, schema)]
    assert ids(client.retrieve(filter=condition)) == expected


def test_exclusions_k_and_candidates(client: RetrievalClient) -> None:
    assert ids(client.retrieve(exclude=[7, 1000], k=2)) == [3, 9]
    assert ids(client.retrieve(candidates=1)) == [7]


def test_given_scores_order_and_ties_go_to_the_smaller_id(schema: Schema) -> None:
    server = FakeServer(schema, ITEMS, scores=[[1, 5], [1, 5], [4, 0], [0, 0]])
    with server.client() as client:
        assert ids(client.retrieve()) == [3, 7, 9, 5]
        assert ids(client.retrieve(task_weights={"watch": 0.0})) == [9, 3, 7, 5]
        result = client.retrieve(task_weights={"watch": -1.0}, k=2)
    assert result.scores.tolist() == [4, 0]
    assert result[0].tasks == {"click": 4.0, "watch": 0.0}


def test_vectors(query_schema: Schema) -> None:
    vectors = np.eye(4, dtype=np.float32)
    server = FakeServer(query_schema, [{"item_id": n} for n in range(4)], vectors=vectors)
    with server.client() as client:
        result = client.retrieve(query=[0.1, 0.2, 0.9, 0.3])
        assert ids(result) == [2, 3, 1, 0]
        np.testing.assert_allclose(result.scores, [0.9, 0.3, 0.2, 0.1], rtol=1e-6)
        assert ids(client.retrieve(query=[1, 0, 0, 0], k=1)) == [0]


def test_a_batch(client: RetrievalClient, server: FakeServer) -> None:
    results = client.retrieve_many([Request(k=1), Request(filter=F.year > 2000), Request(k=0), Request(exclude=[7, 3])])
    assert ids(results[0]) == [7]
    assert ids(results[1]) == [3, 9]
    assert isinstance(results[2], RequestError)
    assert ids(results[3]) == [9, 5]
    assert [len(call.inputs["search"]) for call in server.calls] == [3]


def test_statuses_are_the_smallest_code(server: FakeServer, schema: Schema) -> None:
    good = Codec(schema).encode([Request(filter=F.year > 3)])
    changes: list[tuple[Status, str, Any]] = [
        (Status.SEARCH, "search", [[17, 0]]),
        (Status.TASK_WEIGHTS, "task_weights", [[np.inf, 1]]),
        (Status.EXCLUDE, "exclude", [[-2]]),
        (Status.FILTER_MALFORMED, "filter", [[schema.fingerprint, 9, 0]]),
        (Status.HISTORY, "history", [[-2]]),
        (Status.USER_FEATURE, "age", [[np.inf]]),
    ]
    for status, name, value in changes:  # each is added to those before it
        good[name] = np.array(value, good[name].dtype)
        outputs = server.infer("retrieval", good, 1).outputs
        assert outputs["status"].tolist() == [[status]]
        assert outputs["count"].tolist() == [[0]]
        assert (outputs["item_ids"] == -1).all()
    good["filter"] = np.array([[1, 1, 1]])
    good["age"][:], good["history"][:] = 1, -1
    assert server.infer("retrieval", good, 1).outputs["status"].tolist() == [[Status.FILTER_FINGERPRINT]]


@pytest.mark.parametrize(
    "change",
    [
        {"age": None},
        {"more": np.zeros((1, 1), np.int64)},
        {"age": np.zeros((1, 1), np.float64)},
        {"search": np.zeros((1, 3), np.int32)},
        {"history": np.zeros((2, 8), np.int64)},
    ],
)
def test_tensors_of_another_form_are_refused(server: FakeServer, schema: Schema, change: dict[str, Any]) -> None:
    inputs = {**Codec(schema).encode([Request()]), **change}
    with pytest.raises(SchemaMismatch):
        server.infer("retrieval", {name: tensor for name, tensor in inputs.items() if tensor is not None}, 1)


def test_ranking(client: RetrievalClient) -> None:
    ranking = client.rank(items=[5, 1, 7, 5], task_weights={"watch": 0.0})
    assert ranking.item_ids.tolist() == [7, 5, 5]
    assert ranking.unknown.tolist() == [1]
    np.testing.assert_allclose(ranking.scores, [1, 0.25, 0.25])
    assert client.retrieve(k=1).count == 1


def test_a_rollout_with_another_schema(client: RetrievalClient, server: FakeServer, schema: Schema) -> None:
    client.retrieve()
    changed = dataclasses.replace(
        schema,
        item_features=(*schema.item_features, Feature("price", "number", filter=True)),
        tasks=("watch", "click"),
    )
    server.replace([{"item_id": 1, "price": 3.0}, {"item_id": 2}], schema=changed)
    assert server.version == 2
    result = client.retrieve(filter=F.year.is_unknown(), task_weights={"click": 0.0})
    assert ids(result) == [1, 2]
    assert list(result[0].tasks) == ["watch", "click"]
    assert result[0].score == result[0].tasks["watch"]
    assert ids(client.retrieve(filter=F.price < 4)) == [1]
    assert client.rank(items=[2]).count == 1


def test_what_arrives_is_kept(server: FakeServer) -> None:
    with server.client(headers={"Key": "x"}) as client:
        client.retrieve(user={"user_id": 42})
    (call,) = server.calls
    assert (call.model, call.headers) == ("retrieval", {"key": "x"})
    assert call.inputs["user_id"].tolist() == [[42]]


def test_failures_and_delays(server: FakeServer) -> None:
    with server.client(timeout=5) as client:
        server.fail(ConnectionFailed("gone"), times=2)
        assert client.retrieve().count == 4
        assert len(server.calls) == 3
        server.fail(ServerError("boom"))
        with pytest.raises(ServerError, match="boom"):
            client.retrieve()
        server.delay = 60
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.retrieve(timeout=0.05)
        assert time.monotonic() - started < 5


def test_a_model_or_version_that_is_not_there(server: FakeServer) -> None:
    for client in (server.client(version=2), RetrievalClient("a:1", model="other", transport=server)):
        with pytest.raises(ModelNotFound):
            client.retrieve()


def test_the_asyncio_client(server: FakeServer) -> None:
    async def calls() -> list[Retrieval]:
        server.delay = 0.01
        async with server.async_client(timeout=5, hedge=0.001) as client:
            return await asyncio.gather(*(client.retrieve(k=k) for k in (1, 2, 3)))

    assert [result.count for result in asyncio.run(calls())] == [1, 2, 3]


def test_over_grpc(server: FakeServer) -> None:
    requests = [Request(filter=F.year > 1995), Request(exclude=[7], k=1)]
    with server.serving() as address, RetrievalClient(address, timeout=10, headers={"k": "v"}) as client:
        assert [ids(result) for result in client.retrieve_many(requests)] == [[3, 9], [3]]
        assert client.rank(items=[5]).item_ids.tolist() == [5]
        server.replace(ITEMS[:1])
        assert ids(client.retrieve()) == [7]
        assert server.calls[0].headers["k"] == "v"

        async def call() -> Retrieval:
            async with AsyncRetrievalClient(address, timeout=10) as other:
                return await other.retrieve()

        assert ids(asyncio.run(call())) == [7]


@pytest.mark.parametrize(
    "error",
    [
        AccessDenied,
        ConnectionFailed,
        DeadlineExceeded,
        ModelNotFound,
        ModelUnavailable,
        QueueFull,
        ServerError,
    ],
)
def test_failures_keep_their_class_over_grpc(server: FakeServer, error: type[SilverTritonError]) -> None:
    with server.serving() as address, RetrievalClient(address, timeout=10, retry=None) as client:
        client.retrieve()
        server.fail(error("on purpose"))
        with pytest.raises(error) as caught:
            client.retrieve()
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("items", "options", "says"),
    [
        ([{"year": 3}], {}, "expected item_id"),
        ([{"item_id": 1, "yaer": 3}], {}, "yaer"),
        ([{"item_id": 1}, {"item_id": 1}], {}, "twice"),
        ([{"item_id": -1}], {}, "item id"),
        ([{"item_id": 1, "year": "x"}], {}, "year"),
        ([{"item_id": 1}], {"scores": [1, 2]}, "scores"),
        ([{"item_id": 1}], {"vectors": [[1]]}, "vectors"),
    ],
)
def test_items_are_checked(schema: Schema, items: Any, options: Any, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        FakeServer(schema, items, **options)


def test_what_a_server_is_to_do_is_checked(server: FakeServer) -> None:
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(InvalidValue, match="share"):
            server.start_canary([{"item_id": 1}], share=share)
    with pytest.raises(InvalidValue, match="error: got 'down'"):
        server.fail("down")  # type: ignore[arg-type]
    with server.client() as client:
        assert client.retrieve().version == 1


def test_no_items(schema: Schema) -> None:
    with FakeServer(schema, []).client() as client:
        assert client.retrieve(filter=F.year > 3).count == 0


def test_import_takes_neither_torch_nor_grpc() -> None:
    script = "import sys, client.testing\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "grpc", "builder", "pandas", "pyarrow"}
