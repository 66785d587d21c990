"""A call of a client step by step, without IO: the one core of `RetrievalClient` and `AsyncRetrievalClient`.

Each call is a generator. It yields what is to be carried (`ReadConfig`, `Infer`) or waited for (`Pause`) and is sent
what came of it; a failure is thrown into it. `client/_client.py` carries the steps out with threads,
`client/_async_client.py` with asyncio. What is decided is decided here: which endpoint, which schema, whether to try
again; and in `client/_serving.py`: which of the endpoint's models.

Each endpoint's schema is read when it is first used, and kept. It is read again when an answer comes from a version of
the model that was not there before, when an answer or a status shows that the artifact is another, and when a
request does not fit the schema (at most once a second), after the endpoint's connection or model failed, and when it
was read a minute ago. If the schema has changed, the request is encoded anew and sent again, once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from time import monotonic, perf_counter
from typing import Any, TypeVar

from numpy.typing import NDArray

from client._balancer import Balancer, Endpoint
from client._codec import Codec
from client._explain import explaining
from client._explanation import Explanation
from client._models import Ranking, Request, Retrieval
from client._serving import Serving, drawn
from client._steps import Infer, Pause, Served, Steps
from client._values import header_fields, item_ids, most_filter_words, seconds, version_text
from client._work import RankingItems, Retrieving, Work, kept
from client.errors import (
    ClientClosed,
    ConnectionFailed,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
    RequestError,
    SchemaMismatch,
    WrongServer,
    invalid_value,
)
from client.options import Retry
from client.schema import RANKING_SUFFIX
from client.transport import Answer, Headers

_REREAD = 1.0  # seconds between readings of the schema that wrong requests may cause

R = TypeVar("R")


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
        device: int | None,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise invalid_value("model", model, "the name of a served model")
        if retry is not None and not isinstance(retry, Retry):
            raise invalid_value("retry", retry, "client.Retry(attempts=3) or the like, or None for one try")
        self.name = name  # of the client, for messages
        self.balancer = Balancer(endpoints)
        self.model = model
        self.timeout = seconds(timeout)
        self.closed = False
        self._version = version_text(version)
        self._retry = Retry(attempts=1) if retry is None else retry
        self._headers = header_fields(headers)
        self._serving = Serving(name, self.balancer, model, self._version, most_filter_words(max_filter_words), device)

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
        (result,) = yield from self._tried("", drawn(request.key), work, deadline, self._all_headers(headers))
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
        yield from self._any_served(deadline, sent)
        results: dict[int, Retrieval | RequestError] = {}
        for draw, numbers in self._apart(every):
            first = 0
            while first < len(numbers):
                batch = numbers[first : first + self._most_at_once()]
                work = Retrieving([every[number] for number in batch])
                try:
                    answered = yield from self._tried("", draw, work, deadline, sent)
                except SchemaMismatch:
                    if len(batch) <= self._most_at_once():
                        raise
                    continue  # a model that takes fewer at once has come meanwhile
                results.update(zip(batch, answered, strict=True))
                first += len(batch)
        return [results[number] for number in range(len(every))]

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
        draw = drawn(request.key)
        return (yield from self._tried(RANKING_SUFFIX, draw, work, deadline, self._all_headers(headers)))

    def explain(
        self, item_id: int, request: Request, timeout: float | None, headers: Mapping[str, str] | None
    ) -> Steps[Explanation]:
        """Why one item is or is not returned, all of it asked of one version at one endpoint."""
        self._require_open()
        deadline = self._until(timeout)
        sent = self._all_headers(headers)
        (item,) = item_ids("item_id", [item_id]).tolist()
        asked = kept(request)
        draw = drawn(request.key)

        def ask(endpoint: Endpoint) -> Steps[Explanation]:
            def of(model: str, served: Served) -> Steps[Explanation]:
                return self._explained(endpoint, model, served, item, asked, deadline, sent)

            return self._routed(endpoint, "", draw, of, deadline, sent)

        return (yield from self._repeated(ask, deadline))

    def _explained(
        self,
        endpoint: Endpoint,
        model: str,
        served: Served,
        item: int,
        request: Request,
        deadline: float,
        headers: Headers,
    ) -> Steps[Explanation]:
        version = None
        for last in (False, True):
            assert isinstance(served.codec, Codec)
            asking = explaining(item, request, served.codec, served.max_batch)
            try:
                work = next(asking)
                while True:
                    try:
                        results = yield from self._asked(endpoint, model, served, work, deadline, headers, alone=True)
                    except SchemaMismatch:
                        if last:
                            raise
                        break  # a model that takes fewer at once may have come meanwhile
                    if work.codec is not served.codec or version not in (None, work.version):
                        break
                    version = work.version
                    work = asking.send(results)
            except StopIteration as end:
                explanation: Explanation = replace(end.value, version=version)
                return explanation
            served, version = (yield from self._serving.read(endpoint, model, deadline, headers)), None
        raise SchemaMismatch(f"{model!r} at {endpoint.name} was replaced twice during the call; call again")

    def _most_at_once(self) -> int:
        """How many requests a batch may have, as far as is known: it may go to any model, canaries included."""
        known = [each for endpoint in self.balancer.endpoints for each in list(endpoint.served.values())]
        return min((each.max_batch for each in known if isinstance(each.codec, Codec)), default=1)

    def _apart(self, requests: list[Request]) -> list[tuple[float, list[int]]]:
        """Which requests go together: those for canaries and the others, each with what they drew."""
        share = max(endpoint.share for endpoint in self.balancer.endpoints)
        parts: tuple[list[int], list[int]] = ([], [])
        for number, request in enumerate(requests):
            parts[drawn(request.key) >= share].append(number)
        return [(draw, numbers) for draw, numbers in zip((0.0, 1.0), parts, strict=True) if numbers]

    def _tried(self, suffix: str, draw: float, work: Work[R], deadline: float, headers: Headers) -> Steps[R]:
        """`_asked`, again where that may help, of other endpoints first."""

        def ask(endpoint: Endpoint) -> Steps[R]:
            def of(model: str, served: Served) -> Steps[R]:
                return self._asked(endpoint, model, served, work, deadline, headers)

            return self._routed(endpoint, suffix, draw, of, deadline, headers)

        return (yield from self._repeated(ask, deadline))

    def _any_served(self, deadline: float, headers: Headers) -> Steps[Served]:
        """What some endpoint serves; without IO where one that works has been asked before."""
        for endpoint in self.balancer.working():
            if served := endpoint.served.get(self.model):
                return served

        def ask(endpoint: Endpoint) -> Steps[Served]:
            return (yield from self._serving.routed(endpoint, "", 1.0, deadline, headers))[1]

        return (yield from self._repeated(ask, deadline))

    def _repeated(self, ask: Callable[[Endpoint], Steps[R]], deadline: float) -> Steps[R]:
        tried: list[Endpoint] = []
        for attempt in range(1, self._retry.attempts + 1):
            endpoint = self.balancer.take(tried)
            assert endpoint is not None
            try:
                return (yield from ask(endpoint))
            except (ConnectionFailed, ModelUnavailable) as failure:
                if attempt == self._retry.attempts:
                    raise
                error = failure
            finally:
                self.balancer.release(endpoint)
            tried.append(endpoint)
            if any(other not in tried for other in self.balancer.working()):
                continue
            if isinstance(error, WrongServer | ModelNotFound):  # time will not mend it
                raise error
            pause = random.uniform(0, min(self._retry.most, self._retry.first * 2.0 ** min(attempt - 1, 60)))
            if monotonic() + pause >= deadline:
                raise error
            yield Pause(pause)
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    def _routed(
        self,
        endpoint: Endpoint,
        suffix: str,
        draw: float,
        ask: Callable[[str, Served], Steps[R]],
        deadline: float,
        headers: Headers,
    ) -> Steps[R]:
        """`ask` of the model that a request goes to; once more, of the served one, if that was a canary now gone."""
        model, served = yield from self._serving.routed(endpoint, suffix, draw, deadline, headers)
        try:
            return (yield from ask(model, served))
        except ModelUnavailable as error:
            if isinstance(error, QueueFull) or not self._serving.is_canary(model):
                raise
        self._serving.forget_canary(endpoint)
        model, served = yield from self._serving.routed(endpoint, suffix, draw, deadline, headers)
        return (yield from ask(model, served))

    def _asked(
        self,
        endpoint: Endpoint,
        model: str,
        served: Served,
        work: Work[R],
        deadline: float,
        headers: Headers,
        *,
        alone: bool = False,
    ) -> Steps[R]:
        """One request to one model; a second one if the first shows that the schema is out of date.

        `alone`: no other endpoint may answer in its place.
        """
        read = self._serving.read
        inputs = work.encode(served.codec)
        if work.refused() and monotonic() - served.read_at > _REREAD:
            served = yield from read(endpoint, model, deadline, headers)
            if served.codec is not work.codec:
                inputs = work.encode(served.codec)
        refreshed = False
        while inputs is not None:
            source = endpoint
            try:
                started = perf_counter()
                answer, source = yield from self._infer(endpoint, model, inputs, work, deadline, headers, alone)
                latency = perf_counter() - started
                if source is endpoint and served.is_of(answer.version):
                    current: Served | None = served  # also where another call has seen a newer version meanwhile
                else:
                    current = yield from self._serving.confirmed(source, model, answer.version, deadline, headers)
                if current is not None and current.codec is work.codec:
                    results = work.decode(answer, latency)
                    if refreshed or not work.outdated(results):
                        return results
                    current = yield from read(source, model, deadline, headers)
                    if current.codec is work.codec:
                        return results
                elif current is None:
                    current = yield from read(source, model, deadline, headers)
            except SchemaMismatch:
                if refreshed:
                    raise
                current = yield from read(source, model, deadline, headers)
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
            if other is None:
                return None
            served = other.served.get(model)
            if self._serving.is_canary(model) if served is None else served.codec is not work.codec:
                self.balancer.release(other)
                return None
            return other

        step = Infer(endpoint, model, inputs, self._serving.left(deadline), self._version, headers, second)
        try:
            answer, source = yield step
        except Exception as error:
            if not (isinstance(error, ModelUnavailable) and self._serving.is_canary(model)):
                self.balancer.report(endpoint, error)
            raise
        self.balancer.report(source, None)
        return answer, source

    def _require_open(self) -> None:
        if self.closed:
            raise ClientClosed(f"{self.name} was closed; make a new client")

    def _all_headers(self, headers: Mapping[str, str] | None) -> Headers:
        return self._headers if headers is None else {**self._headers, **header_fields(headers)}

    def _until(self, timeout: float | None) -> float:
        return monotonic() + (self.timeout if timeout is None else seconds(timeout))
