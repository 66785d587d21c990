"""Both clients behind one face, so that one test says what both do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from client import AsyncRetrievalClient, RetrievalClient


class AsyncFake:
    """An `AsyncTransport` over a transport for tests."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    async def infer(self, *arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(0)
        return self._transport.infer(*arguments, **named)

    async def model_config(self, *arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(0)
        return self._transport.model_config(*arguments, **named)


class BlockingClient:
    """An `AsyncRetrievalClient` whose methods wait, in an event loop of its own."""

    def __init__(self, *arguments: Any, transport: Any = None, **options: Any) -> None:
        if transport is not None:
            several = isinstance(transport, list)
            transport = [AsyncFake(one) for one in transport] if several else AsyncFake(transport)
        self._client = AsyncRetrievalClient(*arguments, transport=transport, **options)
        self._loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Coroutine[Any, Any, Any]] = getattr(self._client, name)
        return lambda *arguments, **named: self._loop.run_until_complete(method(*arguments, **named))

    @property
    def schema(self) -> Any:
        return self._loop.run_until_complete(self._client.schema())

    @property
    def contract(self) -> Any:
        return self._loop.run_until_complete(self._client.contract())

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


SHELLS: dict[str, Any] = {"sync": RetrievalClient, "async": BlockingClient}
