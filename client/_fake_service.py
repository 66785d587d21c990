"""`client.testing.FakeServer` behind a real gRPC port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client._messages import DATATYPES, DTYPES
from client.errors import (
    AccessDenied,
    ConnectionFailed,
    DeadlineExceeded,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
    SchemaMismatch,
    SilverTritonError,
)

if TYPE_CHECKING:
    from client.testing import FakeServer

_NO_LIMIT = 1e9  # seconds; a call without a deadline
_MESSAGES = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0))
# The first class that fits; the texts that Triton's own errors have.
_STATUSES: tuple[tuple[type[SilverTritonError], grpc.StatusCode, str], ...] = (
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED, ""),
    (QueueFull, grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size: "),
    (ModelNotFound, grpc.StatusCode.NOT_FOUND, "Request for unknown model: "),
    (ModelUnavailable, grpc.StatusCode.UNAVAILABLE, "Request for unknown model: "),
    (ConnectionFailed, grpc.StatusCode.UNAVAILABLE, ""),
    (AccessDenied, grpc.StatusCode.UNAVAILABLE, "This protocol is restricted: "),
    (SchemaMismatch, grpc.StatusCode.INVALID_ARGUMENT, ""),
    (SilverTritonError, grpc.StatusCode.INTERNAL, ""),
)


@contextlib.contextmanager
def serve(fake: FakeServer, port: int, credentials: Any) -> Iterator[str]:
    """Serve on loopback; gives host:port."""
    server = grpc.server(ThreadPoolExecutor(8), options=_MESSAGES)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(fake), server)
    address = f"127.0.0.1:{port}"
    bound = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(None).wait()


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # it is generated without types
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:
        try:
            self._fake.model_config(request.name, _NO_LIMIT, version=request.version)
        except SilverTritonError:
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        try:
            config = self._fake.model_config(request.name, _NO_LIMIT, version=request.version)
        except SilverTritonError as error:
            _abort(context, error)
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        response.config.max_batch_size = config.max_batch_size
        for name, value in config.parameters.items():
            response.config.parameters[name].string_value = value
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:
        try:
            inputs = {
                tensor.name: np.frombuffer(content, DTYPES[tensor.datatype]).reshape(tensor.shape)
                for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
            }
        except (KeyError, ValueError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected tensor: {error}")
        headers = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        left = context.time_remaining()
        try:
            answer = self._fake.infer(
                request.model_name, inputs, _NO_LIMIT if left is None else left,
                version=request.model_version, headers=headers,
            )  # fmt: skip
        except SilverTritonError as error:
            _abort(context, error)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=answer.version)
        for name, array in answer.outputs.items():
            response.outputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response


def _abort(context: Any, error: SilverTritonError) -> None:
    for kind, code, text in _STATUSES:
        if isinstance(error, kind):
            context.abort(code, f"{text}{error}")
