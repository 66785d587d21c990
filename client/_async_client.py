"""The client for asyncio: carries the steps of `client._core` out, as `client/_client.py` does with threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from numpy.typing import ArrayLike

from client._core import Core
from client._endpoints import (
    addresses_of,
    check_compression,
    check_hedge,
    check_shared_memory,
    check_tls,
    connected,
    device_number,
    given,
)
from client._explanation import Explanation
from client._models import Ranking, Request, Retrieval
from client._steps import Infer, Pause, Step, Steps
from client.contract import Contract
from client.errors import RequestError
from client.filters.conditions import Condition
from client.options import TLS, Compression, Retry
from client.schema import Schema
from client.transport import AsyncTransport

R = TypeVar("R")


class AsyncRetrievalClient:
    """`RetrievalClient` for asyncio; arguments, results and errors are the same.

        async with AsyncRetrievalClient("localhost:8001", timeout=1.0) as client:
            one, two = await asyncio.gather(client.retrieve(user={"user_id": 1}), client.retrieve(user={"user_id": 2}))

    Cancelling a task that waits for a call cancels the request, on the server too. A client belongs to the event loop
    of its first call. `hedge` also works with transports of your own.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        model: str = "retrieval",
        version: int | None = None,
        timeout: float = 1.0,
        retry: Retry | None = Retry(),  # noqa: B008 - immutable
        hedge: float | None = None,
        headers: Mapping[str, str] | None = None,
        compression: Compression | None = None,
        tls: TLS | None = None,
        shared_memory: bool | str = False,
        max_filter_words: int | None = None,
        transport: AsyncTransport | Sequence[AsyncTransport] | None = None,
    ) -> None:
        addresses = addresses_of(address)
        check_hedge(hedge, transport, needs_grpc=False)
        check_compression(compression)
        check_tls(tls)
        check_shared_memory(shared_memory, hedge, transport)
        self._repr = f"AsyncRetrievalClient({', '.join(map(repr, addresses))}, model={model!r}, timeout={timeout})"
        self._own: list[Any] = []

        def connect(name: str) -> Any:
            from client._grpc import AsyncGrpcTransport  # grpc takes long to import

            self._own.append(AsyncGrpcTransport(name, tls=tls, compression=compression, shared_memory=shared_memory))
            return self._own[-1]

        self._hedge = hedge
        self._left: set[Any] = set()  # requests of hedged calls that another answer made superfluous
        self._core = Core(
            self._repr,
            connected(addresses, connect, hedge) if transport is None else given(addresses, transport),
            model=model,
            version=version,
            timeout=timeout,
            retry=retry,
            headers=headers,
            max_filter_words=max_filter_words,
            device=device_number(shared_memory),
        )

    async def schema(self) -> Schema:
        """What the artifact expects and returns; read from the server on first use."""
        return (await self._run(self._core.codec())).schema

    async def contract(self) -> Contract:
        """See `RetrievalClient.contract`."""
        return (await self._run(self._core.codec())).contract

    async def retrieve(
        self,
        user: Mapping[str, Any] | None = None,
        *,
        history: Iterable[int] | None = None,
        query: ArrayLike | None = None,
        filter: Condition | None = None,
        exclude: Iterable[int] | None = None,
        k: int | None = None,
        task_weights: Mapping[str, float] | None = None,
        probes: int | None = None,
        candidates: int | None = None,
        key: str | int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Retrieval:
        """See `RetrievalClient.retrieve`."""
        request = Request(
            user=user,
            history=history,
            query=query,
            filter=filter,
            exclude=exclude,
            k=k,
            task_weights=task_weights,
            probes=probes,
            candidates=candidates,
            key=key,
        )
        return await self._run(self._core.retrieve(request, timeout, headers))

    async def retrieve_many(
        self, requests: Iterable[Request], *, timeout: float | None = None, headers: Mapping[str, str] | None = None
    ) -> list[Retrieval | RequestError]:
        """See `RetrievalClient.retrieve_many`."""
        return await self._run(self._core.retrieve_many(requests, timeout, headers))

    async def rank(
        self,
        user: Mapping[str, Any] | None = None,
        *,
        items: Iterable[int],
        history: Iterable[int] | None = None,
        query: ArrayLike | None = None,
        task_weights: Mapping[str, float] | None = None,
        k: int | None = None,
        key: str | int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Ranking:
        """See `RetrievalClient.rank`."""
        request = Request(user=user, history=history, query=query, task_weights=task_weights, key=key)
        return await self._run(self._core.rank(request, items, k, timeout, headers))

    async def explain(
        self,
        item_id: int,
        request: Request,
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Explanation:
        """See `RetrievalClient.explain`."""
        return await self._run(self._core.explain(item_id, request, timeout, headers))

    async def close(self) -> None:
        """Close the connections. Later calls raise `ClientClosed`; closing again does nothing."""
        self._core.closed = True
        while self._own:
            await self._own.pop().close()
        if self._left:
            import asyncio  # loaded by whoever runs this; not by an import of `client`

            left = list(self._left)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def __aenter__(self) -> AsyncRetrievalClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return self._repr

    async def _run(self, steps: Steps[R]) -> R:
        try:
            step = next(steps)
            while True:
                try:
                    done = await self._carry_out(step)
                except BaseException as error:  # noqa: PERF203 - CancelledError too: what is on its way is accounted for
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            result: R = end.value
            return result

    async def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Infer):
            if self._hedge is not None:
                from client._hedging import async_race

                return await async_race(step, self._hedge, self._core.balancer, self._left)
            answer = await step.endpoint.transport.infer(
                step.model, step.inputs, step.timeout, version=step.version, headers=step.headers
            )
            return answer, step.endpoint
        if isinstance(step, Pause):
            import asyncio  # loaded by whoever runs this; not by an import of `client`

            return await asyncio.sleep(step.seconds)
        return await step.endpoint.transport.model_config(
            step.model, step.timeout, version=step.version, headers=step.headers
        )
