"""A server in this process that speaks Triton's gRPC protocol, for tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from client import Schema


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One model, "retrieval"; `fail` is the status of the next calls, `go_on` holds calls back while it is clear."""

    def __init__(self, schema: Schema, answer: Callable[..., dict[str, NDArray[Any]]]) -> None:
        self.schema, self.answer = schema, answer
        self.inputs: dict[str, NDArray[Any]] = {}
        self.fail: tuple[grpc.StatusCode, str] | None = None
        self.truncate = False
        self.version = ""
        self.go_on = threading.Event()
        self.go_on.set()
        self.arrived = threading.Semaphore(0)  # released once an inference
        self.given_up = threading.Semaphore(0)  # released once an inference that the client cancelled
        self.peers: list[str] = []  # of inferences, by connection
        self.metadata: list[dict[str, str]] = []
        self.held_once = False  # the next inference is held back, those after it are not

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
        answered = threading.Event()
        ended = threading.Event()

        def on_end() -> None:
            ended.set()
            if not answered.is_set():
                self.given_up.release()

        context.add_callback(on_end)
        self.peers.append(context.peer())
        self.metadata.append(dict(context.invocation_metadata()))
        self.arrived.release()
        if self.held_once:
            self.held_once = False
            ended.wait(10)
        self._check(request.model_name, context)
        self.inputs = {}
        for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
            dtype = triton_to_np_dtype(tensor.datatype)
            self.inputs[tensor.name] = np.frombuffer(content, dtype).reshape(tuple(tensor.shape))
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=self.version)
        for name, array in self.answer(self.schema, len(self.inputs["search"])).items():
            response.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            response.raw_output_contents.append(array.tobytes()[: 0 if self.truncate else None])
        answered.set()
        return response


@contextlib.contextmanager
def serving(service: Service, *, credentials: Any = None, port: int = 0) -> Iterator[int]:
    """Serve on loopback; gives the port."""
    server = grpc.server(ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0),))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    if credentials is None:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    try:
        yield port
    finally:
        service.go_on.set()
        server.stop(None).wait()
