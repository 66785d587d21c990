"""What a call asks for, apart from how it is carried: requests that can be encoded again for another schema."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from client._codec import Codec, Row, Tensors
from client._device import is_on_device
from client._models import Ranking, Request, Retrieval
from client._ranking import RankingCodec, ranked_at_most
from client._values import item_ids
from client.errors import RequestError, RowStatusError, invalid_value
from client.schema import Status
from client.transport import Answer

R = TypeVar("R")


class Work(Protocol[R]):
    """One batch of one call. `codec`: what it was encoded with last, a `Codec` or a `RankingCodec`."""

    codec: Any

    def encode(self, codec: Any) -> Tensors | None:
        """The tensors; None when there is nothing to send."""
        ...

    def refused(self) -> bool:
        """Whether a request was found wrong by the schema, which may be out of date."""
        ...

    def decode(self, answer: Answer | None, latency: float) -> R:
        """The results; `answer`: None where nothing was sent. Raises `SchemaMismatch` for another form of answer."""
        ...

    def outdated(self, results: R) -> bool:
        """Whether the results show that the schema is out of date."""
        ...


class Retrieving:
    """A batch of retrieval requests. Wrong ones are not sent; their errors stand among the results."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.codec: Codec | None = None
        self.version: int | None = None  # that answered
        self._requests = requests
        self._checked: list[Row | RequestError] = []
        self._ks: list[int] = []

    def encode(self, codec: Codec) -> Tensors | None:
        self.codec = codec
        self._checked = checked = [_checked(codec, request) for request in self._requests]
        rows = [row for row in checked if not isinstance(row, RequestError)]
        self._ks = [row.k for row in rows]
        return codec.stack(rows) if rows else None

    def refused(self) -> bool:
        return len(self._ks) < len(self._requests)

    def decode(self, answer: Answer | None, latency: float) -> list[Retrieval | RequestError]:
        if answer is None:
            return [row for row in self._checked if isinstance(row, RequestError)]
        assert self.codec is not None
        self.version = _number(answer.version)
        answered = self.codec.decode(answer.outputs, self._ks, latency, self.version)
        if len(answered) == len(self._checked):
            return answered
        following = iter(answered)
        return [row if isinstance(row, RequestError) else next(following) for row in self._checked]

    def outdated(self, results: list[Retrieval | RequestError]) -> bool:
        for result in results:
            if isinstance(result, RowStatusError) and result.status == Status.FILTER_FINGERPRINT:
                return True
        return False


class RankingItems:
    """One ranking request. Raises where it is wrong."""

    def __init__(self, request: Request, items: Iterable[int], k: int | None) -> None:
        self.codec: RankingCodec | None = None
        self._request = request
        self._ids = item_ids("items", items)
        self._k = ranked_at_most(k, len(self._ids))
        self._error: RequestError | None = None

    def encode(self, codec: RankingCodec) -> Tensors | None:
        self.codec, self._error = codec, None
        try:
            return codec.encode(self._request, self._ids)[0]
        except RequestError as error:
            self._error = error
            return None

    def refused(self) -> bool:
        return self._error is not None

    def decode(self, answer: Answer | None, latency: float) -> Ranking:
        if self._error is not None:
            raise self._error
        assert self.codec is not None
        assert answer is not None
        return self.codec.decode(answer.outputs, self._ids, self._k, latency, _number(answer.version))

    def outdated(self, results: Ranking) -> bool:
        return False


def kept(request: Request) -> Request:
    """The request with iterators read into lists, so that it can be encoded more than once.

    Raises `InvalidValue` for what is no `Request`.
    """
    if not isinstance(request, Request):
        raise invalid_value("request", request, "a client.Request, such as Request(user={...}, k=10)")
    history, exclude = request.history, request.exclude
    if _lasts(history) and _lasts(exclude):
        return request
    return replace(
        request,
        history=history if _lasts(history) else _listed(history),
        exclude=exclude if _lasts(exclude) else _listed(exclude),
    )


def _number(version: str) -> int | None:
    return int(version) if version.isdecimal() else None


def _lasts(values: object) -> bool:
    return values is None or isinstance(values, list | tuple | np.ndarray | range) or is_on_device(values)


def _listed(values: Any) -> Any:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return values  # refused, with its own text, when it is checked
    return list(values)


def _checked(codec: Codec, request: Request) -> Row | RequestError:
    try:
        return codec.check(request)
    except RequestError as error:
        return error
