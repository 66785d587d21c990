"""The synchronous client: the codec, a transport and deadlines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any

from numpy.typing import ArrayLike

from client._codec import Codec, Row
from client._models import Ranking, Request, Retrieval
from client._ranking import RankingCodec, ranked_at_most
from client.errors import (
    ClientClosed,
    DeadlineExceeded,
    RequestError,
    RowStatusError,
    SchemaError,
    SchemaMismatch,
    invalid_value,
)
from client.filters.conditions import Condition
from client.schema import RANKING_SUFFIX, Schema, Status
from client.transport import ModelConfig, Transport

SCHEMA_PARAMETER = "schema"
SNAPSHOT_PARAMETER = "snapshot"  # the same for the retrieval model and the ranking model of one export


class RetrievalClient:
    """Retrieves from one SilverTriton artifact on a Triton Inference Server.

        with RetrievalClient("localhost:8001", model="retrieval", timeout=1.0) as client:
            result = client.retrieve(user={"user_id": 42}, filter=F.genres.any_of("Drama"), k=10)

    `address`: host:port of the server's gRPC endpoint. `timeout`: seconds that a call may take in all, unless the call
    says otherwise. `transport`: takes the place of gRPC; it stays the caller's to close.

    Nothing is sent before the first call, which also reads the artifact's schema. The schema is kept until an answer
    shows that the artifact has been replaced; the call after that one reads it again. Threads may share a client,
    forked processes may not.
    """

    def __init__(
        self, address: str, *, model: str = "retrieval", timeout: float = 1.0, transport: Transport | None = None
    ) -> None:
        if "://" in address and address.split("://")[0] in ("http", "https", "grpc", "grpcs"):
            raise invalid_value("address", address, "host:port of the gRPC endpoint, such as localhost:8001")
        self._address = address
        self._model = model
        self._timeout = _seconds(timeout)
        self._close_transport = None
        if transport is None:
            from client._grpc import GrpcTransport  # grpc takes long to import, and the builder needs only the schema

            transport = own = GrpcTransport(address)
            self._close_transport = own.close
        self._transport = transport
        self._codec: Codec | None = None
        self._snapshot = ""  # of the model whose schema is in use
        self._ranking: tuple[RankingCodec, str] | None = None  # and its snapshot
        self._max_batch = 1
        self._closed = False

    @property
    def schema(self) -> Schema:
        """What the artifact expects and returns; read from the server on first use."""
        return self._connected(monotonic() + self._timeout).schema

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
        timeout: float | None = None,
    ) -> Retrieval:
        """Retrieve for one user; the arguments are those of `Request`, and `timeout` in seconds.

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
        )
        deadline = self._deadline(timeout)
        codec = self._connected(deadline)
        result = self._call(codec, [codec.check(request)], deadline)[0]
        if isinstance(result, RequestError):
            raise result
        return result

    def retrieve_many(
        self, requests: Iterable[Request], *, timeout: float | None = None
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
        deadline = self._deadline(timeout)
        codec = self._connected(deadline)
        checked = [_checked(codec, request) for request in requests]
        rows = [row for row in checked if not isinstance(row, RequestError)]
        answers: list[Retrieval | RequestError] = []
        for first in range(0, len(rows), self._max_batch):
            answers += self._call(codec, rows[first : first + self._max_batch], deadline)
        answered = iter(answers)
        return [row if isinstance(row, RequestError) else next(answered) for row in checked]

    def rank(
        self,
        user: Mapping[str, Any] | None = None,
        *,
        items: Iterable[int],
        history: Iterable[int] | None = None,
        query: ArrayLike | None = None,
        task_weights: Mapping[str, float] | None = None,
        k: int | None = None,
        timeout: float | None = None,
    ) -> Ranking:
        """Score given items for one user, as `retrieve` would score them, and return the best `k` (None: all).

        `items`: item ids, any number of them. The other arguments are those of `Request`, and `timeout` in seconds.
        The model asked is the ranking model of the same export, MODEL_rank.

        Raises `RequestError` when the request is wrong, `SchemaMismatch` when both models are served but of different
        exports, and any other `SilverTritonError` when the call fails.
        """
        deadline = self._deadline(timeout)
        codec = self._connected_to_ranking(deadline)
        inputs, ids = codec.encode(Request(user=user, history=history, query=query, task_weights=task_weights), items)
        most = ranked_at_most(k, len(ids))
        try:
            started = perf_counter()
            outputs = self._transport.infer(self._model + RANKING_SUFFIX, inputs, self._left(deadline))
            return codec.decode(outputs, ids, most, perf_counter() - started)
        except SchemaMismatch:
            self._ranking = None
            raise

    def close(self) -> None:
        """Close the connection. Later calls raise `ClientClosed`; closing again does nothing."""
        if not self._closed:
            self._closed = True
            if self._close_transport is not None:
                self._close_transport()

    def __enter__(self) -> RetrievalClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RetrievalClient({self._address!r}, model={self._model!r}, timeout={self._timeout:g})"

    def _call(self, codec: Codec, rows: list[Row], deadline: float) -> list[Retrieval | RequestError]:
        """Send one batch and decode its answer; forget the schema when either shows that the artifact is another."""
        inputs = codec.stack(rows)
        try:
            started = perf_counter()
            outputs = self._transport.infer(self._model, inputs, self._left(deadline))
            results = codec.decode(outputs, [row.k for row in rows], perf_counter() - started)
        except SchemaMismatch:
            self._codec = None
            raise
        for result in results:
            if isinstance(result, RowStatusError) and result.status == Status.FILTER_FINGERPRINT:
                self._codec = None
        return results

    def _connected(self, deadline: float) -> Codec:
        """The codec of the artifact's schema. Two threads may both read it: the work is wasted, the result the same."""
        self._require_open()
        codec = self._codec
        if codec is None:
            config = self._transport.model_config(self._model, self._left(deadline))
            codec = Codec(self._read_schema(self._model, config))
            self._max_batch = max(1, config.max_batch_size)
            self._snapshot = config.parameters.get(SNAPSHOT_PARAMETER, "")
            if self._ranking is not None and self._ranking[1] != self._snapshot:
                self._ranking = None  # compared anew before its next use
            self._codec = codec
        return codec

    def _connected_to_ranking(self, deadline: float) -> RankingCodec:
        """The codec of the ranking model. Where the retrieval model is used too, both must be of one snapshot."""
        self._require_open()
        ranking = self._ranking
        if ranking is None:
            model = self._model + RANKING_SUFFIX
            config = self._transport.model_config(model, self._left(deadline))
            schema, snapshot = self._read_schema(model, config), config.parameters.get(SNAPSHOT_PARAMETER, "")
            if self._codec is not None and self._snapshot != snapshot:
                self._codec = None  # it may have been replaced since it was read
                self._connected(deadline)
                if self._snapshot != snapshot:
                    raise SchemaMismatch(
                        f"{model!r} at {self._address} is of another export than {self._model!r} "
                        f"(snapshots {snapshot[:12]!r} and {self._snapshot[:12]!r}); serve both of one"
                    )
            ranking = self._ranking = (RankingCodec(schema), snapshot)
        return ranking[0]

    def _require_open(self) -> None:
        if self._closed:
            raise ClientClosed(f"{self!r} was closed; make a new client")

    def _read_schema(self, model: str, config: ModelConfig) -> Schema:
        text = config.parameters.get(SCHEMA_PARAMETER)
        if not text:
            raise SchemaMismatch(
                f"model {model!r} at {self._address} has no parameter {SCHEMA_PARAMETER!r} in its configuration: "
                "it is no SilverTriton artifact; check model="
            )
        try:
            return Schema.from_json(text)
        except SchemaError as error:
            raise SchemaError(f"model {model!r} at {self._address}: {error}") from error

    def _deadline(self, timeout: float | None) -> float:
        return monotonic() + (self._timeout if timeout is None else _seconds(timeout))

    def _left(self, deadline: float) -> float:
        left = deadline - monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"{self!r}: the time was over before the whole call was sent; allow more with timeout="
            )
        return left


def _checked(codec: Codec, request: Request) -> Row | RequestError:
    try:
        return codec.check(request)
    except RequestError as error:
        return error


def _seconds(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise invalid_value("timeout", timeout, "seconds, above 0 and finite")
    return float(timeout)
