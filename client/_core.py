"""A call of a client step by step, without IO: the one core of `RetrievalClient` and `AsyncRetrievalClient`.

Each call is a generator. It yields what is to be carried (`ReadConfig`, `Infer`) or waited for (`Pause`) and is sent
what came of it; a failure is thrown into it. `client/_client.py` carries the steps out with threads,
`client/_async_client.py` with asyncio. What is decided is decided here: which endpoint, which schema, whether to try
again.

Each endpoint's schema is read when it is first used, and kept. It is read again when an answer comes from a version of
the model that was not there before, when an answer or a status shows that the artifact is another, and when a
request does not fit the schema (at most once a second), after the endpoint's connection or model failed, and when it
was read a minute ago. If the schema has changed, the request is encoded anew and sent again, once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic, perf_counter
from typing import Any, TypeVar

from numpy.typing import NDArray

from client._balancer import Balancer, Endpoint
from client._codec import Codec
from client._explain import explaining
from client._explanation import Explanation
from client._models import Ranking, Request, Retrieval
from client._ranking import RankingCodec
from client._steps import Infer, Pause, ReadConfig, Steps
from client._values import header_fields, item_ids, most_filter_words, seconds, version_text
from client._work import RankingItems, Retrieving, Work, kept
from client.contract import Contract
from client.errors import (
    ClientClosed,
    ConnectionFailed,
    DeadlineExceeded,
    ModelNotFound,
    ModelUnavailable,
    RequestError,
    SchemaError,
    SchemaMismatch,
    WrongServer,
)
from client.options import Retry
from client.schema import RANKING_SUFFIX, Schema
from client.transport import Answer, Headers, ModelConfig

SCHEMA_PARAMETER = "schema"
SNAPSHOT_PARAMETER = "snapshot"  # the same for the retrieval model and the ranking model of one export
_REREAD = 1.0  # seconds between readings of the schema that wrong requests may cause
_TRUSTED = 60.0  # seconds for which a schema is taken to be that of the version it was read of
_CODECS_KEPT = 8  # schemas in use at once, by endpoints in the middle of a rollout and by both models

R = TypeVar("R")


@dataclass(slots=True)
class Served:
    """What an endpoint serves under a model's name, as last read."""

    codec: Codec | RankingCodec
    snapshot: str
    max_batch: int
    read_at: float
    versions: frozenset[str] = field(default_factory=frozenset)  # of the model, known to have this schema

    def trusted(self) -> bool:
        """Whether it need not be read again yet. Of several calls at once only the first is told so."""
        now = monotonic()
        if now - self.read_at <= _TRUSTED:
            return True
        self.read_at = now
        return False


class Core:
    """The state that the calls of a client share. Threads may share it."""

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        *,
        model: str,
        version: int | None,
        timeout: float,
        retry: Retry | None,
        headers: Mapping[str, str] | None,
        max_filter_words: int | None,
    ) -> None:
        self.name = name  # of the client, for messages
        self.balancer = Balancer(endpoints)
        self.model = model
        self.timeout = seconds(timeout)
        self.closed = False
        self._version = version_text(version)
        self._retry = Retry(attempts=1) if retry is None else retry
        self._headers = header_fields(headers)
        self._max_filter_words = most_filter_words(max_filter_words)
        self._codecs: dict[tuple[str, Contract, type], Codec | RankingCodec] = {}

    def codec(self) -> Steps[Codec]:
        self._require_open()
        served = yield from self._any_served(self._until(None), self._headers)
        codec = served.codec
        assert isinstance(codec, Codec)
        return codec

    def retrieve(self, request: Request, timeout: float | None, headers: Mapping[str, str] | None) -> Steps[Retrieval]:
        """One user. Raises the `RequestError` of a wrong request."""
        self._require_open()
        deadline = self._until(timeout)
        work = Retrieving([kept(request)])
        (result,) = yield from self._tried(self.model, work, deadline, self._all_headers(headers))
        if isinstance(result, RequestError):
            raise result
        return result

    def retrieve_many(
        self, requests: Iterable[Request], timeout: float | None, headers: Mapping[str, str] | None
    ) -> Steps[list[Retrieval | RequestError]]:
        """Many users, in as few batches as the model allows, one after the other."""
        self._require_open()
        deadline = self._until(timeout)
        sent = self._all_headers(headers)
        every = [kept(request) for request in requests]
        served = yield from self._any_served(deadline, sent)
        results: list[Retrieval | RequestError] = []
        for first in range(0, len(every), served.max_batch):
            work = Retrieving(every[first : first + served.max_batch])
            results += yield from self._tried(self.model, work, deadline, sent)
        return results

    def rank(
        self,
        request: Request,
        items: Iterable[int],
        k: int | None,
        timeout: float | None,
        headers: Mapping[str, str] | None,
    ) -> Steps[Ranking]:
        """Given items for one user, by the ranking model."""
        self._require_open()
        deadline = self._until(timeout)
        work = RankingItems(kept(request), items, k)
        return (yield from self._tried(self.model + RANKING_SUFFIX, work, deadline, self._all_headers(headers)))

    def explain(
        self, item_id: int, request: Request, timeout: float | None, headers: Mapping[str, str] | None
    ) -> Steps[Explanation]:
        """Why one item is or is not returned, all of it asked of one version at one endpoint."""
        self._require_open()
        deadline = self._until(timeout)
        sent = self._all_headers(headers)
        (item,) = item_ids("item_id", [item_id]).tolist()
        asked = kept(request)
        return (yield from self._repeated(lambda at: self._explained(at, item, asked, deadline, sent), deadline))

    def _explained(
        self, endpoint: Endpoint, item: int, request: Request, deadline: float, headers: Headers
    ) -> Steps[Explanation]:
        served = endpoint.served.get(self.model) or (yield from self._read(endpoint, self.model, deadline, headers))
        version = None
        for _ in range(2):
            assert isinstance(served.codec, Codec)
            asking = explaining(item, request, served.codec, served.max_batch)
            try:
                work = next(asking)
                while True:
                    results = yield from self._asked(endpoint, self.model, work, deadline, headers, alone=True)
                    if work.codec is not served.codec or version not in (None, work.version):
                        break
                    version = work.version
                    work = asking.send(results)
            except StopIteration as end:
                explanation: Explanation = replace(end.value, version=version)
                return explanation
            served, version = endpoint.served[self.model], None
        raise SchemaMismatch(f"{self.model!r} at {endpoint.name} was replaced twice during the call; call again")

    def _tried(self, model: str, work: Work[R], deadline: float, headers: Headers) -> Steps[R]:
        """`_asked`, again where that may help, of other endpoints first."""

        def ask(endpoint: Endpoint) -> Steps[R]:
            return self._asked(endpoint, model, work, deadline, headers)

        return (yield from self._repeated(ask, deadline))

    def _any_served(self, deadline: float, headers: Headers) -> Steps[Served]:
        """What some endpoint serves; without IO where one that works has been asked before."""
        for endpoint in self.balancer.working():
            if served := endpoint.served.get(self.model):
                return served

        def ask(endpoint: Endpoint) -> Steps[Served]:
            return self._read(endpoint, self.model, deadline, headers)

        return (yield from self._repeated(ask, deadline))

    def _repeated(self, ask: Callable[[Endpoint], Steps[R]], deadline: float) -> Steps[R]:
        tried: list[Endpoint] = []
        for attempt in range(1, self._retry.attempts + 1):
            endpoint = self.balancer.take(tried)
            assert endpoint is not None
            try:
                return (yield from ask(endpoint))
            except (ConnectionFailed, ModelUnavailable) as failure:
                if attempt == self._retry.attempts or isinstance(failure, WrongServer | ModelNotFound):
                    raise
                error = failure
            finally:
                self.balancer.release(endpoint)
            tried.append(endpoint)
            if any(other not in tried for other in self.balancer.working()):
                continue
            pause = random.uniform(0, min(self._retry.most, self._retry.first * 2.0 ** min(attempt - 1, 60)))
            if monotonic() + pause >= deadline:
                raise error
            yield Pause(pause)
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    def _asked(
        self, endpoint: Endpoint, model: str, work: Work[R], deadline: float, headers: Headers, *, alone: bool = False
    ) -> Steps[R]:
        """One request to one endpoint; a second one if the first shows that the schema is out of date.

        `alone`: no other endpoint may answer in its place.
        """
        served = endpoint.served.get(model)
        if served is None or not served.trusted():
            served = yield from self._read(endpoint, model, deadline, headers)
        if isinstance(served.codec, RankingCodec):
            served = yield from self._of_one_export(endpoint, served, deadline, headers)
        inputs = work.encode(served.codec)
        if work.refused() and monotonic() - served.read_at > _REREAD:
            served = yield from self._read(endpoint, model, deadline, headers)
            if served.codec is not work.codec:
                inputs = work.encode(served.codec)
        refreshed = False
        while inputs is not None:
            source = endpoint
            try:
                started = perf_counter()
                answer, source = yield from self._infer(endpoint, model, inputs, work, deadline, headers, alone)
                latency = perf_counter() - started
                if source is endpoint and answer.version in served.versions:
                    current: Served | None = served  # also where another call has seen a newer version meanwhile
                else:
                    current = yield from self._confirmed(source, model, answer.version, deadline, headers)
                if current is not None and current.codec is work.codec:
                    results = work.decode(answer, latency)
                    if refreshed or not work.outdated(results):
                        return results
                    current = yield from self._read(source, model, deadline, headers)
                    if current.codec is work.codec:
                        return results
                elif current is None:
                    current = yield from self._read(source, model, deadline, headers)
            except SchemaMismatch:
                if refreshed:
                    raise
                current = yield from self._read(source, model, deadline, headers)
                if current.codec is work.codec:
                    raise
            if refreshed:
                raise SchemaMismatch(
                    f"{model!r} at {source.name} was replaced twice while the request was on its way; call again"
                )
            refreshed, endpoint, served = True, source, current
            inputs = work.encode(served.codec)
        return work.decode(None, 0.0)

    def _infer(
        self,
        endpoint: Endpoint,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        work: Work[R],
        deadline: float,
        headers: Headers,
        alone: bool,
    ) -> Steps[tuple[Answer, Endpoint]]:
        def second() -> Endpoint | None:
            """Another endpoint that works and takes the same tensors, as far as is known."""
            other = None if alone else self.balancer.take((endpoint,), only_other=True)
            if other is not None and (served := other.served.get(model)) and served.codec is not work.codec:
                self.balancer.release(other)
                return None
            return other

        step = Infer(endpoint, model, inputs, self._left(deadline), self._version, headers, second)
        try:
            answer, source = yield step
        except Exception as error:
            self.balancer.report(endpoint, error)
            raise
        self.balancer.report(source, None)
        return answer, source

    def _confirmed(
        self, endpoint: Endpoint, model: str, version: str, deadline: float, headers: Headers
    ) -> Steps[Served | None]:
        """What is served under the version that answered; None if it is gone before its schema was read."""
        served = endpoint.served.get(model)
        if served is not None and (not version or version in served.versions):
            return served
        try:
            read = yield from self._read(endpoint, model, deadline, headers, version=version)
        except ModelUnavailable:
            return None
        read.versions |= {version}
        return read

    def _read(
        self, endpoint: Endpoint, model: str, deadline: float, headers: Headers, *, version: str = ""
    ) -> Steps[Served]:
        """Read the model's schema. Two calls may do so at once: the work is wasted, the result the same."""
        step = ReadConfig(endpoint, model, self._left(deadline), version or self._version, headers)
        try:
            config: ModelConfig = yield step
        except Exception as error:
            if not version:  # that a version is gone says nothing of the endpoint
                self.balancer.report(endpoint, error)
            raise
        self.balancer.report(endpoint, None)
        text = config.parameters.get(SCHEMA_PARAMETER)
        if not text:
            raise SchemaMismatch(
                f"model {model!r} at {endpoint.name} has no parameter {SCHEMA_PARAMETER!r} in its configuration: "
                "it is no SilverTriton artifact; check model="
            )
        kind = Codec if model == self.model else RankingCodec
        try:
            contract = Contract.read(config.parameters)
            contract = replace(contract, max_filter_words=min(contract.max_filter_words, self._max_filter_words))
            codec = self._codecs.get((text, contract, kind))
            if codec is None:
                codec = kind(Schema.from_json(text), contract)
                if len(self._codecs) >= _CODECS_KEPT:
                    self._codecs.clear()
                self._codecs[text, contract, kind] = codec
        except SchemaError as error:
            raise SchemaError(f"model {model!r} at {endpoint.name}: {error}") from error
        snapshot = config.parameters.get(SNAPSHOT_PARAMETER, "")
        before = endpoint.served.get(model)
        versions: frozenset[str] = before.versions if before is not None and before.codec is codec else frozenset()
        served = Served(codec, snapshot, max(1, config.max_batch_size), monotonic(), versions)
        endpoint.served[model] = served
        return served

    def _of_one_export(self, endpoint: Endpoint, ranking: Served, deadline: float, headers: Headers) -> Steps[Served]:
        """The ranking model as it is served. Where the retrieval model is used too, both must be of one snapshot."""
        model = self.model + RANKING_SUFFIX
        retrieval = endpoint.served.get(self.model)
        if retrieval is None or retrieval.snapshot == ranking.snapshot:
            return ranking
        if ranking.read_at < retrieval.read_at:  # either may have been replaced since it was read
            ranking = yield from self._read(endpoint, model, deadline, headers)
        retrieval = yield from self._read(endpoint, self.model, deadline, headers)
        if retrieval.snapshot != ranking.snapshot:
            raise SchemaMismatch(
                f"{model!r} at {endpoint.name} is of another export than {self.model!r} "
                f"(snapshots {ranking.snapshot[:12]!r} and {retrieval.snapshot[:12]!r}); serve both of one"
            )
        return ranking

    def _require_open(self) -> None:
        if self.closed:
            raise ClientClosed(f"{self.name} was closed; make a new client")

    def _all_headers(self, headers: Mapping[str, str] | None) -> Headers:
        return {**self._headers, **header_fields(headers)} if headers else self._headers

    def _until(self, timeout: float | None) -> float:
        return monotonic() + (self.timeout if timeout is None else seconds(timeout))

    def _left(self, deadline: float) -> float:
        left = deadline - monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"{self.name}: the time was over before the whole call was sent; allow more with timeout="
            )
        return left
