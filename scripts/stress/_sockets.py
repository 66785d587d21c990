"""Hostile bytes to the ports themselves: HTTP requests that are none, HTTP/2 frames that are none, and connections that
are opened and left. An outcome is "HTTP N", "closed", "frames" (HTTP/2 answers), "held" or "silent" (nothing in time).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ANSWER_TIMEOUT = 10.0  # seconds
HELD = 48  # connections that are left open at a time
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
INFER = b"POST /v2/models/retrieval/infer HTTP/1.1\r\nHost: x\r\n"


@dataclass(frozen=True)
class RawAttack:
    """`make` draws the bytes. `http`: to that port, else gRPC's. `held`: the connection is left open, unanswered.

    `keyed`: the outcomes with the server's key, where half of the requests have it; else none has.
    """

    make: Callable[[np.random.Generator], bytes]
    outcomes: frozenset[str]
    http: bool = True
    held: bool = False
    keyed: frozenset[str] = frozenset()
    weight: int = 5


class Sockets:
    """Sends raw attacks; those that are held are closed when there are too many of them."""

    def __init__(self, grpc_port: int, http_port: int, key: str) -> None:
        self.ports = {False: grpc_port, True: http_port}
        self.key = key.encode()
        self.open: deque[socket.socket] = deque()

    def send(self, attack: RawAttack, rng: np.random.Generator) -> tuple[str, frozenset[str]]:
        """The outcome, and those that are expected."""
        made = attack.make(rng)
        if attack.keyed and rng.random() < 0.5:
            made = made.replace(b"Host: x\r\n", b"Host: x\r\nadmin-key: " + self.key + b"\r\n", 1)
            return self._sent(attack, made), attack.keyed
        return self._sent(attack, made), attack.outcomes

    def _sent(self, attack: RawAttack, made: bytes) -> str:
        connection = socket.create_connection(("127.0.0.1", self.ports[attack.http]), timeout=ANSWER_TIMEOUT)
        if attack.held:
            connection.sendall(made)
            self.open.append(connection)
            if len(self.open) > HELD:
                self.open.popleft().close()
            return "held"
        with connection:
            try:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(made)
                answer = connection.recv(4096)
            except TimeoutError:
                return "silent"
            except ConnectionResetError:
                return "closed"
        if answer.startswith(b"HTTP/"):
            return f"HTTP {answer[9:12].decode(errors='replace')}"
        return "frames" if answer else "closed"

    def close(self) -> None:
        while self.open:
            self.open.popleft().close()


def _post(body: bytes, *headers: bytes, start: bytes = INFER) -> bytes:
    return start + b"".join(header + b"\r\n" for header in headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _pick(rng: np.random.Generator, values: list[bytes]) -> bytes:
    return values[rng.integers(len(values))]


def malformed_json(rng: np.random.Generator) -> bytes:
    tensor = {"name": "query", "datatype": "FP32", "shape": [1, 2**70], "data": [[1e999], None]}
    whole = json.dumps({"id": 7, "inputs": [tensor, 3], "outputs": {}, "parameters": [{}]}).encode()
    nested = b'{"inputs":' + b"[" * int(rng.integers(1, 5000))
    return _post(
        _pick(rng, [b"", b"{", b"null", b"[]", whole, whole[: rng.integers(len(whole))], nested, b"\xff" * 99])
    )


def binary_lengths(rng: np.random.Generator) -> bytes:
    lengths = [b"-1", b"0", b"1", b"99999999999999999999", b"18446744073709551615", b"2147483648", b"x", b""]
    return _post(b'{"inputs":[]}', b"Inference-Header-Content-Length: " + _pick(rng, lengths))


def binary_sizes(rng: np.random.Generator) -> bytes:
    """A tensor in binary whose size is not what follows."""
    sizes = [-1, 0, 1, 63, 65, 2**31, 2**62, "64", None]
    tensor = {"name": "query", "datatype": "FP32", "shape": [1, 16],
              "parameters": {"binary_data_size": sizes[rng.integers(len(sizes))]}}  # fmt: skip
    header = json.dumps({"inputs": [tensor]}).encode()
    return _post(header + bytes(64), b"Inference-Header-Content-Length: %d" % len(header))


def compressed(rng: np.random.Generator) -> bytes:
    bodies = [b"no gzip", gzip.compress(b"[" * 5000 + bytes(10_000_000)), gzip.compress(b'{"inputs":[]}')[:-9], b""]
    return _post(_pick(rng, bodies), b"Content-Encoding: " + _pick(rng, [b"gzip", b"deflate", b"br", b"\xff"]))


def chunked(rng: np.random.Generator) -> bytes:
    """Chunks that are none, or fewer than the million that ends the server, of who has the key (docs/robustness.md)."""
    body = _pick(rng, [b"1\r\n{\r\n" * 2000 + b"0\r\n\r\n", b"-1\r\n{\r\n", b"zz\r\n", b"0\r\n\r\n"])
    return INFER + b"Transfer-Encoding: chunked\r\n\r\n" + body


def administration(rng: np.random.Generator) -> bytes:
    paths = [b"logging", b"trace/setting", b"repository/models/retrieval/unload", b"repository/models/x/load",
             b"systemsharedmemory/region/r/register", b"cudasharedmemory/region/r/register",
             b"systemsharedmemory/unregister", b"repository/index"]  # fmt: skip
    bodies = [b"{}", b"", b'{"log_file":"/tmp/x"}', b'{"key":"/x","offset":0,"byte_size":8}', b"{"]
    return _post(_pick(rng, bodies), start=b"POST /v2/" + _pick(rng, paths) + b" HTTP/1.1\r\nHost: x\r\n")


def unknown_paths(rng: np.random.Generator) -> bytes:
    paths = [b"/", b"/v2/../../etc/passwd", b"/v3", b"/v2/models//infer", b"/%00", b"/v2/models/" + b"x" * 3000,
             b"/v2/models/nothing/config", b"/v2/models/retrieval/versions/999/config"]  # fmt: skip
    return b"GET " + _pick(rng, paths) + b" HTTP/1.1\r\nHost: x\r\n\r\n"


def odd_methods(rng: np.random.Generator) -> bytes:
    method = _pick(rng, [b"DELETE", b"PUT", b"OPTIONS", b"TRACE", b"PATCH", b"GET"])
    return method + b" /v2/models/retrieval/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


def no_http(rng: np.random.Generator) -> bytes:
    lines = [b"\0" * 100, b"GET\r\n\r\n", b"\x16\x03\x01\x02\0\x01", b"GET / HTTP/9.9\r\n\r\n"]
    return _pick(rng, lines) + b"\r\n\r\n"


def no_http2(rng: np.random.Generator) -> bytes:
    lines = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\0\x01", PREFACE[:10] + b"x" * 30, rng.bytes(200)]
    return _pick(rng, lines)


def bad_frames(rng: np.random.Generator) -> bytes:
    kind, flags, stream = rng.integers(0, 256), rng.integers(0, 256), rng.integers(0, 2**32)
    length = int(rng.choice([0, 1, 16, 2**24 - 1]))
    frame = struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + rng.bytes(min(length, 64))
    return PREFACE + SETTINGS + frame * int(rng.integers(1, 20)) + rng.bytes(64)


def half_http(rng: np.random.Generator) -> bytes:
    whole = _post(b"{" * 500, b"X-Slow: " + b"y" * 300)
    return whole[: rng.integers(len(whole))]


def half_http2(rng: np.random.Generator) -> bytes:
    whole = PREFACE + SETTINGS + b"\0\0\x50\1\4\0\0\0\1" + bytes(40)  # a HEADERS frame that never ends
    return whole[: rng.integers(len(whole))]


GONE = frozenset({"closed"})
DENIED = frozenset({"HTTP 403"})
REFUSED = frozenset({"HTTP 400", "HTTP 404", "HTTP 405", "HTTP 500", "HTTP 501"})
RAW_ATTACKS: dict[str, RawAttack] = {
    "HTTP: malformed JSON": RawAttack(malformed_json, DENIED, keyed=REFUSED),
    "HTTP: lengths of the header": RawAttack(binary_lengths, DENIED, keyed=REFUSED),
    "HTTP: sizes of binary tensors": RawAttack(binary_sizes, DENIED, keyed=REFUSED),
    "HTTP: compressed": RawAttack(compressed, DENIED),  # of who has the key, the server keeps what it unpacked for good
    "HTTP: chunks": RawAttack(chunked, DENIED | REFUSED | GONE, keyed=REFUSED | GONE),
    "HTTP: administration": RawAttack(administration, DENIED),
    "HTTP: unknown paths": RawAttack(unknown_paths, REFUSED),
    "HTTP: odd methods": RawAttack(odd_methods, DENIED | REFUSED),
    "HTTP: no HTTP": RawAttack(no_http, REFUSED | GONE),
    "HTTP: half a request": RawAttack(half_http, frozenset({"held"}), held=True),
    "gRPC: no HTTP/2": RawAttack(no_http2, frozenset({"closed", "frames"}), http=False),
    "gRPC: bad frames": RawAttack(bad_frames, frozenset({"closed", "frames"}), http=False),
    "gRPC: half a request": RawAttack(half_http2, frozenset({"held"}), http=False, held=True),
}
