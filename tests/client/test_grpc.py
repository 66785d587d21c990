"""The gRPC transport against a server in this process that speaks Triton's protocol, and what its failures become."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from client import (
    AccessDenied,
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
    Schema,
    SchemaMismatch,
    ServerError,
    SilverTritonError,
    WrongServer,
)
from client._grpc import GrpcTransport


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One model, "retrieval"; `fail` is the status of the next call, `wait` holds calls back."""

    def __init__(self, schema: Schema, answer: Callable[..., dict[str, NDArray[Any]]]) -> None:
        self.schema, self.answer = schema, answer
        self.inputs: dict[str, NDArray[Any]] = {}
        self.fail: tuple[grpc.StatusCode, str] | None = None
        self.truncate = False
        self.go_on = threading.Event()
        self.go_on.set()

    def _check(self, name: str, context: grpc.ServicerContext) -> None:
        self.go_on.wait(10)
        if self.fail is not None:
            context.abort(*self.fail)
        if name != "retrieval":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check(request.name, context)
        response = service_pb2.ModelConfigResponse()
        response.config.max_batch_size = 4
        response.config.parameters["schema"].string_value = self.schema.to_json()
        return response

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check(request.model_name, context)
        self.inputs = {}
        for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
            dtype = triton_to_np_dtype(tensor.datatype)
            self.inputs[tensor.name] = np.frombuffer(content, dtype).reshape(tuple(tensor.shape))
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, array in self.answer(self.schema, len(self.inputs["search"])).items():
            response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            response.raw_output_contents.append(array.tobytes()[: 0 if self.truncate else None])
        return response


@pytest.fixture
def service(schema: Schema, answer: Callable[..., dict[str, NDArray[Any]]]) -> Service:
    return Service(schema, answer)


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    service.go_on.set()
    server.stop(None).wait()


@pytest.fixture
def transport(address: str) -> Iterator[GrpcTransport]:
    transport = GrpcTransport(address)
    yield transport
    transport.close()


def test_tensors_arrive_as_they_left(address: str, service: Service, schema: Schema) -> None:
    requests = [
        Request(user={"user_id": 42, "age": 33.5, "gender": "F"}, history=[1, 2], filter=F.year > 3, exclude=[9]),
        Request(task_weights={"watch": 2}, probes=3, candidates=4),
    ]
    with RetrievalClient(address, timeout=10) as client:
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


def test_an_unknown_model(address: str) -> None:
    with (
        RetrievalClient(address, model="ranking", timeout=10) as client,
        pytest.raises(ModelUnavailable, match="no model 'ranking' at 127"),
    ):
        client.retrieve()


def test_no_answer_in_time(address: str, service: Service) -> None:
    with RetrievalClient(address, timeout=10) as client:
        client.retrieve()
        service.go_on.clear()
        with pytest.raises(DeadlineExceeded, match=r"no answer from 'retrieval' at .* within 0\.0[0-9.]* s"):
            client.retrieve(timeout=0.05)
        service.go_on.set()
        client.retrieve()


def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused, and nobody else takes the port
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with RetrievalClient(address, timeout=10) as client, pytest.raises(ConnectionFailed) as caught:
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


def test_an_answer_cut_short(address: str, service: Service) -> None:
    service.truncate = True
    with RetrievalClient(address, timeout=10) as client, pytest.raises(ServerError, match="malformed answer"):
        client.retrieve()
