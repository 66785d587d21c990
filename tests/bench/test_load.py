"""The load generator counts what a server's stall costs, also the requests that could not be sent meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

pytest.importorskip("hdrh", reason="needs the extra [bench]")
from _load import closed_loop, open_loop

STALL = 0.4


def test_latency_counts_from_when_a_request_was_due() -> None:
    """While the first request holds the whole process up, some 80 others fall due; none of them is answered sooner than
    the stall ends, though each one's own call returns at once."""
    sent = 0

    async def send(request: bytes) -> None:
        nonlocal sent
        sent += 1
        if sent == 1:
            time.sleep(STALL)  # not asyncio's: nothing can be sent meanwhile

    outcome = asyncio.run(open_loop(send, [b""], rate=200, seconds=1.0, seed=3))

    assert outcome.answered == outcome.due == sent
    figures = outcome.figures()
    assert figures["p50_ms"] < figures["p99_ms"]
    due_in_stall = 200 * STALL
    over = sum(
        item.count_added_in_this_iter_step
        for item in outcome.histogram.get_recorded_iterator()
        if item.value_iterated_to > 1e6 * STALL / 2
    )
    assert over > due_in_stall / 4  # half of them waited for more than half of it


def test_what_is_not_answered_counts_with_the_time_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_load.DRAIN", 0.1)

    async def send(request: bytes) -> None:
        await asyncio.sleep(60)

    outcome = asyncio.run(open_loop(send, [b""], rate=100, seconds=0.2, seed=1))

    assert outcome.answered == 0
    assert outcome.late == outcome.due > 0
    assert outcome.histogram.get_total_count() == outcome.due
    assert outcome.histogram.get_value_at_percentile(50) >= 100_000  # microseconds: what the drain took


def test_an_overwhelmed_server_ends_the_loop_and_every_request_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_load.MOST_WAITING", 5)
    monkeypatch.setattr("_load.DRAIN", 0.05)

    async def send(request: bytes) -> None:
        await asyncio.sleep(60)

    outcome = asyncio.run(open_loop(send, [b""], rate=1000, seconds=0.5, seed=2))

    assert outcome.late == outcome.due > 100
    assert outcome.histogram.get_total_count() == outcome.due
    assert outcome.seconds < 0.5


def test_a_failed_call_is_told() -> None:
    async def send(request: bytes) -> None:
        raise RuntimeError("no such model")

    outcome = asyncio.run(open_loop(send, [b""], rate=100, seconds=0.1, seed=1))

    assert outcome.failed == outcome.due > 0
    assert outcome.figures()["error"] == "no such model"


def test_a_closed_loop_sends_requests_in_turn() -> None:
    sent: list[bytes] = []

    async def send(request: bytes) -> None:
        sent.append(request)
        await asyncio.sleep(0.001)

    rate, answered = asyncio.run(closed_loop(send, [b"a", b"b"], clients=3, seconds=0.05))

    assert rate > 0
    assert answered == len(sent)
    assert sent[:4] == [b"a", b"b", b"a", b"b"]
