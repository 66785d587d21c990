"""Every error of this library has one root and says what it got, what it expected and what to do.

    SilverTritonError
    ├── ConnectionFailed      no connection to the address, or it broke                     tried again
    │   └── WrongServer       what answers there does not speak Triton's gRPC
    ├── DeadlineExceeded      no answer within `timeout`
    ├── ModelUnavailable      the server is there; the model is being loaded or unloaded    tried again
    │   ├── ModelNotFound     the server has no model or version of that name
    │   └── QueueFull         the model's queue is full                                     tried again
    ├── AccessDenied          the server wants another key or certificate
    ├── ServerError           the model raised, or the server failed for another reason
    ├── ClientClosed          the client was used after `close()`               (also a RuntimeError)
    ├── SchemaError           a schema that cannot be read                      (also a ValueError)
    ├── SchemaMismatch        the model does not follow its schema, or this wire contract
    └── RequestError          one request is wrong, its neighbours are not      (also a ValueError)
        ├── UnknownName       a feature or task that the artifact does not have
        ├── InvalidValue      a value of the wrong type or range
        ├── LimitExceeded     k, probes, candidates or the size of a filter
        ├── Unsupported       what the artifact is too old for
        └── RowStatusError    the server refused the row; `status` says why

Of these only `RequestError` is found among the results of `RetrievalClient.retrieve_many`; the others concern the whole
call and are raised. Those marked "tried again" are raised when no try that `Retry` allows succeeded.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class SilverTritonError(Exception):
    """The root of every error that this library raises on purpose."""


class ConnectionFailed(SilverTritonError):
    """There is no connection to the address, or it broke."""


class WrongServer(ConnectionFailed):
    """What answers at the address does not speak Triton's gRPC protocol."""


class DeadlineExceeded(SilverTritonError):
    """There was no answer within the timeout. The server may still be working on the request."""


class ModelUnavailable(SilverTritonError):
    """The server answers, but the model takes no requests: it is being loaded or unloaded, its process has
    ended, or one of the below."""


class ModelNotFound(ModelUnavailable):
    """The server has no model, or no version of it, of that name."""


class QueueFull(ModelUnavailable):
    """The model's queue on the server is full, or the request waited in it for longer than the server allows."""


class AccessDenied(SilverTritonError):
    """The server refuses the call: its protocol is restricted by a key, or it wants other credentials."""


class ServerError(SilverTritonError):
    """The model raised an error, or the server failed for a reason that has no class of its own."""


class ClientClosed(SilverTritonError, RuntimeError):
    """The client was used after `close()`, or one for asyncio in another event loop than that of its first call."""


class SchemaError(SilverTritonError, ValueError):
    """A schema that cannot be read: not JSON, a missing field, an unknown kind or a newer version."""


class SchemaMismatch(SilverTritonError):
    """The model does not follow its schema or the wire contract: another kind of model, or replaced since."""


class RequestError(SilverTritonError, ValueError):
    """One request is wrong. Other requests of the same call are not affected."""


class UnknownName(RequestError):
    """A feature or task that the artifact does not have."""


class InvalidValue(RequestError):
    """A value of the wrong type, or outside the range that its place allows."""


class LimitExceeded(RequestError):
    """More (or fewer) results, probes, candidates or filter words than the artifact allows."""


class Unsupported(RequestError):
    """What this client can ask and the artifact, of an older release, does not understand."""


class RowStatusError(RequestError):
    """The server refused this row of the batch; `status` is a `client.Status`, or an int that this release lacks."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


def unknown_name(what: str, name: object, known: Iterable[str]) -> UnknownName:
    """The error for a `name` that is not among the `known` ones, with the likely intended name."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1)
    if close:
        hint = f"did you mean {close[0]!r}?"
    elif names:
        hint = f"this artifact has {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    else:
        hint = "this artifact has none"
    return UnknownName(f"unknown {what} {name!r}; {hint}")


def invalid_value(where: str, value: Any, expected: str) -> InvalidValue:
    """The error for a `value` that cannot stand at the place called `where`."""
    text = repr(value)
    if len(text) > 80:
        text = f"{text[:77]}..."
    return InvalidValue(f"{where}: got {text} ({type(value).__name__}), expected {expected}")
