"""How a client connects and tries again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from client.errors import InvalidValue, invalid_value

Compression = Literal["gzip", "deflate"]
Pem = bytes | str | Path
"""Certificates or a key in PEM: the bytes themselves, or the path of a file."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a call is tried again. Only failures are that cannot have had an effect and may pass:

    `ConnectionFailed` (gRPC's UNAVAILABLE: no connection, or one that broke), `ModelUnavailable` (UNAVAILABLE: the
    model is being loaded or unloaded) and `QueueFull` (UNAVAILABLE or RESOURCE_EXHAUSTED from a full queue).
    After `ModelNotFound` and `WrongServer` an endpoint is tried that this call has not tried, if there is one.

    `attempts`: tries in all; 1 never tries again. Before try n + 1 the client waits for a time drawn evenly from 0 to
    min(`most`, `first` * 2**(n - 1)) seconds ("full jitter": Brooker, Exponential Backoff and Jitter, 2015), or not at
    all where an endpoint is left that this call has not tried. A wait that the call's deadline does not allow is not
    begun: the failure is raised at once.
    """

    attempts: int = 3
    first: float = 0.02
    most: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or not 1 <= self.attempts <= 1000:
            raise invalid_value("retry.attempts", self.attempts, "an integer from 1 to 1000")
        for name, value in (("first", self.first), ("most", self.most)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise invalid_value(f"retry.{name}", value, "seconds, finite and not negative")


@dataclass(frozen=True, slots=True)
class TLS:
    """An encrypted connection.

    `ca`: certificates to check the server's with; None: those that gRPC trusts. `certificate` and `key`: the client's
    own, both or neither, for a server that asks for them (mutual TLS). `server_name`: the name that the server's
    certificate carries, where it is not the host of the address. Each of the three is bytes in PEM or a file's path.

    Raises `InvalidValue` for a file that cannot be read or is not PEM.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidValue("tls: got one of certificate and key, expected both or neither")
        self.read()

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Bytes of `ca`, `key` and `certificate`."""
        return _pem("ca", self.ca), _pem("key", self.key), _pem("certificate", self.certificate)


def _pem(name: str, value: Pem | None) -> bytes | None:
    if value is None:
        return None
    where = f"tls.{name}"
    if isinstance(value, bytes):
        text = value
    else:
        where = f"{where} {value}"
        try:
            text = Path(value).read_bytes()
        except OSError as error:
            raise InvalidValue(f"{where}: cannot be read: {error.strerror}") from error
    if b"-----BEGIN " not in text:
        raise InvalidValue(f"{where}: is not PEM (no -----BEGIN line); convert it, for instance with openssl")
    return text
