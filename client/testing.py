"""A server for tests: answers as a real one does, from items that the test gives. Needs neither torch nor a server.

from client import F, Schema
from client.testing import FakeServer

schema = Schema.from_json(text)  # written by `client.schema.to_json()`
server = FakeServer(schema, [{"item_id": 7, "year": 1994}, {"item_id": 9, "year": 2001}])
with server.client() as client:
    assert [hit.item_id for hit in client.retrieve(filter=F.year >= 2000)] == [9]
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import ArrayLike, NDArray

from client._async_client import AsyncRetrievalClient
from client._client import RetrievalClient
from client._fake_network import FakeNetwork
from client.contract import Contract
from client.errors import DeadlineExceeded, ModelNotFound, SchemaMismatch, SilverTritonError, invalid_value
from client.schema import CANARY_SUFFIX, RANKING_SUFFIX, SHARE_PARAMETER, Schema
from client.transport import NO_HEADERS, Answer, AsyncTransport, Headers, ModelConfig

ADDRESS = "fake:8001"


@dataclass(frozen=True, slots=True)
class Call:
    """One inference that arrived: the model and version asked for, tensors by name as they travel, headers."""

    model: str
    version: str
    inputs: Mapping[str, NDArray[Any]]
    headers: Headers


class FakeServer:
    """A `Transport` that answers from given items. Threads may share it.

    `items`: N mappings of "item_id" and feature names to values, as `client.matches` takes them; a feature left out has
        no value.
    `scores`: [N] or [N, T] of the items, the same for every user. Left out: from 1 downwards in the order of `items`.
    `vectors`: [N, D] of the items, in place of `scores` where the schema takes a query vector: their inner products.
    `model`: its name; the ranking model of the same items is served beside it.
    `contract`: what it understands beside the schema, to play an older artifact or one with a lower `max_filter_words`.

    Filters, exclusions, limits, weights (an item's score is the sum of its task scores, each times its weight, 1 unless
    the request says otherwise), row statuses, the order of results and the ranking model are those of the wire
    contract. There are no clusters: every search is exact. `client()` and `async_client()` connect to it; `serving()`
    puts it behind a real gRPC port.

    `calls`: what arrived, in order. `delay`: seconds that an answer takes. `fail()`: what the next calls raise.
    `replace()`: another artifact, as the next version. `start_canary()`: one beside it, for a share of the requests.
    Raises `InvalidValue` for items that do not fit the schema.
    """

    def __init__(
        self,
        schema: Schema,
        items: Sequence[Mapping[str, Any]],
        *,
        scores: ArrayLike | None = None,
        vectors: ArrayLike | None = None,
        model: str = "retrieval",
        max_batch_size: int = 64,
        contract: Contract = Contract(),  # noqa: B008 - immutable
    ) -> None:
        self.calls: list[Call] = []
        self.delay = 0.0
        self._model = model
        self._max_batch_size = max_batch_size
        self._lock = threading.Lock()
        self._failures: list[SilverTritonError] = []
        self._version = 1
        self._contract = replace(contract, items=len(items))
        self._network = FakeNetwork(schema, items, scores, vectors, contract)
        self._canary: FakeNetwork | None = None
        self._canary_contract, self._share = self._contract, 0.0

    @property
    def schema(self) -> Schema:
        """Of the artifact that is served now."""
        return self._network.schema

    @property
    def version(self) -> int:
        """The version that answers."""
        return self._version

    def replace(
        self,
        items: Sequence[Mapping[str, Any]],
        *,
        schema: Schema | None = None,
        scores: ArrayLike | None = None,
        vectors: ArrayLike | None = None,
    ) -> None:
        """Serve other items, as the next version; `schema`: the same if left out."""
        contract, network = self._other(items, schema, scores, vectors)
        with self._lock:
            self._network, self._contract, self._version = network, contract, self._version + 1
            self._canary = None

    def start_canary(
        self,
        items: Sequence[Mapping[str, Any]],
        *,
        share: float,
        schema: Schema | None = None,
        scores: ArrayLike | None = None,
        vectors: ArrayLike | None = None,
    ) -> None:
        """Serve other items as well, as the next version, for a share of the requests, 0 to 1. `replace` ends it."""
        if not 0 <= share <= 1:
            raise invalid_value("share", share, "a share of the requests, 0 to 1")
        contract, network = self._other(items, schema, scores, vectors)
        with self._lock:
            self._canary, self._canary_contract, self._share = network, contract, share

    def _other(
        self,
        items: Sequence[Mapping[str, Any]],
        schema: Schema | None,
        scores: ArrayLike | None,
        vectors: ArrayLike | None,
    ) -> tuple[Contract, FakeNetwork]:
        contract = replace(self._contract, items=len(items))
        return contract, FakeNetwork(schema or self.schema, items, scores, vectors, contract)

    def end_canary(self) -> None:
        """Serve the first version only."""
        with self._lock:
            self._canary = None

    def fail(self, error: SilverTritonError, times: int = 1) -> None:
        """Let the next inferences raise `error`, so many of them."""
        if not isinstance(error, SilverTritonError):
            raise invalid_value("error", error, "a SilverTritonError, as a server's failures are")
        with self._lock:
            self._failures += [error] * times

    def client(self, **options: Any) -> RetrievalClient:
        """A client of this server; `options` are those of `RetrievalClient`."""
        return RetrievalClient(ADDRESS, model=self._model, transport=self, **options)

    def async_client(self, **options: Any) -> AsyncRetrievalClient:
        """A client of this server; `options` are those of `AsyncRetrievalClient`."""
        return AsyncRetrievalClient(ADDRESS, model=self._model, transport=self.asynchronous, **options)

    @property
    def asynchronous(self) -> AsyncTransport:
        """This server as an `AsyncTransport`."""
        return _Asynchronous(self)

    @contextlib.contextmanager
    def serving(self, *, port: int = 0, credentials: Any = None) -> Iterator[str]:
        """Serve on a gRPC port of loopback while the context lasts, and give its address.

        `credentials`: of `grpc.ssl_server_credentials`, for TLS.
        """
        from client._fake_service import serve  # grpc takes long to import

        with serve(self, port, credentials) as address:
            yield address

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        *,
        version: str = "",
        headers: Headers = NO_HEADERS,
    ) -> Answer:
        """See `Transport.infer`."""
        delay = self.delay
        time.sleep(min(delay, timeout))
        return self._infer(model, inputs, timeout, delay, version, headers)

    def model_config(
        self, model: str, timeout: float, *, version: str = "", headers: Headers = NO_HEADERS
    ) -> ModelConfig:
        """See `Transport.model_config`."""
        network, served = self._find(model, version)
        contract = self._canary_contract if network is self._canary else self._contract
        parameters = {
            **contract.parameters(),
            "schema": network.schema.to_json(),
            "fingerprint": str(network.schema.fingerprint),
            "snapshot": f"fake-{served}",
        }
        if network is self._canary:
            parameters[SHARE_PARAMETER] = repr(self._share)
        return ModelConfig(parameters, self._max_batch_size)

    def _infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        delay: float,
        version: str,
        headers: Headers,
    ) -> Answer:
        with self._lock:
            self.calls.append(Call(model, version, dict(inputs), dict(headers)))
            failure = self._failures.pop(0) if self._failures else None
        if delay > timeout:
            raise DeadlineExceeded(f"no answer from {model!r} at {ADDRESS} within {timeout:.3g} s")
        if failure is not None:
            raise failure
        network, served = self._find(model, version)
        rows = {len(tensor) for tensor in inputs.values()}
        if len(rows) > 1 or max(rows, default=0) > max(1, self._max_batch_size):
            raise SchemaMismatch(f"{model!r} at {ADDRESS}: got tensors of {sorted(rows)} rows")
        return Answer(network.rank(inputs) if model.endswith(RANKING_SUFFIX) else network.retrieve(inputs), str(served))

    def _find(self, model: str, version: str) -> tuple[FakeNetwork, int]:
        """What answers under that name, and its version."""
        with self._lock:
            models = {self._model: (self._network, self._version)}
            if self._canary is not None:
                models[self._model + CANARY_SUFFIX] = (self._canary, self._version + 1)
        found = models.get(model) or models.get(model.removesuffix(RANKING_SUFFIX))
        if found is None or version not in ("", str(found[1])):
            raise ModelNotFound(f"no model {model!r} at {ADDRESS} of version {version or 'any'}")
        return found


class _Asynchronous:
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        *,
        version: str = "",
        headers: Headers = NO_HEADERS,
    ) -> Answer:
        delay = self._server.delay
        await asyncio.sleep(min(delay, timeout))
        return self._server._infer(model, inputs, timeout, delay, version, headers)

    async def model_config(
        self, model: str, timeout: float, *, version: str = "", headers: Headers = NO_HEADERS
    ) -> ModelConfig:
        return self._server.model_config(model, timeout, version=version, headers=headers)
