"""The endpoints of a client, from its arguments. No IO."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from client._balancer import Endpoint
from client._values import MOST_SECONDS
from client.errors import InvalidValue, invalid_value
from client.options import TLS, Compression

_NOT_GRPC = ("http", "https", "grpc", "grpcs")  # no names of gRPC's own
_DEVICE = re.compile(r"cuda:([0-9]{1,3})")


def addresses_of(address: str | Sequence[str]) -> list[str]:
    """The addresses, one or more. Raises `InvalidValue`."""
    if isinstance(address, bytes) or not isinstance(address, Iterable):
        raise invalid_value("address", address, "host:port, or several of them")
    every = [address] if isinstance(address, str) else list(address)
    if not every:
        raise invalid_value("address", address, "host:port, or several of them")
    for one in every:
        if not isinstance(one, str) or not one or ("://" in one and one.split("://")[0] in _NOT_GRPC):
            raise invalid_value("address", one, "host:port of the gRPC endpoint, such as localhost:8001")
    if len(set(every)) < len(every):
        raise invalid_value("address", every, "each address once")
    return every


def given(addresses: list[str], transport: Any) -> list[Endpoint]:
    """Endpoints over transports of the caller's, one an address. Raises `InvalidValue`."""
    transports = list(transport) if isinstance(transport, list | tuple) else [transport]
    if len(transports) != len(addresses):
        raise InvalidValue(f"transport: got {len(transports)} for {len(addresses)} addresses, expected one an address")
    return [Endpoint(name, one) for name, one in zip(addresses, transports, strict=True)]


def connected(addresses: list[str], connect: Callable[[str], Any], hedge: float | None) -> list[Endpoint]:
    """Endpoints over transports made by `connect`; two connections to a lone address that requests are hedged on."""
    if hedge is not None and len(addresses) == 1:
        addresses = addresses * 2
    return [Endpoint(name, connect(name)) for name in addresses]


def check_hedge(hedge: float | None, transport: object, *, needs_grpc: bool) -> None:
    """Raise `InvalidValue` unless requests can be hedged so."""
    if hedge is None:
        return
    if isinstance(hedge, bool) or not isinstance(hedge, int | float) or not 0 <= hedge <= MOST_SECONDS:
        expected = f"seconds until a second request is sent, from 0 to {MOST_SECONDS:,}, or None"
        raise invalid_value("hedge", hedge, expected)
    if transport is not None and needs_grpc:
        raise InvalidValue(
            "hedge: a transport of your own cannot start a request without waiting; leave out one of both"
        )


def check_compression(compression: Compression | None) -> None:
    """Raise `InvalidValue` unless gRPC knows it."""
    if compression not in (None, "gzip", "deflate"):
        raise invalid_value("compression", compression, '"gzip", "deflate" or None')


def check_tls(tls: TLS | None) -> None:
    """Raise `InvalidValue` for what is no `TLS`."""
    if tls is not None and not isinstance(tls, TLS):
        raise invalid_value("tls", tls, "client.TLS(), which trusts what gRPC trusts, TLS(ca=...), or None")


def device_number(shared_memory: bool | str) -> int | None:
    """The N of `shared_memory="cuda:N"`, None for True and False. Raises `InvalidValue`."""
    if isinstance(shared_memory, bool):
        return None
    if isinstance(shared_memory, str) and (found := _DEVICE.fullmatch(shared_memory)):
        return int(found[1])
    raise invalid_value("shared_memory", shared_memory, 'True, False, or a device such as "cuda:0"')


def check_shared_memory(shared_memory: bool | str, hedge: float | None, transport: object) -> None:
    """Raise `InvalidValue` where it cannot be used."""
    device_number(shared_memory)
    if shared_memory and (hedge is not None or transport is not None):
        raise InvalidValue("shared_memory: goes with neither hedge= nor transport=; leave it or them out")
