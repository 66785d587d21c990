"""Hedged requests over gRPC: whose answer counts, and what becomes of the other request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from client import ConnectionFailed, DeadlineExceeded, Retry, Schema, ServerError
from tests.client.grpc_service import Service, serving
from tests.client.shells import SHELLS


@pytest.fixture(params=["sync", "async"])
def shell(request: pytest.FixtureRequest) -> Any:
    return SHELLS[request.param]


@pytest.fixture
def services(schema: Schema, answer: Any) -> list[Service]:
    return [Service(schema, answer) for _ in range(2)]


@pytest.fixture
def addresses(services: list[Service]) -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [f"127.0.0.1:{stack.enter_context(serving(service))}" for service in services]


def warm(client: Any, services: list[Service]) -> None:
    """Both endpoints have been asked."""
    for _ in range(200):
        client.retrieve()
        if all(service.peers for service in services):
            return
    pytest.fail("one endpoint was never asked")


def test_a_fast_answer_is_not_hedged(shell: Any, services: list[Service], addresses: list[str]) -> None:
    with shell(addresses, timeout=20, hedge=15) as client:
        for _ in range(20):
            client.retrieve()
    assert sum(len(service.peers) for service in services) == 20


def test_the_first_answer_wins_and_the_other_request_is_left_alone(
    shell: Any, services: list[Service], addresses: list[str]
) -> None:
    with shell(addresses, timeout=20, hedge=0.02) as client:
        warm(client, services)
        slow, fast = services
        for _ in range(100):  # until the slow one is asked first
            before = len(fast.peers)
            slow.held_once = True
            started = time.monotonic()
            assert client.retrieve(k=3).count == 3
            assert time.monotonic() - started < 9  # it holds for ten seconds
            if not slow.held_once:
                assert len(fast.peers) == before + 1
                break
        assert not slow.given_up.acquire(timeout=0.1)  # a cancelled one may end the server
        busy = [endpoint.busy for endpoint in client_core(client).balancer.endpoints]
        assert sorted(busy) == [0, 1]  # the slower one is on its way still


def test_one_address_has_two_connections(shell: Any, services: list[Service], addresses: list[str]) -> None:
    with shell(addresses[0], timeout=20, hedge=0.02) as client:
        client.retrieve()
        services[0].held_once = True
        assert client.retrieve(k=3).count == 3
        assert not services[0].given_up.acquire(timeout=0.1)
        client.retrieve()
    assert services[0].given_up.acquire(timeout=10)  # by closing
    assert len(set(services[0].peers)) == 2


def test_a_failure_is_no_answer(shell: Any, services: list[Service], addresses: list[str]) -> None:
    """The second endpoint fails while the first is slow: the first one's answer is waited for."""
    bad, good = services
    with shell(addresses, timeout=20, hedge=0.02, retry=None) as client:
        warm(client, services)
        bad.fail = (grpc.StatusCode.INTERNAL, "boom")
        good.go_on.clear()
        for _ in range(20):
            try:
                threading.Timer(0.1, good.go_on.set).start()
                assert client.retrieve(k=3).count == 3
                break
            except ServerError:  # the bad one was asked first and said so before the delay
                good.go_on.clear()
        else:
            pytest.fail("the good one was never asked first")


def test_both_failures_raise_the_first_endpoints(shell: Any, services: list[Service], addresses: list[str]) -> None:
    for service in services:
        service.fail = (grpc.StatusCode.UNAVAILABLE, "no")
    with (
        shell(addresses, timeout=20, hedge=0.0, retry=Retry(attempts=1)) as client,
        pytest.raises(ConnectionFailed, match="no"),
    ):
        client.retrieve()


def test_the_deadline_holds(shell: Any, services: list[Service], addresses: list[str]) -> None:
    with shell(addresses, timeout=20, hedge=0.02) as client:
        warm(client, services)
        for service in services:
            service.go_on.clear()
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.retrieve(timeout=0.2)
        assert time.monotonic() - started < 5


def client_core(client: Any) -> Any:
    return client.__dict__["_client"]._core if "_client" in client.__dict__ else client._core
