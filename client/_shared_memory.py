"""Tensors through system shared memory instead of gRPC messages, for a server on the same host. No RPC is made here.

A slot is one file in /dev/shm, mapped by the client and, once registered, by the server. A request on its way has a
slot of its own: its inputs, then room for its outputs. Their sizes are learnt from the first answer to a request of the
same shapes, whose outputs come in the message. A slot whose request ended without an answer is not used again: the
server may still write to it.
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from client._messages import DATATYPES, DTYPES, closed, infer_answer
from client.errors import InvalidValue, SchemaMismatch, ServerError, SilverTritonError
from client.transport import Answer

FOLDER = Path("/dev/shm")
PREFIX = "silvertriton-client-"
SLOT_BYTES = 1 << 16  # the smallest slot
ALIGNMENT = 64  # bytes
RETIRED_FOR = 60.0  # seconds until the server is told to forget a slot whose request ended without an answer
_SIZES_KEPT = 256  # shapes of requests whose outputs' sizes are remembered

Sizes = tuple[tuple[str, int], ...]


@dataclass(slots=True, eq=False)
class Slot:
    name: str
    memory: mmap.mmap
    registered: bool = False
    retired_at: float = 0.0

    def register_request(self) -> service_pb2.SystemSharedMemoryRegisterRequest:
        return service_pb2.SystemSharedMemoryRegisterRequest(
            name=self.name, key=f"/{self.name}", offset=0, byte_size=len(self.memory)
        )


class Slots:
    """The slots of one transport. Threads may share it."""

    def __init__(self) -> None:
        if not FOLDER.is_dir():
            raise InvalidValue("shared_memory: this system has no /dev/shm; leave it out")
        self._prefix = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = threading.Lock()
        self._free: list[Slot] = []
        self._retired: list[Slot] = []
        self._every: dict[str, Slot] = {}
        self._made = 0
        self._closed = False
        self._sizes: dict[Any, Sizes] = {}

    def take(self, model: str, version: str, inputs: Mapping[str, NDArray[Any]]) -> tuple[Slot, Any, Any]:
        """A slot with the inputs in it, the request that refers to it, and the key of its shapes."""
        shapes = (model, *(array.shape for array in inputs.values()))
        sizes = self._sizes.get(shapes, ())
        needed = sum(_aligned(array.nbytes) for array in inputs.values()) + sum(_aligned(size) for _, size in sizes)
        slot = self._slot(needed)
        request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
        offset = 0
        for name, array in inputs.items():
            slot.memory[offset : offset + array.nbytes] = array.tobytes()
            tensor = request.inputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
            _refer(tensor, slot.name, offset, array.nbytes)
            offset += _aligned(array.nbytes)
        for name, size in sizes:
            _refer(request.outputs.add(name=name), slot.name, offset, size)
            offset += _aligned(size)
        return slot, request, shapes

    def answer(self, slot: Slot, request: Any, response: Any, shapes: Any, server: str) -> Answer:
        """The outputs, copied out of the slot, which is free again."""
        if not request.outputs:
            answer = infer_answer(response, server)
            with self._lock:
                if len(self._sizes) >= _SIZES_KEPT:
                    self._sizes.clear()
                self._sizes[shapes] = tuple((name, array.nbytes) for name, array in answer.outputs.items())
        else:
            answer = Answer(self._outputs(slot, request, response, server), response.model_version)
        with self._lock:
            if not self._closed:
                self._free.append(slot)
        return answer

    def retire(self, slot: Slot, shapes: Any) -> None:
        """Give a slot up: its request ended without an answer. Its shapes' sizes are learnt anew."""
        with self._lock:
            self._sizes.pop(shapes, None)
            slot.retired_at = monotonic()
            self._retired.append(slot)

    def forgettable(self) -> list[str]:
        """Names of slots that the server may be told to forget."""
        with self._lock:
            long_ago = monotonic() - RETIRED_FOR
            names = [slot.name for slot in self._retired if slot.retired_at < long_ago]
            self._retired = [slot for slot in self._retired if slot.retired_at >= long_ago]
            for name in names:
                self._remove(self._every.pop(name))
        return names

    def close(self) -> list[str]:
        """Remove every file; returns the names of the slots that the server knows."""
        with self._lock:
            known = [slot.name for slot in self._every.values() if slot.registered]
            for slot in self._every.values():
                self._remove(slot)
            self._every, self._free, self._retired = {}, [], []
            self._closed = True
        return known

    def forget_registrations(self) -> None:
        """The server has been restarted: it knows no slot."""
        with self._lock:
            for slot in self._every.values():
                slot.registered = False

    def _slot(self, needed: int) -> Slot:
        with self._lock:
            if self._closed:
                raise closed()
            for position, slot in enumerate(self._free):
                if len(slot.memory) >= needed:
                    return self._free.pop(position)
            self._made += 1
            name = f"{self._prefix}-{self._made}"
            size = max(SLOT_BYTES, 1 << (needed - 1).bit_length())
            descriptor = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)  # else a full /dev/shm would end the process later
                slot = Slot(name, mmap.mmap(descriptor, size))
            except OSError as error:
                os.unlink(FOLDER / name)
                raise InvalidValue(f"shared_memory: {size:,} bytes in /dev/shm: {error.strerror}") from error
            finally:
                os.close(descriptor)
            self._every[name] = slot
            return slot

    @staticmethod
    def _outputs(slot: Slot, request: Any, response: Any, server: str) -> dict[str, NDArray[Any]]:
        places = {
            output.name: (
                output.parameters["shared_memory_offset"].int64_param,
                output.parameters["shared_memory_byte_size"].int64_param,
            )
            for output in request.outputs
        }
        outputs = {}
        for tensor in response.outputs:
            dtype = DTYPES.get(tensor.datatype)
            if dtype is None or tensor.name not in places:
                raise SchemaMismatch(f"{server} has an unexpected output {tensor.name!r} of {tensor.datatype}")
            offset, size = places[tensor.name]
            count = int(np.prod(tensor.shape, dtype=np.int64))
            if count * dtype.itemsize > size or count < 0:
                raise ServerError(f"{server} sent a malformed answer: {tensor.name!r} of shape {list(tensor.shape)}")
            outputs[tensor.name] = np.frombuffer(slot.memory, dtype, count, offset).reshape(tensor.shape).copy()
        return outputs

    @staticmethod
    def _remove(slot: Slot) -> None:
        (FOLDER / slot.name).unlink(missing_ok=True)


def unregister_request(name: str) -> service_pb2.SystemSharedMemoryUnregisterRequest:
    return service_pb2.SystemSharedMemoryUnregisterRequest(name=name)


def may_pass(error: BaseException) -> bool:
    """Whether a request failed for what is known of the server: it was restarted, or the artifact was replaced."""
    text = str(error)
    return isinstance(error, SilverTritonError) and (
        ("Unable to find" in text and "shared memory region" in text)
        or "shared memory size specified with the request for output" in text
    )


def not_registered(error: SilverTritonError) -> ServerError:
    return ServerError(
        f"{error}; shared_memory= needs a server on this host that may open what this process writes to {FOLDER}"
    )


def _refer(tensor: Any, region: str, offset: int, size: int) -> None:
    parameters = tensor.parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = size
    parameters["shared_memory_offset"].int64_param = offset


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
