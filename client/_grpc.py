"""The transport of production: Triton's gRPC protocol through tritonclient. Imported when a client connects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from client.errors import (
    ClientClosed,
    ConnectionFailed,
    DeadlineExceeded,
    ModelUnavailable,
    SchemaMismatch,
    ServerError,
    SilverTritonError,
)
from client.transport import ModelConfig

_MODEL_UNAVAILABLE = (
    "unknown model",  # has no available versions
    "not at ready state",
    "is not ready",
    "maximum queue size",
    "stopped accepting",  # the server or the model is being unloaded
)
_DATATYPES = {np.dtype(np.int64): "INT64", np.dtype(np.int32): "INT32", np.dtype(np.float32): "FP32"}


class GrpcTransport:
    """`Transport` over one gRPC channel, which connects on the first call and reconnects by itself."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = InferenceServerClient(address)

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], timeout: float) -> dict[str, NDArray[Any]]:
        """See `Transport.infer`."""
        tensors = []
        for name, array in inputs.items():
            tensor = InferInput(name, array.shape, _DATATYPES[array.dtype])
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        try:
            result = self._client.infer(model, tensors, client_timeout=timeout)
        except InferenceServerException as error:
            raise self._translated(error, model, timeout) from error
        try:
            return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
        except ValueError as malformed:
            raise ServerError(f"{model!r} at {self._address} sent a malformed answer: {malformed}") from malformed

    def model_config(self, model: str, timeout: float) -> ModelConfig:
        """See `Transport.model_config`."""
        try:
            config = self._client.get_model_config(model, client_timeout=timeout).config
        except InferenceServerException as error:
            raise self._translated(error, model, timeout) from error
        parameters = {name: value.string_value for name, value in config.parameters.items()}
        return ModelConfig(parameters, config.max_batch_size)

    def close(self) -> None:
        """Close the channel; calls in progress end with `ClientClosed`."""
        self._client.close()

    def _translated(self, error: InferenceServerException, model: str, timeout: float) -> SilverTritonError:
        status = (error.status() or "").removeprefix("StatusCode.")
        message = error.message() or status
        server = f"{model!r} at {self._address}"
        if status == "DEADLINE_EXCEEDED":
            return DeadlineExceeded(
                f"no answer from {server} within {timeout:.3g} s; "
                "allow more with timeout=, or check the address and the server's load"
            )
        if status == "NOT_FOUND":
            return ModelUnavailable(f"no model {server}: {message}; check its name and that the server has loaded it")
        if status == "UNAVAILABLE":
            if _from_the_model(message):
                return ModelUnavailable(f"model {server} takes no requests: {message}")
            return ConnectionFailed(
                f"cannot reach a Triton Inference Server at {self._address}: {message}; "
                "check that it runs and that this is its gRPC port (8001 by default)"
            )
        if status == "CANCELLED":
            return ClientClosed("the client was closed during the call")
        if status == "INVALID_ARGUMENT":
            return SchemaMismatch(f"{server} does not take these tensors, another artifact was loaded: {message}")
        if status == "UNIMPLEMENTED":
            return ConnectionFailed(f"what answers at {self._address} is no Triton Inference Server: {message}")
        return ServerError(f"{server} failed ({status}): {message}")


def _from_the_model(message: str) -> bool:
    """Whether UNAVAILABLE is Triton's word about a model or its queue, not gRPC's about the connection."""
    return any(words in message for words in _MODEL_UNAVAILABLE)
