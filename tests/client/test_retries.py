"""When both clients try again, how long they wait, and what several endpoints do for a call."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from client import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidValue,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
    Request,
    Retry,
    Schema,
    SchemaMismatch,
    ServerError,
    SilverTritonError,
    WrongServer,
    _core,
)
from tests.client.conftest import FakeTransport
from tests.client.shells import SHELLS

NO_WAIT = Retry(attempts=3, first=0)


class Failing(FakeTransport):
    """Raises `errors` in turn, then answers."""

    errors: list[SilverTritonError]

    def infer(self, *arguments: Any, **named: Any) -> Any:
        self.fail = self.errors.pop(0) if self.errors else None
        return super().infer(*arguments, **named)


@pytest.fixture
def failing(schema: Schema, answer: Any) -> Failing:
    return Failing(schema, answer)


@pytest.fixture(params=["sync", "async"])
def shell(request: pytest.FixtureRequest) -> Any:
    return SHELLS[request.param]


@pytest.mark.parametrize("error", [ConnectionFailed, ModelUnavailable, QueueFull])
def test_what_may_pass_is_tried_again(shell: Any, failing: Failing, error: type[SilverTritonError]) -> None:
    failing.errors = [error("first"), error("second")]
    with shell("server:8001", retry=NO_WAIT, transport=failing) as client:
        assert client.retrieve(k=2).count == 2
        assert len(failing.requests) == 3
        failing.errors = [error("1"), error("2"), error("3"), error("4")]
        with pytest.raises(error, match="3"):
            client.retrieve()
    assert len(failing.requests) == 6


@pytest.mark.parametrize("error", [DeadlineExceeded, ServerError, SchemaMismatch, ModelNotFound, WrongServer])
def test_what_may_not_pass_is_not_tried_again(shell: Any, failing: Failing, error: type[SilverTritonError]) -> None:
    failing.errors = [error("once")]
    with shell("server:8001", retry=NO_WAIT, transport=failing) as client, pytest.raises(error, match="once"):
        client.retrieve()
    assert len(failing.requests) == 1


def test_no_retry(shell: Any, failing: Failing) -> None:
    failing.errors = [ConnectionFailed("once")]
    with shell("server:8001", retry=None, transport=failing) as client, pytest.raises(ConnectionFailed):
        client.retrieve()


def test_reading_the_schema_is_tried_again(shell: Any, failing: Failing) -> None:
    reads, model_config = [0], failing.model_config

    def once(*arguments: Any, **named: Any) -> Any:
        reads[0] += 1
        if reads[0] == 1:
            raise ConnectionFailed("not yet")
        return model_config(*arguments, **named)

    failing.model_config = once  # type: ignore[method-assign]
    with shell("server:8001", retry=NO_WAIT, transport=failing) as client:
        assert client.schema is not None
    assert reads == [3]  # and the canary's


def test_waits_are_drawn_from_zero_to_a_bound_that_doubles(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[tuple[float, float]] = []
    monkeypatch.setattr(_core.random, "uniform", lambda low, high: bounds.append((low, high)) or 0.0)
    failing.errors = [QueueFull("full")] * 5
    with SHELLS["sync"]("server:8001", retry=Retry(6, first=0.1, most=0.5), transport=failing) as client:
        client.retrieve()
    assert bounds == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.5), (0, 0.5)]


def test_a_wait_that_the_deadline_does_not_allow_is_not_begun(
    shell: Any, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core.random, "uniform", lambda low, high: high)
    failing.errors = [QueueFull("full")]
    started = time.monotonic()
    with shell("server:8001", retry=Retry(9, first=100, most=100), transport=failing, timeout=5) as client:
        with pytest.raises(QueueFull):
            client.retrieve()
        assert time.monotonic() - started < 5
    assert len(failing.requests) == 1


def test_one_deadline_covers_all_tries(shell: Any, failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core.random, "uniform", lambda low, high: 0.03)
    failing.errors = [QueueFull("full")] * 1000
    with (
        shell("server:8001", retry=Retry(1000), transport=failing, timeout=0.2) as client,
        pytest.raises((QueueFull, DeadlineExceeded)),
    ):
        client.retrieve()
    assert failing.timeouts == sorted(failing.timeouts, reverse=True)
    assert 2 <= len(failing.timeouts) <= 7


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"attempts": True}, {"attempts": 2.0}, {"first": -1}, {"most": float("inf")}]
)
def test_retry_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="retry"):
        Retry(**wrong)


@pytest.fixture
def three(schema: Schema, answer: Any) -> list[FakeTransport]:
    return [FakeTransport(schema, answer) for _ in range(3)]


ADDRESSES = ["a:1", "b:1", "c:1"]


def test_endpoints_share_the_load(shell: Any, three: list[FakeTransport]) -> None:
    with shell(ADDRESSES, transport=three) as client:
        for _ in range(300):
            client.retrieve()
    counts = [len(transport.requests) for transport in three]
    assert sum(counts) == 300
    assert min(counts) > 60  # of 100 expected: 5 standard deviations below
    assert [transport.config_reads for transport in three] == [1, 1, 1]


def test_another_endpoint_is_tried_at_once_and_the_failed_one_left_alone(
    shell: Any, three: list[FakeTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        tried["a"] += 1
        raise ConnectionFailed("a is gone")

    tried: Counter[str] = Counter()
    monkeypatch.setattr(three[0], "infer", gone)
    monkeypatch.setattr(_core.random, "uniform", lambda low, high: pytest.fail("waited"))
    with shell(ADDRESSES, timeout=5, transport=three) as client:
        for _ in range(50):
            assert client.retrieve(k=1).count == 1
    assert 1 <= tried["a"] <= 10
    assert len(three[1].requests) + len(three[2].requests) == 50


@pytest.mark.parametrize("error", [ModelNotFound, WrongServer])
@pytest.mark.parametrize("method", ["infer", "model_config"])
def test_what_one_endpoint_lacks_another_may_have(
    shell: Any, three: list[FakeTransport], monkeypatch: pytest.MonkeyPatch, error: Any, method: str
) -> None:
    """And where none has it, each is asked once, without a wait."""
    tried: Counter[int] = Counter()

    def lacking(number: int) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            tried[number] += 1
            raise error(f"{number} has it not")

        return fail

    monkeypatch.setattr(_core.random, "uniform", lambda low, high: pytest.fail("waited"))
    monkeypatch.setattr(three[0], method, lacking(0))
    with shell(ADDRESSES, timeout=30, transport=three) as client:
        for _ in range(50):
            assert client.retrieve(k=1).count == 1
    assert 1 <= tried[0] <= 10
    tried.clear()
    for number in (1, 2):
        monkeypatch.setattr(three[number], method, lacking(number))
    with shell(ADDRESSES, timeout=30, transport=three) as client, pytest.raises(error, match="has it not"):
        client.retrieve()
    assert tried == {0: 1, 1: 1, 2: 1}


def test_an_endpoint_without_a_ranking_model_is_not_left_alone(
    shell: Any, three: list[FakeTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(model_config: Any) -> Any:
        def read(model: str, *arguments: Any, **named: Any) -> Any:
            if model == "retrieval_rank":
                raise ModelNotFound(model)
            return model_config(model, *arguments, **named)

        return read

    for transport in three:
        monkeypatch.setattr(transport, "model_config", without(transport.model_config))
    with shell(ADDRESSES, timeout=30, transport=three) as client:
        for _ in range(5):
            with pytest.raises(ModelNotFound):
                client.rank(items=[1])
        for _ in range(300):
            client.retrieve()
    assert min(len(transport.requests) for transport in three) > 60  # as above


def test_endpoints_of_different_artifacts(shell: Any, three: list[FakeTransport], schema: Schema, answer: Any) -> None:
    """In the middle of a rollout each is asked in the terms of its own schema."""
    import dataclasses

    other = dataclasses.replace(schema, max_results=7, user_features=schema.user_features[:1])
    three[1].schema_text, three[1].answers = other.to_json(), lambda batch: answer(other, batch)
    with shell(ADDRESSES, transport=three) as client:
        counts = {client.retrieve(user={"user_id": 1}).count for _ in range(60)}
        assert counts == {20, 7}
        assert all(result.count == 3 for result in client.retrieve_many([Request(k=3)] * 20))
    assert set(three[1].requests[0]) == {"user_id", "history", "filter", "exclude", "task_weights", "search"}
    assert [transport.config_reads for transport in three] == [1, 1, 1]


def test_headers_of_client_and_call(shell: Any, transport: Any) -> None:
    with shell("server:8001", headers={"Key": "a", "trace": "0"}, transport=transport) as client:
        client.retrieve()
        client.retrieve(headers={"TRACE": "1"})
        client.retrieve_many([Request()], headers={"trace": "2"})
        for wrong in ({"a b": "c"}, {"grpc-timeout": "1S"}, {"x-bin": "1"}, {"x": 1}, {"x": "ü"}, {1: "x"}, "x", []):
            with pytest.raises(InvalidValue, match="headers") as caught:
                client.retrieve(headers=wrong)
            assert "ü" not in str(caught.value)
    assert transport.headers == [{"key": "a", "trace": str(number)} for number in range(3)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"address": []}, "host:port"),
        ({"address": ["a:1", "a:1"]}, "each address once"),
        ({"address": [7]}, "host:port"),
        ({"address": 7}, "host:port"),
        ({"address": b"a:1"}, "host:port"),
        ({"address": ""}, "host:port"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"retry": 3}, "retry: got 3 .*Retry"),
        ({"tls": True}, "tls: got True .*TLS"),
        ({"version": 0}, "version"),
        ({"version": True}, "version"),
        ({"compression": "lz4"}, "compression"),
        ({"hedge": -1}, "hedge"),
        ({"hedge": True}, "hedge"),
        ({"hedge": 1e10}, "hedge"),
        ({"address": ["a:1", "b:1"], "transport": [object()]}, "got 1 for 2 addresses"),
    ],
)
def test_options_are_checked(shell: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        shell(**{"address": "a:1", **options})


def test_a_hedged_call_needs_a_transport_that_can_give_up(transport: Any) -> None:
    with pytest.raises(InvalidValue, match="cannot start a request without waiting"):
        SHELLS["sync"]("a:1", hedge=0.1, transport=transport)
