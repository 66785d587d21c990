"""How the services of the mesh talk: gRPC with arrays as raw bytes, no generated code.

A message is a list of arrays: their number, then for each its dtype, its dimensions and its bytes. A service is a
process that prints the port it listens on and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np

CODES = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.float32), np.dtype(np.uint8))
OPTIONS = (  # no limit that a request of 10,000 candidates meets; connections are kept
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
)
Method = Callable[[bytes], Awaitable[bytes]]


def pack(*arrays: np.ndarray) -> bytes:
    parts = [struct.pack("<B", len(arrays))]
    for array in arrays:
        parts.append(struct.pack(f"<BB{array.ndim}q", CODES.index(array.dtype), array.ndim, *array.shape))
        parts.append(array.tobytes())
    return b"".join(parts)


def unpack(message: bytes) -> list[np.ndarray]:
    """The arrays, read-only views of the message."""
    arrays, at = [], 1
    for _ in range(message[0]):
        code, dims = message[at], message[at + 1]
        shape = struct.unpack_from(f"<{dims}q", message, at + 2)
        at += 2 + 8 * dims
        count = int(np.prod(shape))
        arrays.append(np.frombuffer(message, CODES[code], count, at).reshape(shape))
        at += count * CODES[code].itemsize
    return arrays


def channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=OPTIONS)


async def serve(services: dict[str, dict[str, Method]]) -> None:
    """Answer the methods of services, by name, until standard input ends."""

    def handler(method: Method) -> Any:
        async def answer(request: bytes, _: Any) -> bytes:
            return await method(request)

        return grpc.unary_unary_rpc_method_handler(answer)  # bytes in, bytes out

    server = grpc.aio.server(options=OPTIONS)
    for service, methods in services.items():
        handlers = {name: handler(method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)
    os._exit(0)  # threads that still search would keep the process


def run(start: Callable[..., Awaitable[None]], arguments: Sequence[str]) -> None:
    asyncio.run(start(*arguments))  # type: ignore[arg-type]
