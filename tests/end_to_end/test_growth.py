"""A client that has made many calls holds no more than one that has made few."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest

from builder.serving.server import StockServer
from client import F, ModelNotFound, Request, UnknownName
from tests.client.shells import SHELLS
from tests.end_to_end.conftest import Shop

pytestmark = pytest.mark.server

CALLS = 60
HEDGING = {"hedge": 5e-4}  # seconds; some answers come before, some later
SHARED = {"shared_memory": True}


def one(client: Any, shop: Shop, number: int) -> None:
    client.retrieve(query=shop.queries[number % 4], filter=F.year >= 1980 + number % 3, exclude=shop.ids[:9])


def many(client: Any, shop: Shop, number: int) -> None:
    client.retrieve_many(
        Request(query=query, filter=F.genres.any_of("War")) for query in shop.queries[: 8 + number % 2]
    )


def rank(client: Any, shop: Shop, number: int) -> None:
    client.rank(query=shop.queries[number % 4], items=shop.ids[:40])


def explain(client: Any, shop: Shop, number: int) -> None:
    client.explain(int(shop.ids[number % 4]), Request(query=shop.queries[0], filter=F.year >= 1980))


def wrong(client: Any, shop: Shop, number: int) -> None:
    with pytest.raises(UnknownName):
        client.retrieve(query=shop.queries[0], filter=F.nothing == number % 3)


def absent(client: Any, shop: Shop, number: int) -> None:
    with pytest.raises(ModelNotFound):
        client.retrieve(query=shop.queries[0])


@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS)
@pytest.mark.parametrize(
    ("ask", "options"),
    [
        (one, {}), (many, {}), (rank, {}), (explain, {}), (wrong, {}), (absent, {"model": "none"}), (one, HEDGING),
        (one, SHARED), (many, SHARED),
    ],
    ids=lambda value: value.__name__ if callable(value) else " ".join(value),
)  # fmt: skip
def test_calls_leave_nothing_behind(
    server: StockServer, shop: Shop, shell: Any, ask: Callable[..., None], options: dict[str, Any]
) -> None:
    """Blocks of Python's allocator; the least of three rounds, as a thread of gRPC may free one round's in the next."""
    with shell(server.url, timeout=20, headers=server.admin_headers, **options) as client:
        rounds, before = [], 0
        for number in range(4 * CALLS):
            ask(client, shop, number)
            if number % CALLS == CALLS - 1:
                gc.collect()
                rounds.append(sys.getallocatedblocks() - before)
                before = sys.getallocatedblocks()
    assert min(rounds[1:]) < CALLS // 4, f"blocks more after each {CALLS} calls: {rounds[1:]}"
