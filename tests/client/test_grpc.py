"""The gRPC transport against a server in this process that speaks Triton's protocol, and what its failures become."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from client import (
    AccessDenied,
    AsyncRetrievalClient,
    ClientClosed,
    Codec,
    ConnectionFailed,
    DeadlineExceeded,
    F,
    ModelConfig,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
    Request,
    RetrievalClient,
    Retry,
    Schema,
    SchemaMismatch,
    ServerError,
    SilverTritonError,
    WrongServer,
)
from client._grpc import GrpcTransport
from tests.client.grpc_service import Service, serving
from tests.client.shells import SHELLS


@pytest.fixture
def service(schema: Schema, answer: Callable[..., dict[str, NDArray[Any]]]) -> Service:
    return Service(schema, answer)


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    with serving(service) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture(params=["sync", "async"])
def shell(request: pytest.FixtureRequest) -> Any:
    return SHELLS[request.param]


@pytest.fixture
def transport(address: str) -> Iterator[GrpcTransport]:
    transport = GrpcTransport(address)
    yield transport
    transport.close()


def test_tensors_arrive_as_they_left(shell: Any, address: str, service: Service, schema: Schema) -> None:
    requests = [
        Request(user={"user_id": 42, "age": 33.5, "gender": "F"}, history=[1, 2], filter=F.year > 3, exclude=[9]),
        Request(task_weights={"watch": 2}, probes=3, candidates=4),
    ]
    with shell(address, timeout=10) as client:
        results = client.retrieve_many(requests)
        assert client.schema == schema
    for name, tensor in Codec(schema).encode(requests).items():
        np.testing.assert_array_equal(service.inputs.pop(name), tensor, strict=True)
    assert service.inputs == {}
    assert [result.item_ids[0] for result in results if not isinstance(result, SilverTritonError)] == [0, 100]


def test_model_config(transport: GrpcTransport, schema: Schema) -> None:
    assert transport.model_config("retrieval", 10) == ModelConfig({"schema": schema.to_json()}, 4)


CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "message", "error", "says"),
    [
        (
            CODE.UNAVAILABLE,
            "Request for unknown model: 'retrieval' has no available versions",
            ModelUnavailable,
            "takes no",
        ),
        (CODE.UNAVAILABLE, "Exceeds maximum queue size", QueueFull, "maximum queue size"),
        (CODE.RESOURCE_EXHAUSTED, "Exceeds maximum queue size", QueueFull, "no more requests for now"),
        (CODE.UNAVAILABLE, "Request timeout expired", QueueFull, "wait for too long"),
        (
            CODE.UNAVAILABLE,
            "This protocol is restricted, expecting header 'x'",
            AccessDenied,
            "give its key with headers=",
        ),
        (CODE.UNAUTHENTICATED, "no", AccessDenied, "refuses the call: no"),
        (CODE.PERMISSION_DENIED, "no", AccessDenied, "refuses the call: no"),
        (CODE.UNAVAILABLE, "model 'retrieval' version 1 is not at ready state", ModelUnavailable, "ready state"),
        (CODE.UNAVAILABLE, "errors resolving model-server:8001", ConnectionFailed, "check that it runs"),
        (CODE.NOT_FOUND, "Request for unknown model: 'retrieval' is not found", ModelNotFound, "check its name"),
        (CODE.INVALID_ARGUMENT, "expected 8 inputs but got 7 inputs", SchemaMismatch, "another artifact was loaded"),
        (CODE.INTERNAL, "Stub process 'retrieval_0_0' is not healthy.", ModelUnavailable, "takes no requests"),
        (CODE.INTERNAL, "boom", ServerError, r"failed \(INTERNAL\): boom"),
        (CODE.UNKNOWN, "", ServerError, r"failed \(UNKNOWN\)"),
        (CODE.RESOURCE_EXHAUSTED, "too large", ServerError, "too large"),
        (CODE.UNIMPLEMENTED, "unknown service", WrongServer, "is no Triton Inference Server"),
        (CODE.DEADLINE_EXCEEDED, "Request timeout expired", DeadlineExceeded, "within 10 s"),
    ],
)
def test_statuses_become_our_errors(
    transport: GrpcTransport,
    service: Service,
    schema: Schema,
    address: str,
    code: grpc.StatusCode,
    message: str,
    error: type[SilverTritonError],
    says: str,
) -> None:
    service.fail = (code, message)
    inputs = Codec(schema).encode([Request()])
    for call in (lambda: transport.infer("retrieval", inputs, 10), lambda: transport.model_config("retrieval", 10)):
        with pytest.raises(error, match=says) as caught:
            call()
        assert type(caught.value) is error
        assert address in str(caught.value)
        assert message in str(caught.value) or error is DeadlineExceeded


def test_an_unknown_model(shell: Any, address: str) -> None:
    with (
        shell(address, model="ranking", timeout=10) as client,
        pytest.raises(ModelUnavailable, match="no model 'ranking' at 127"),
    ):
        client.retrieve()


def test_no_answer_in_time(shell: Any, address: str, service: Service) -> None:
    with shell(address, timeout=10) as client:
        client.retrieve()
        service.go_on.clear()
        with pytest.raises(DeadlineExceeded, match=r"no answer from 'retrieval' at .* within 0\.0[0-9.]* s"):
            client.retrieve(timeout=0.05)
        service.go_on.set()
        client.retrieve()


def test_nothing_listens(shell: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused, and nobody else takes the port
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with shell(address, timeout=10) as client, pytest.raises(ConnectionFailed) as caught:
            client.retrieve()
    assert f"cannot reach a Triton Inference Server at {address}" in str(caught.value)
    assert "8001 by default" in str(caught.value)


def test_closed_during_a_call(address: str, service: Service) -> None:
    client = RetrievalClient(address, timeout=10)
    client.retrieve()
    service.go_on.clear()
    timer = threading.Timer(0.1, client.close)
    timer.start()
    with pytest.raises(ClientClosed, match="during the call"):
        client.retrieve()
    timer.join()


def test_an_answer_cut_short(shell: Any, address: str, service: Service) -> None:
    service.truncate = True
    with shell(address, timeout=10) as client, pytest.raises(ServerError, match="malformed answer"):
        client.retrieve()


def test_closed_during_a_call_async(address: str, service: Service) -> None:
    async def calls() -> None:
        client = AsyncRetrievalClient(address, timeout=10)
        await client.retrieve()
        service.go_on.clear()
        task = asyncio.create_task(client.retrieve())
        await asyncio.to_thread(service.arrived.acquire)
        await asyncio.to_thread(service.arrived.acquire)
        await client.close()
        with pytest.raises(ClientClosed, match="during the call"):
            await task

    asyncio.run(calls())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task cannot tell by whom it was ended")
@pytest.mark.parametrize("hedge", [None, 0.0])
def test_cancelled_and_then_closed_is_cancelled(address: str, service: Service, hedge: float | None) -> None:
    """As programs end: a task is cancelled, the client closed, and of the task its cancellation is expected."""

    async def calls() -> None:
        client = AsyncRetrievalClient(address, timeout=20.0, hedge=hedge)
        await client.schema()
        service.go_on.clear()
        task = asyncio.create_task(client.retrieve())
        await asyncio.to_thread(service.arrived.acquire, timeout=10)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(calls())


def test_cancelling_a_task_cancels_the_request_on_the_server(address: str, service: Service) -> None:
    async def calls() -> None:
        async with AsyncRetrievalClient(address, timeout=30) as client:
            await client.schema()
            service.go_on.clear()
            task = asyncio.create_task(client.retrieve())
            assert await asyncio.to_thread(service.arrived.acquire, timeout=10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(service.given_up.acquire, timeout=10)
            service.go_on.set()
            assert (await client.retrieve(k=2)).count == 2

    asyncio.run(calls())


def test_another_event_loop_is_refused(address: str, service: Service) -> None:
    client = AsyncRetrievalClient(address, timeout=10)

    async def call() -> int:
        return (await client.retrieve(k=2)).count

    assert asyncio.run(call()) == 2
    with pytest.raises(ClientClosed, match="make one in each loop"):
        asyncio.run(call())
    asyncio.run(client.close())


def test_connections_are_reused(shell: Any, address: str, service: Service) -> None:
    with shell(address, timeout=10) as client:
        for _ in range(20):
            client.retrieve()
    assert len(set(service.peers)) == 1


def test_no_proxy_stands_before_this_host(
    shell: Any, address: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_grpc_proxy", "no_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nothing listens
    for name in (address, address.replace("127.0.0.1", "localhost")):
        with shell(name, timeout=10) as client:
            assert client.retrieve(k=2).count == 2


def test_headers_travel(shell: Any, address: str, service: Service) -> None:
    with shell(address, timeout=10, headers={"Triton-Grpc-Protocol-Key": "secret"}) as client:
        client.retrieve(headers={"traceparent": "00-1-2-01"})
    assert service.metadata[0]["triton-grpc-protocol-key"] == "secret"
    assert service.metadata[0]["traceparent"] == "00-1-2-01"


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression(shell: Any, address: str, service: Service, compression: str) -> None:
    sizes = {}
    for how in (None, compression):
        with counting(address) as (port, sent), shell(f"127.0.0.1:{port}", timeout=10, compression=how) as client:
            assert client.retrieve(exclude=range(4000)).count == 20
            sizes[how] = sent[0]
        assert service.inputs["exclude"].shape == (1, 4096)
    assert sizes[compression] < sizes[None] / 2


@contextlib.contextmanager
def counting(address: str) -> Iterator[tuple[int, list[int]]]:
    """A port that leads to `address`, and how many bytes went there."""
    sent = [0]

    def pump(source: socket.socket, target: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sent[0] += len(data) if count else 0
                target.sendall(data)

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = stack.enter_context(socket.create_connection(address.split(":")))

        def accept() -> None:
            client = stack.enter_context(listener.accept()[0])
            for arguments in ((client, server, True), (server, client, False)):
                threading.Thread(target=pump, args=arguments, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], sent


def test_a_restarted_server_is_found_again(shell: Any, schema: Schema, answer: Any) -> None:
    service = Service(schema, answer)
    with serving(service) as port:
        client = shell(f"127.0.0.1:{port}", timeout=30, retry=Retry(attempts=1000, first=0.05, most=0.1))
        client.retrieve()
    again = Service(schema, answer)

    def restart() -> None:
        time.sleep(0.3)
        with serving(again, port=port):
            ended.wait(30)

    ended = threading.Event()
    thread = threading.Thread(target=restart)
    thread.start()
    try:
        assert client.retrieve(k=3).count == 3  # sent while nothing listens
        assert len(again.peers) == 1
    finally:
        ended.set()
        thread.join()
        client.close()


def test_many_threads_share_one_connection(address: str, service: Service) -> None:
    with RetrievalClient(address, timeout=20) as client:
        threads = [threading.Thread(target=lambda: [client.retrieve(k=1) for _ in range(20)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(service.peers) == 160
    assert len(set(service.peers)) == 1
