"""The stock server takes requests of which some tensors lie in a slot and others in the message.

Files in /dev/shm take the place of a device's memory (tests/client/host_device.py); a real one:
test_gpu_shared_memory.py.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.serving.server import StockServer
from client import AsyncRetrievalClient, DeviceArray, F, Request, Retrieval, RetrievalClient, ServerError
from tests.client.host_device import host_device, on_device
from tests.end_to_end.conftest import Shop

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("host_device")]
__all__ = ["host_device"]  # a fixture


def own_slots() -> list[Path]:
    return list(Path("/dev/shm").glob(f"silvertriton-client-{os.getpid()}-*"))


def settings(server: StockServer) -> dict[str, Any]:
    return {"timeout": 20, "shared_memory": "cuda:0", "headers": server.admin_headers}


def as_files(client: Any) -> None:
    """Let the client speak of its slots to the server as what they are."""
    client._own[0]._slots.kind = "System"


def requests(shop: Shop, count: int) -> list[Request]:
    conditions = [None, F.genres.any_of("Drama", "War"), F.year >= 1980]
    return [Request(query=query, filter=conditions[at % 3]) for at, query in enumerate(shop.queries[:count])]


def assert_same(one: Any, other: Any) -> None:
    assert isinstance(one, Retrieval), one
    assert isinstance(one.item_ids, DeviceArray)
    np.testing.assert_array_equal(np.asarray(one.item_ids), other.item_ids)
    np.testing.assert_array_equal(np.asarray(one.scores), other.scores)
    assert list(one) == list(other)
    assert (one.stats, one.version) == (other.stats, other.version)


def test_results_are_those_of_messages(server: StockServer, client: RetrievalClient, shop: Shop) -> None:
    asked = requests(shop, 64)
    expected = client.retrieve_many(asked)
    with RetrievalClient(server.url, **settings(server)) as shared:
        as_files(shared)
        mixed = [
            replace(one, query=on_device(np.asarray(one.query))) if at % 3 else one for at, one in enumerate(asked)
        ]
        many, again = shared.retrieve_many(mixed), shared.retrieve_many(mixed)  # the slots of both are in use
        for one, two, other in zip(many, again, expected, strict=True):
            assert_same(one, other)
            assert_same(two, other)
        del many, again, one, two
        for at in range(6):
            assert_same(shared.retrieve(query=on_device(shop.queries[at]), filter=asked[at].filter), expected[at])
            assert_same(shared.retrieve(query=shop.queries[at], filter=asked[at].filter), expected[at])
        assert len(own_slots()) == 2
        items = shop.ids[:40]
        one, other = (
            shared.rank(query=on_device(shop.queries[0]), items=items),
            client.rank(query=shop.queries[0], items=items),
        )
        np.testing.assert_array_equal(one.item_ids, other.item_ids)
        why = shared.explain(int(shop.ids[0]), Request(query=on_device(shop.queries[0]), k=5))
        assert str(why) == str(client.explain(int(shop.ids[0]), Request(query=shop.queries[0], k=5)))
        kept = shared.retrieve(query=shop.queries[0], k=5)
    assert own_slots() == []
    assert kept.item_ids.tolist() == expected[0].item_ids[:5].tolist()  # a result outlives the client


def test_with_asyncio(server: StockServer, client: RetrievalClient, shop: Shop) -> None:
    asked = requests(shop, 8)
    expected = client.retrieve_many(asked)

    async def calls() -> list[Retrieval]:
        async with AsyncRetrievalClient(server.url, **settings(server)) as shared:
            as_files(shared)
            ask = [shared.retrieve(query=on_device(np.asarray(one.query)), filter=one.filter) for one in asked * 4]
            return await asyncio.gather(*ask)

    for number, one in enumerate(asyncio.run(calls())):
        assert_same(one, expected[number % 8])
    assert own_slots() == []


def test_a_bad_vector_is_the_servers_to_refuse(server: StockServer, shop: Shop) -> None:
    query = shop.queries[0].copy()
    query[3] = np.nan
    with RetrievalClient(server.url, **settings(server)) as shared:
        as_files(shared)
        good, bad = shared.retrieve_many([Request(query=shop.queries[1]), Request(query=on_device(query))])
    assert isinstance(good, Retrieval)
    assert "the query vector holds NaN or infinity" in str(bad)


def test_a_server_without_that_memory(server: StockServer, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from client._shared_memory import service_pb2
    from tests.client.host_device import HostMemory

    def cuda(self: Any) -> Any:
        return service_pb2.CudaSharedMemoryRegisterRequest(
            name="x", raw_handle=bytes(64), device_id=0, byte_size=self.size
        )

    monkeypatch.setattr(HostMemory, "register_request", cuda)
    with (
        RetrievalClient(server.url, **settings(server)) as shared,
        pytest.raises(ServerError, match=r"shared_memory='cuda:N' needs a server on this host that uses the same GPU"),
    ):
        shared.retrieve(query=shop.queries[0])
    assert own_slots() == []
