"""The synchronous client: carries the steps of `client._core` out."""

from __future__ import annotations

import time
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
from client.transport import Transport

R = TypeVar("R")


class RetrievalClient:
    """Retrieves from one SilverTriton artifact on one Triton Inference Server or several.

        with RetrievalClient("localhost:8001", model="retrieval", timeout=1.0) as client:
            result = client.retrieve(user={"user_id": 42}, filter=F.genres.any_of("Drama"), k=10)

    `address`: host:port of the server's gRPC endpoint. Of several, each request goes to the less busy of two drawn at
        random; one that fails is left alone for 0.1 to 10 seconds, longer with each failure in a row.
    `version`: of the model; None: the one that is served, and of a canary its share.
    `timeout`: seconds that a call may take in all, every try included, unless the call says otherwise.
    `retry`: when a call is tried again; None: never.
    `hedge`: seconds without an answer after which a request is also sent to another endpoint, or on a second connection
        to the only one; the first answer wins, the other request is left to end by itself. None: never. The 95th
        percentile of the latency is a usual choice: it adds at most a twentieth to the load.
    `headers`: sent with every call, such as the key of a restricted protocol or a trace's context. Names are
        case-insensitive.
    `compression`: of requests, "gzip" or "deflate"; the server chooses for its answers.
    `tls`: how to encrypt; None: not at all.
    `shared_memory`: for a server on this host. True: tensors travel through system shared memory. "cuda:0": through
        memory of that CUDA device, which must also be the server's: `query` and `history` may be arrays on it (anything
        with `__dlpack__`), the arrays of a `Retrieval` are `DeviceArray`s there. Needs `silvertriton[cuda]`.
    `max_filter_words`: of a filter's program; longer ones are refused before they are sent. None: what the artifact
        allows.
    `transport`: takes the place of gRPC, one or one an address; it stays the caller's to close.

    Nothing is sent before the first call, which also reads the artifact's schema. A client follows a replaced artifact
    by itself, and a canary within 3 seconds. Threads may share a client, forked processes may not.
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
        transport: Transport | Sequence[Transport] | None = None,
    ) -> None:
        addresses = addresses_of(address)
        check_hedge(hedge, transport, needs_grpc=True)
        check_compression(compression)
        check_tls(tls)
        check_shared_memory(shared_memory, hedge, transport)
        self._repr = f"RetrievalClient({', '.join(map(repr, addresses))}, model={model!r}, timeout={timeout})"
        self._own: list[Any] = []

        def connect(name: str) -> Any:
            from client._grpc import GrpcTransport  # grpc takes long to import, and the builder needs only the schema

            self._own.append(GrpcTransport(name, tls=tls, compression=compression, shared_memory=shared_memory))
            return self._own[-1]

        self._hedge = hedge
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

    @property
    def schema(self) -> Schema:
        """What the artifact expects and returns; read from the server on first use."""
        return self._run(self._core.codec()).schema

    @property
    def contract(self) -> Contract:
        """What the artifact understands beside its schema; `max_filter_words` is the lower of its and the client's."""
        return self._run(self._core.codec()).contract

    def retrieve(
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
        """Retrieve for one user; the arguments are those of `Request`, `timeout` in seconds, `headers` of this call.

        Raises `RequestError` when the request is wrong and any other `SilverTritonError` when the call fails.
        """
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
        return self._run(self._core.retrieve(request, timeout, headers))

    def retrieve_many(
        self, requests: Iterable[Request], *, timeout: float | None = None, headers: Mapping[str, str] | None = None
    ) -> list[Retrieval | RequestError]:
        """Retrieve for many users in as few calls as the model's `max_batch_size` allows; `timeout` covers them all.

        Returns one entry a request, in order: a `Retrieval`, or the `RequestError` that `retrieve` would have raised. A
        wrong request is never sent and never affects the others:

            for request, result in zip(requests, client.retrieve_many(requests)):
                if isinstance(result, RequestError):
                    log.warning("user %s: %s", request.user, result)
                else:
                    show(result.item_ids)

        Raises any other `SilverTritonError` when a call fails as a whole.
        """
        return self._run(self._core.retrieve_many(requests, timeout, headers))

    def rank(
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
        """Score given items for one user, as `retrieve` would score them, and return the best `k` (None: all).

        `items`: item ids, any number of them. The other arguments are those of `retrieve`. The model asked is the
        ranking model of the same export, MODEL_rank.

        Raises `RequestError` when the request is wrong, `SchemaMismatch` when both models are served but of different
        exports, and any other `SilverTritonError` when the call fails.
        """
        request = Request(user=user, history=history, query=query, task_weights=task_weights, key=key)
        return self._run(self._core.rank(request, items, k, timeout, headers))

    def explain(
        self,
        item_id: int,
        request: Request,
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Explanation:
        """Say why an item is, or is not, among the results of a request; `str()` of the answer is a sentence or two.

            print(client.explain(318, Request(user={"user_id": 42}, filter=F.year >= 1990, k=10)))

        Found by asking the server what would be if something were otherwise, in two calls mostly (a few more under
        rules of diversity), to one version of the model: if it is replaced meanwhile, all of it is asked again, once.
        `timeout` covers them all.

        Raises `RequestError` when the item id or the request is wrong, and any other `SilverTritonError` when a call
        fails.
        """
        return self._run(self._core.explain(item_id, request, timeout, headers))

    def close(self) -> None:
        """Close the connections. Later calls raise `ClientClosed`; closing again does nothing."""
        self._core.closed = True
        own, self._own = self._own, []
        for transport in own:
            transport.close()

    def __enter__(self) -> RetrievalClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return self._repr

    def _run(self, steps: Steps[R]) -> R:
        try:
            step = next(steps)
            while True:
                try:
                    done = self._carry_out(step)
                except BaseException as error:  # noqa: PERF203 - KeyboardInterrupt too: what is on its way is accounted for
                    step = steps.throw(error)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            result: R = end.value
            return result

    def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Infer):
            if self._hedge is not None:
                from client._hedging import race

                return race(step, self._hedge, self._core.balancer)
            answer = step.endpoint.transport.infer(
                step.model, step.inputs, step.timeout, version=step.version, headers=step.headers
            )
            return answer, step.endpoint
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        return step.endpoint.transport.model_config(
            step.model, step.timeout, version=step.version, headers=step.headers
        )
