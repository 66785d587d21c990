from __future__ import annotations

from typing import Any

import pytest

from client import ConnectionFailed, DeadlineExceeded, ModelUnavailable, QueueFull, RequestError, ServerError
from client._balancer import DOUBTFUL, SUSPENDED_FIRST, SUSPENDED_MOST, Balancer, Endpoint


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def balancer(clock: Clock, count: int) -> tuple[Balancer, list[Endpoint]]:
    endpoints = [Endpoint(f"{number}:1", None) for number in range(count)]
    return Balancer(endpoints, clock), endpoints


def taken(of: Balancer, avoid: Any = ()) -> Endpoint:
    endpoint = of.take(avoid)
    assert endpoint is not None
    of.release(endpoint)
    return endpoint


def test_the_less_busy_of_two(clock: Clock) -> None:
    balance, (busy, idle) = balancer(clock, 2)
    busy.busy = 1
    assert {taken(balance).name for _ in range(50)} == {idle.name}
    held = [balance.take() for _ in range(9)]
    assert sorted([busy.busy, idle.busy]) == [5, 5]
    for endpoint in held:
        assert endpoint is not None
        balance.release(endpoint)
    assert (busy.busy, idle.busy) == (1, 0)


def test_the_busiest_of_three_is_never_taken(clock: Clock) -> None:
    balance, (a, b, c) = balancer(clock, 3)
    a.busy, b.busy, c.busy = 5, 3, 3
    assert {taken(balance).name for _ in range(60)} == {b.name, c.name}


@pytest.mark.parametrize("error", [ConnectionFailed("x"), ModelUnavailable("x")])
def test_suspended_for_longer_with_each_failure_in_a_row(clock: Clock, error: Exception) -> None:
    balance, (bad, good) = balancer(clock, 2)
    for failures in range(1, 12):
        balance.report(bad, error)
        longest = min(SUSPENDED_MOST, SUSPENDED_FIRST * 2 ** (failures - 1))
        assert longest / 2 <= bad.resumes - clock.now <= longest
        assert {taken(balance) for _ in range(20)} == {good}
        clock.now = bad.resumes
    assert bad in {taken(balance) for _ in range(40)}
    balance.report(bad, None)
    assert (bad.failures, bad.resumes) == (0, 0.0)


def test_only_one_request_tries_a_suspended_endpoint(clock: Clock) -> None:
    balance, (bad, _good) = balancer(clock, 2)
    balance.report(bad, ConnectionFailed("x"))
    clock.now = bad.resumes
    chosen = [taken(balance) for _ in range(100)]
    assert chosen.count(bad) == 1


@pytest.mark.parametrize("error", [DeadlineExceeded("x"), ServerError("x")])
def test_what_may_be_the_requests_fault_counts_later(clock: Clock, error: Exception) -> None:
    balance, (bad, _) = balancer(clock, 2)
    for _ in range(DOUBTFUL - 1):
        balance.report(bad, error)
    assert bad in balance.working()
    balance.report(bad, None)
    for _ in range(DOUBTFUL - 1):
        balance.report(bad, error)
    assert bad in balance.working()
    balance.report(bad, error)
    assert bad not in balance.working()


@pytest.mark.parametrize("error", [QueueFull("x"), RequestError("x")])
def test_what_is_not_the_endpoints_fault(clock: Clock, error: Exception) -> None:
    balance, (one, _) = balancer(clock, 2)
    for _ in range(9):
        balance.report(one, error)
    assert one in balance.working()


def test_avoided_where_another_works(clock: Clock) -> None:
    balance, (a, b) = balancer(clock, 2)
    assert {taken(balance, [a]) for _ in range(20)} == {b}
    assert balance.take([a, b]) in (a, b)
    assert balance.take([a, b], only_other=True) is None
    balance.report(b, ConnectionFailed("x"))
    assert taken(balance, [a]) is a
    assert balance.take([a], only_other=True) is None


def test_where_none_works_the_one_whose_time_comes_first(clock: Clock) -> None:
    balance, (a, b) = balancer(clock, 2)
    a.resumes, b.resumes = clock.now + 2, clock.now + 1
    assert taken(balance) is b


def test_a_lone_endpoint_is_always_taken(clock: Clock) -> None:
    balance, (only,) = balancer(clock, 1)
    balance.report(only, ConnectionFailed("x"))
    assert taken(balance, [only]) is only
    assert balance.take([], only_other=True) is None


def test_what_is_served_may_grow_while_a_failure_is_noted(clock: Clock) -> None:
    """Other threads read schemas meanwhile."""
    balance, (endpoint,) = balancer(clock, 1)

    class Served:
        def __setattr__(self, name: str, value: float) -> None:
            endpoint.served["retrieval_rank"] = endpoint.served["retrieval"]

    served: Any = Served()
    endpoint.served["retrieval"] = served
    balance.report(endpoint, ConnectionFailed("no"))
    assert endpoint.failures == 1
