"""More requests than the stock server can compute: right answers or clear refusals, and none is computed for nobody."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from builder.serving.rollout import choose
from builder.serving.server import StockServer
from client import AsyncRetrievalClient, DeadlineExceeded, QueueFull, Request, Retrieval, RetrievalClient
from tests.end_to_end.conftest import Shop

pytestmark = pytest.mark.server

CALLS, ROWS = 150, 64


def metric(server: StockServer, name: str) -> float:
    """The sum over all models and versions of one metric."""
    with urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}.*? (\S+)$", text, flags=re.MULTILINE))


def flood(server: StockServer, shop: Shop, timeout: float) -> tuple[Counter[str], list[list[Retrieval]]]:
    """How many calls ended how, and the answers of those that were answered, each of the first `ROWS` queries."""
    requests = [Request(query=query, k=5) for query in shop.queries[:ROWS]]

    async def calls() -> list[object]:
        async with AsyncRetrievalClient(server.url, timeout=timeout, retry=None) as client:
            await client.schema()
            return list(
                await asyncio.gather(*(client.retrieve_many(requests) for _ in range(CALLS)), return_exceptions=True)
            )

    ends = asyncio.run(calls())
    return Counter(type(end).__name__ for end in ends), [end for end in ends if isinstance(end, list)]


def assert_right(answers: list[list[Retrieval]], expected: list[Retrieval]) -> None:
    for answer in answers:
        for found, wanted in zip(answer, expected, strict=True):
            np.testing.assert_array_equal(found.item_ids, wanted.item_ids)


def test_what_is_past_its_deadline_is_not_computed(server: StockServer, shop: Shop) -> None:
    with RetrievalClient(server.url, timeout=60) as client:
        expected = client.retrieve_many([Request(query=query, k=5) for query in shop.queries[:ROWS]])
        computed = metric(server, "nv_inference_count")
        sent, dropped = 0, 0.0
        for timeout in (0.2, 0.1, 0.05, 0.02):  # shorter where the machine is faster
            ends, answers = flood(server, shop, timeout)
            assert set(ends) <= {"list", DeadlineExceeded.__name__}, ends
            assert_right(answers, expected)
            assert_right([client.retrieve_many([Request(query=q, k=5) for q in shop.queries[:ROWS]])], expected)
            sent += CALLS + 1
            dropped = metric(server, 'nv_inference_request_failure{model="retrieval",reason="CANCELED"')
            if dropped:
                break
        assert dropped > 0
        assert metric(server, "nv_inference_count") - computed <= (sent - dropped) * ROWS
        assert metric(server, "nv_inference_pending_request_count") == 0


def test_a_limited_queue_turns_away_what_does_not_fit(repository: Path, shop: Shop, tmp_path: Path) -> None:
    """No export limits it (docs/serving.md says why); where somebody does, clients are told."""
    limited = Path(shutil.copytree(repository, tmp_path / "repository"))
    config = limited / "retrieval" / "1" / "config.pbtxt"
    text = config.read_text()
    assert "dynamic_batching {\n}" in text
    config.write_text(
        text.replace("dynamic_batching {\n}", "dynamic_batching { default_queue_policy { max_queue_size: 4 } }")
    )
    choose(limited, "retrieval", 1)
    with StockServer(limited, log=tmp_path / "log") as server, RetrievalClient(server.url, timeout=60) as client:
        expected = client.retrieve_many([Request(query=query, k=5) for query in shop.queries[:ROWS]])
        ends, answers = flood(server, shop, 60)
        assert set(ends) == {"list", QueueFull.__name__}, ends
        assert_right(answers, expected)
        assert_right([client.retrieve_many([Request(query=q, k=5) for q in shop.queries[:ROWS]])], expected)
