"""Tensors and failures to and from the messages of Triton's gRPC protocol, without IO. Both transports share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from client.errors import (
    AccessDenied,
    ClientClosed,
    ConnectionFailed,
    DeadlineExceeded,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
    SchemaMismatch,
    ServerError,
    SilverTritonError,
    WrongServer,
)
from client.transport import Answer, ModelConfig

SERVICE = "/inference.GRPCInferenceService/"
_MODEL_UNAVAILABLE = (
    "unknown model",  # has no available versions
    "not at ready state",
    "is not ready",
    "stopped accepting",  # the server or the model is being unloaded
)
DATATYPES: dict[np.dtype[Any], str] = {
    np.dtype(np.int64): "INT64",
    np.dtype(np.int32): "INT32",
    np.dtype(np.float32): "FP32",
}
DTYPES: dict[str, np.dtype[Any]] = {name: dtype for dtype, name in DATATYPES.items()}


def infer_request(model: str, version: str, inputs: Mapping[str, NDArray[Any]]) -> service_pb2.ModelInferRequest:
    """ModelInferRequest with the tensors as raw contents."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    add, contents = request.inputs.add, request.raw_input_contents.append
    for name, array in inputs.items():
        add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        contents(array.tobytes())
    return request


def infer_answer(response: service_pb2.ModelInferResponse, server: str) -> Answer:
    """The outputs but those of types that the contract does not have, which a newer artifact may add; arrays are
    read-only. Raises `ServerError` for a message that contradicts itself."""
    tensors, contents = response.outputs, response.raw_output_contents
    try:
        outputs = {
            tensor.name: np.frombuffer(content, DTYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor, content in zip(tensors, contents, strict=True)
            if tensor.datatype in DTYPES
        }
    except ValueError as malformed:
        raise ServerError(f"{server} sent a malformed answer: {malformed}") from malformed
    return Answer(outputs, response.model_version)


def message_output(response: service_pb2.ModelInferResponse, position: int, server: str) -> NDArray[Any]:
    """The output at that position of an answer, others of which lie in shared memory; read-only.

    Raises `ServerError` for a message that contradicts itself.
    """
    tensor = response.outputs[position]
    try:
        content = response.raw_output_contents[position]
        return np.frombuffer(content, DTYPES[tensor.datatype]).reshape(tensor.shape)
    except (IndexError, ValueError) as malformed:
        raise ServerError(f"{server} sent a malformed answer: {malformed}") from malformed


def config_request(model: str, version: str) -> service_pb2.ModelConfigRequest:
    return service_pb2.ModelConfigRequest(name=model, version=version)


def config_answer(response: service_pb2.ModelConfigResponse) -> ModelConfig:
    parameters = {name: value.string_value for name, value in response.config.parameters.items()}
    return ModelConfig(parameters, response.config.max_batch_size)


def failure(status: str, message: str, model: str, address: str, timeout: float) -> SilverTritonError:
    """The error for a gRPC status, by name such as "UNAVAILABLE", with its message."""
    server = f"{model!r} at {address}"
    message = message or status
    match status:
        case "DEADLINE_EXCEEDED":
            return DeadlineExceeded(
                f"no answer from {server} within {timeout:.3g} s; "
                "allow more with timeout=, or check the address and the server's load"
            )
        case "NOT_FOUND":
            return ModelNotFound(f"no model {server}: {message}; check its name and that the server has loaded it")
        case "UNAVAILABLE" | "RESOURCE_EXHAUSTED" if "queue" in message and "maximum" in message.lower():
            return QueueFull(f"model {server} takes no more requests for now: {message}")
        case "UNAVAILABLE" if "timeout expired" in message:  # the queue's own timeout, not ours
            return QueueFull(f"model {server} let the request wait for too long: {message}")
        case "UNAVAILABLE" if "protocol is restricted" in message:
            return _denied(address, message)
        case "UNAVAILABLE" if any(words in message for words in _MODEL_UNAVAILABLE):
            return ModelUnavailable(f"model {server} takes no requests: {message}")
        case "UNAVAILABLE":
            return ConnectionFailed(
                f"cannot reach a Triton Inference Server at {address}: {message}; "
                "check that it runs, that this is its gRPC port (8001 by default), and tls="
            )
        case "INTERNAL" if "Stub process" in message and "not healthy" in message:  # the model's process has ended
            return ModelUnavailable(f"model {server} takes no requests: {message}")
        case "UNAUTHENTICATED" | "PERMISSION_DENIED":
            return _denied(address, message)
        case "INVALID_ARGUMENT":
            return SchemaMismatch(f"{server} does not take these tensors, another artifact was loaded: {message}")
        case "UNIMPLEMENTED":
            return WrongServer(f"what answers at {address} is no Triton Inference Server: {message}")
    return ServerError(f"{server} failed ({status}): {message}")


def closed() -> ClientClosed:
    return ClientClosed("the client was closed during the call")


def _denied(address: str, message: str) -> AccessDenied:
    return AccessDenied(f"the server at {address} refuses the call: {message}; give its key with headers=")
