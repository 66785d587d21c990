"""Canaries: which requests go there, by whose schema their answers are read, and what becomes of them when it ends."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest

from client import (
    InvalidValue,
    ModelConfig,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
    Request,
    RetrievalClient,
    Schema,
    SchemaMismatch,
    _serving,
)
from client._serving import drawn
from client.schema import CANARY_SUFFIX
from client.testing import FakeServer
from tests.client.shells import SHELLS

STABLE, CANARY = [{"item_id": 1}, {"item_id": 2}], [{"item_id": 101}, {"item_id": 102}, {"item_id": 103}]
RANKED = [1, 2, 101, 102, 103]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes is seen by the next call."""
    monkeypatch.setattr(_serving, "CANARY_REREAD", -1.0)


@pytest.fixture
def server(schema: Schema) -> FakeServer:
    return FakeServer(schema, STABLE)


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, server: FakeServer) -> Any:
    with SHELLS[request.param]("fake:8001", transport=server, timeout=5) as client:
        yield client


@pytest.fixture
def other(schema: Schema) -> Schema:
    """Of the canary: other tasks, fewer results, one filter less, one user feature less."""
    items = tuple(dataclasses.replace(feature, filter=False) for feature in schema.item_features)
    return dataclasses.replace(
        schema, tasks=("buy",), max_results=3, item_features=items, user_features=schema.user_features[:1]
    )


def whole(result: Any) -> int:
    """The version of an answer; everything in it is that version's."""
    ids = result.item_ids.tolist()
    assert result.version in (1, 2)
    assert ids == ([1, 2] if result.version == 1 else [101, 102, 103])
    assert result.task_names == (("click", "watch") if result.version == 1 else ("buy",))
    return int(result.version)


def test_the_share_goes_to_the_canary_and_each_answer_is_read_by_its_own_schema(
    client: Any, server: FakeServer, other: Schema
) -> None:
    assert {whole(client.retrieve()) for _ in range(20)} == {1}
    server.start_canary(CANARY, share=0.3, schema=other)
    calls = 400
    counts = Counter(whole(client.retrieve()) for _ in range(calls))
    assert abs(counts[2] - 0.3 * calls) < 5 * (calls * 0.3 * 0.7) ** 0.5, counts  # 5 sigma: 1 in 2 million
    server.end_canary()
    assert {whole(client.retrieve()) for _ in range(20)} == {1}


def test_a_batch_is_divided_and_keeps_its_order(client: Any, server: FakeServer, other: Schema) -> None:
    server.start_canary(CANARY, share=0.5, schema=other)
    client.retrieve()
    requests = [Request(key=number, k=1 + number % 2) for number in range(150)]
    for _ in range(2):
        results = client.retrieve_many(requests)
        for request, result in zip(requests, results, strict=True):
            assert result.version == (2 if drawn(request.key) < 0.5 else 1)
            assert result.item_ids.tolist() == ([101, 102] if result.version == 2 else [1, 2])[: request.k]


def test_requests_of_a_key_stay_where_they_are(client: Any, server: FakeServer, other: Schema) -> None:
    server.start_canary(CANARY, share=0.2, schema=other)
    small = {key: whole(client.retrieve(key=key)) for key in range(300)}
    assert {key: whole(client.retrieve(key=key)) for key in range(300)} == small
    assert {key: client.rank(items=RANKED, key=key).version for key in range(300)} == small
    server.start_canary(CANARY, share=0.6, schema=other)
    large = {key: whole(client.retrieve(key=key)) for key in range(300)}
    assert 0 < sum(version == 2 for version in small.values()) < sum(version == 2 for version in large.values()) < 300
    assert all(large[key] == 2 for key, version in small.items() if version == 2)  # no others


def test_keys_are_drawn_evenly() -> None:
    for keys in (range(10_000), [f"user-{number}" for number in range(10_000)]):
        below = sum(drawn(key) < 0.05 for key in keys)
        assert abs(below - 500) < 110
        assert all(0 <= drawn(key) < 1 for key in keys)


def test_a_canary_that_this_client_cannot_read_gets_nothing(client: Any, server: FakeServer, other: Schema) -> None:
    server.start_canary(CANARY, share=1.0, schema=other)
    given = server.model_config

    def newer(model: str, *arguments: Any, **options: Any) -> ModelConfig:
        config = given(model, *arguments, **options)
        if CANARY_SUFFIX not in model:
            return config
        return dataclasses.replace(config, parameters={**config.parameters, "contract": "99"})

    server.model_config = newer  # type: ignore[method-assign]
    assert {whole(client.retrieve()) for _ in range(5)} == {1}


@pytest.mark.parametrize("key", [object(), 1.5, True, b"x"])
def test_keys_are_text_or_integers(client: Any, key: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^key: got "):
        client.retrieve(key=key)
    assert client.retrieve(key="\ud800").count == 2  # any text


def test_a_client_with_a_version_sends_one_batch(server: FakeServer, other: Schema) -> None:
    server.start_canary(CANARY, share=0.5, schema=other)
    with RetrievalClient("fake:8001", transport=server, version=2) as client:
        client.retrieve()
        server.calls.clear()
        client.retrieve_many([Request(k=1) for _ in range(20)])
    assert len(server.calls) == 1


def test_ranking_is_divided_as_well(client: Any, server: FakeServer, other: Schema) -> None:
    server.start_canary(CANARY, share=0.5, schema=other)
    seen = set()
    for _ in range(50):
        result = client.rank(items=RANKED)
        assert result.unknown.tolist() == ([101, 102, 103] if result.version == 1 else [1, 2])
        seen.add(whole(result))
    assert seen == {1, 2}


def test_an_explanation_is_of_the_version_that_its_key_is_sent_to(
    client: Any, server: FakeServer, other: Schema
) -> None:
    server.start_canary(CANARY, share=0.5, schema=other)
    versions = {key: whole(client.retrieve(key=key)) for key in range(20)}
    assert set(versions.values()) == {1, 2}
    for key, version in versions.items():
        for item, known in ((2, 1), (103, 2)):
            explanation = client.explain(item, Request(key=key))
            assert explanation.version == version
            assert explanation.outcome == ("returned" if version == known else "unknown_item")


@pytest.mark.parametrize("kind", [ModelNotFound, ModelUnavailable])
def test_a_canary_that_is_gone_fails_no_request(
    client: Any, server: FakeServer, other: Schema, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start_canary(CANARY, share=1.0, schema=other)
    assert whole(client.retrieve()) == 2
    assert whole(client.rank(items=RANKED)) == 2
    monkeypatch.setattr(_serving, "CANARY_REREAD", 60.0)  # so that it is found out by a request
    server.fail(kind("is not at ready state"))  # type: ignore[arg-type]
    assert whole(client.retrieve()) == 1
    endpoint = client.__dict__.get("_client", client)._core.balancer.endpoints[0]
    assert endpoint.failures == 0  # the server itself is well
    server.end_canary()
    assert whole(client.rank(items=RANKED)) == 1
    assert [whole(result) for result in client.retrieve_many([Request()] * 3)] == [1, 1, 1]


def test_a_canary_that_is_full_is_not_taken_for_gone(client: Any, server: FakeServer, other: Schema) -> None:
    server.start_canary(CANARY, share=1.0, schema=other)
    server.fail(QueueFull("full"))
    assert whole(client.retrieve()) == 2


def test_a_client_with_a_version_goes_wherever_it_is(server: FakeServer, other: Schema) -> None:
    with RetrievalClient("fake:8001", transport=server, version=2, timeout=5) as client:
        with pytest.raises(ModelNotFound):
            client.retrieve()
        server.start_canary(CANARY, share=0.0, schema=other)
        assert whole(client.retrieve()) == 2
        assert client.explain(103, Request()).version == 2
        assert whole(client.rank(items=RANKED)) == 2
        server.replace(CANARY, schema=other)
        assert whole(client.retrieve()) == 2
        assert whole(client.rank(items=RANKED)) == 2
    with RetrievalClient("fake:8001", transport=server, version=1, timeout=5) as client, pytest.raises(ModelNotFound):
        client.retrieve()


class Rollout(FakeServer):
    """In the middle of one: the retrieval model has changed, the ranking model not yet; one more is beside."""

    def __init__(self, schema: Schema, new: FakeServer) -> None:
        super().__init__(schema, STABLE)
        self.new, self.changed, self.beside = new, set[str](), False

    def _of(self, model: str) -> tuple[FakeServer, str]:
        if model == "retrieval_canary_rank" and self.beside:
            return self.new, "retrieval_rank"
        return (self.new if model in self.changed else super()), model  # type: ignore[return-value]

    def infer(self, model: str, *arguments: Any, **named: Any) -> Any:
        server, name = self._of(model)
        return server.infer(name, *arguments, **named)

    def model_config(self, model: str, *arguments: Any, **named: Any) -> ModelConfig:
        server, name = self._of(model)
        return server.model_config(name, *arguments, **named)


@pytest.mark.parametrize("seen", [(), ("retrieve",), ("rank",), ("retrieve", "rank")])
def test_both_models_are_of_one_snapshot_all_through_a_rollout(
    schema: Schema, other: Schema, seen: tuple[str, ...]
) -> None:
    """`seen`: what the client had called before. A rank after a retrieve is of the version that the retrieve was of."""
    new = FakeServer(schema, STABLE)
    new.replace(CANARY, schema=other)
    server = Rollout(schema, new)
    with RetrievalClient("fake:8001", transport=server, timeout=5) as client:
        calls = {"retrieve": client.retrieve, "rank": lambda: client.rank(items=RANKED)}
        for name in seen:
            assert whole(calls[name]()) == 1
        server.beside = True
        assert whole(client.retrieve()) == whole(client.rank(items=RANKED)) == 1
        server.changed = {"retrieval"}
        for _ in range(3):
            assert whole(client.retrieve()) == whole(client.rank(items=RANKED)) == 2
        server.changed = {"retrieval", "retrieval_rank"}
        assert whole(client.rank(items=RANKED)) == 2
        server.beside = False
        for _ in range(3):
            assert whole(client.retrieve()) == whole(client.rank(items=RANKED)) == 2
        server.changed, server.beside = {"retrieval_rank"}, False  # no rollout: models of different exports
        client.retrieve()
        with pytest.raises(SchemaMismatch, match="is of another export"):
            client.rank(items=RANKED)


def test_calls_while_everything_changes(server: FakeServer, other: Schema) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    with RetrievalClient("fake:8001", transport=server, timeout=5) as client:
        for _ in range(300):
            change = rng.random()
            if change < 0.2:
                server.start_canary(CANARY, share=rng.random(), schema=other)
            elif change < 0.3:
                server.end_canary()
            result = client.retrieve() if rng.random() < 0.5 else client.rank(items=RANKED)
            assert whole(result) in (1, 2), seed
