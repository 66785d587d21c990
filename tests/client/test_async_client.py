"""What only the asyncio client does; the rest is tested on both (test_refresh.py, test_retries.py, test_grpc.py)."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from client import AsyncRetrievalClient, ClientClosed, F, Request, Retrieval, RetrievalClient
from tests.client.shells import AsyncFake

METHODS = ("__init__", "retrieve", "retrieve_many", "rank", "close")


@pytest.mark.parametrize("name", METHODS)
def test_both_clients_take_the_same(name: str) -> None:
    one = inspect.signature(getattr(RetrievalClient, name)).parameters
    other = inspect.signature(getattr(AsyncRetrievalClient, name)).parameters
    assert list(one) == list(other)
    for parameter in one.values():
        assert parameter.kind == other[parameter.name].kind
        assert parameter.default == other[parameter.name].default
        assert parameter.annotation == other[parameter.name].annotation or parameter.name == "transport"


def test_both_clients_have_the_same_methods() -> None:
    public = [
        {name for name in vars(kind) if not name.startswith("_")} for kind in (RetrievalClient, AsyncRetrievalClient)
    ]
    assert public[0] == public[1] == {"schema", "contract", "retrieve", "retrieve_many", "rank", "explain", "close"}


def test_every_argument_reaches_the_request(transport: Any) -> None:
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

    async def calls() -> tuple[Retrieval, Any]:
        async with AsyncRetrievalClient("a:1", transport=AsyncFake(transport)) as client:
            return await client.retrieve(**arguments), await client.retrieve_many([Request(**arguments)])

    one, (many,) = asyncio.run(calls())
    assert one.count == many.count == 3
    first, second = transport.requests
    assert all((tensor == second[name]).all() for name, tensor in first.items() if name != "task_weights")
    assert first["task_weights"].tolist()[0][0] == second["task_weights"].tolist()[0][0] == 4.0
    assert first["search"].tolist() == [[5, 6]]


def test_calls_run_at_once(transport: Any) -> None:
    """Ten calls that wait for each other."""
    barrier = asyncio.Event()

    class Meeting(AsyncFake):
        here = 0

        async def infer(self, *arguments: Any, **named: Any) -> Any:
            self.here += 1
            if self.here == 10:
                barrier.set()
            await barrier.wait()
            return await super().infer(*arguments, **named)

    async def calls() -> list[Retrieval]:
        async with AsyncRetrievalClient("a:1", timeout=5, transport=Meeting(transport)) as client:
            await client.schema()
            return await asyncio.gather(*(client.retrieve(user={"user_id": user}, k=user) for user in range(1, 11)))

    assert [result.count for result in asyncio.run(calls())] == list(range(1, 11))


def test_a_cancelled_call_is_accounted_for(transport: Any) -> None:
    class Never(AsyncFake):
        async def infer(self, *arguments: Any, **named: Any) -> Any:
            await asyncio.Event().wait()

    async def calls() -> None:
        client = AsyncRetrievalClient("a:1", timeout=5, transport=Never(transport))
        await client.schema()
        task = asyncio.create_task(client.retrieve())
        await asyncio.sleep(0.01)
        (endpoint,) = client._core.balancer.endpoints
        assert endpoint.busy == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (endpoint.busy, endpoint.failures, endpoint.doubts) == (0, 0, 0)

    asyncio.run(calls())


def test_a_closed_client(transport: Any) -> None:
    async def calls() -> None:
        client = AsyncRetrievalClient("a:1", transport=AsyncFake(transport))
        async with client:
            await client.retrieve()
        await client.close()
        for call in (client.retrieve, client.schema, lambda: client.retrieve_many([])):
            with pytest.raises(ClientClosed, match="make a new client"):
                await call()

    asyncio.run(calls())


def test_repr() -> None:
    client = AsyncRetrievalClient(["a:1", "b:1"], timeout=0.5)
    assert repr(client) == "AsyncRetrievalClient('a:1', 'b:1', model='retrieval', timeout=0.5)"
    asyncio.run(client.close())
