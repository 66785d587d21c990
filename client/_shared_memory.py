"""Tensors through shared memory instead of gRPC messages, for a server on the same host. No RPC is made here.

A slot is one file in /dev/shm, mapped by the client and, once registered, by the server. A request on its way has a
slot of its own: its inputs, then room for its outputs. Their sizes are learnt from the first answer to a request of the
same shapes, whose outputs come in the message. A slot whose request ended without an answer is not used again: the
server may still write to it.

Or a slot is memory of a CUDA device (`client/_cuda_memory.py`). Then it carries only what is on the device or belongs
there, the input given as `DeviceRows` and the `RESULTS`; the other tensors travel in the messages. The results are not
copied out of it: it is free again when no array refers to it. The first request of its shapes is asked again, once the
sizes are known.
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from client._device import DeviceRows, Lease
from client._messages import DATATYPES, DTYPES, closed, infer_answer, message_output
from client.errors import InvalidValue, SchemaMismatch, ServerError, SilverTritonError
from client.transport import Answer

FOLDER = Path("/dev/shm")
PREFIX = "silvertriton-client-"
SLOT_BYTES = 1 << 16  # the smallest slot
DEVICE_SLOT_BYTES = 1 << 21  # CUDA shows other processes pages of 2 MiB: a slot has its pages for itself
MOST_DEVICE_BYTES = 1 << 30  # of all slots of a transport, those that hold results included
RESULTS = frozenset(("item_ids", "scores", "task_scores"))  # outputs that a client may want on a device
ALIGNMENT = 64  # bytes
RETIRED_FOR = 60.0  # seconds until the server is told to forget a slot whose request ended without an answer
_SIZES_KEPT = 256  # shapes of requests whose outputs' sizes are remembered

Sizes = tuple[tuple[str, int], ...]


class Memory(Protocol):
    """One piece of memory that the server is told of. `size`: bytes."""

    size: int

    def register_request(self) -> Any:
        """The message that tells the server."""
        ...

    def write(self, offset: int, tensor: Any) -> None: ...

    def read(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any], lease: Lease) -> Any:
        """An array of what the server wrote; the lease lasts until nobody needs the memory for it."""
        ...

    def wait(self) -> None:
        """Until nothing that this process began reads the memory."""
        ...

    def remove(self) -> None:
        """Leave nothing of it behind this process."""
        ...


class SystemMemory:
    """A file in /dev/shm, removed with this object or at the end of the process at the latest.

    Raises `InvalidValue` where it cannot be made.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self._name = name
        try:
            self.bytes = _mapped(FOLDER / name, size)
        except OSError as error:
            raise InvalidValue(f"shared_memory: {size:,} bytes in /dev/shm: {error.strerror}") from error
        self._removal = weakref.finalize(self, _remove, FOLDER / name, os.getpid())

    def register_request(self) -> service_pb2.SystemSharedMemoryRegisterRequest:
        return service_pb2.SystemSharedMemoryRegisterRequest(
            name=self._name, key=f"/{self._name}", offset=0, byte_size=self.size
        )

    def write(self, offset: int, tensor: NDArray[Any]) -> None:
        self.bytes[offset : offset + tensor.nbytes] = tensor.tobytes()

    def read(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any], lease: Lease) -> NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self.bytes, dtype, count, offset).reshape(shape).copy()

    def wait(self) -> None:
        """Nothing does: arrays are copies."""

    def remove(self) -> None:
        self._removal()


def _mapped(path: Path, size: int) -> mmap.mmap:
    """A new file of that size. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)  # else a full /dev/shm would end the process later
        return mmap.mmap(descriptor, size)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # a fork goes on with the file of its parent
        path.unlink(missing_ok=True)


@dataclass(slots=True, eq=False)
class Slot:
    name: str
    memory: Memory
    registered: bool = False
    exported: bool = False  # whether another library was given results that lay in it
    retired_at: float = 0.0


class Slots:
    """The slots of one transport. Threads may share it.

    `device`: number of the CUDA device that they are memory of; None: of the host. Raises `InvalidValue` where there is
    none.
    """

    def __init__(self, device: int | None = None) -> None:
        self.kind: Literal["System", "Cuda"] = "System" if device is None else "Cuda"  # in the names of the protocol
        self._device = device
        if device is not None:
            from client._cuda_memory import require_device  # needs CUDA's Python

            require_device(device)
        elif not FOLDER.is_dir():
            raise InvalidValue("shared_memory: this system has no /dev/shm; leave it out")
        self._prefix = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = threading.Lock()
        self._free: list[Slot] = []
        self._retired: list[Slot] = []
        self._given_back: deque[Slot] = deque()  # by the end of a lease, which may come while the lock is held
        self._every: dict[str, Slot] = {}
        self._made = 0
        self._closed = False
        self._sizes: dict[Any, Sizes] = {}

    def take(self, model: str, version: str, inputs: Mapping[str, Any]) -> tuple[Slot, Any, Any]:
        """A slot with the inputs in it, the request that refers to it, and the key of its shapes.

        `inputs`: arrays of NumPy, and with a device `DeviceRows`. Raises `InvalidValue` where there is no memory.
        """
        shapes = (model, *(tensor.shape for tensor in inputs.values()))
        sizes = self._sizes.get(shapes, ())
        carried = [tensor for tensor in inputs.values() if self._carries(tensor)]
        rooms = [size for name, size in sizes if self._returns(name)]
        slot = self._slot(sum(_aligned(tensor.nbytes) for tensor in carried) + sum(map(_aligned, rooms)))
        request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
        offset = 0
        for name, tensor in inputs.items():
            entry = request.inputs.add(name=name, datatype=DATATYPES[tensor.dtype], shape=tensor.shape)
            if not self._carries(tensor):
                request.raw_input_contents.append(tensor.tobytes())
                continue
            try:
                slot.memory.write(offset, tensor)
            except InvalidValue:
                self._give_back(slot)
                raise
            _refer(entry, slot.name, offset, tensor.nbytes)
            offset += _aligned(tensor.nbytes)
        for name, size in sizes:
            wanted = request.outputs.add(name=name)
            if self._returns(name):
                _refer(wanted, slot.name, offset, size)
                offset += _aligned(size)
        return slot, request, shapes

    def answer(self, slot: Slot, request: Any, response: Any, shapes: Any, server: str) -> Answer | None:
        """The outputs. The slot is free again, on a device when no array of theirs is left.

        None: they are to be asked for again, now that their sizes are known.
        """
        lease = Lease(lambda exported: self._give_back(slot, exported))
        if request.outputs:
            return Answer(self._outputs(slot, request, response, server, lease), response.model_version)
        answer = infer_answer(response, server)
        if self._device is not None and not answer.outputs.keys() >= RESULTS:
            return answer  # a ranking, which the client sorts
        with self._lock:
            if len(self._sizes) >= _SIZES_KEPT:
                self._sizes.clear()
            self._sizes[shapes] = tuple((name, array.nbytes) for name, array in answer.outputs.items())
        return answer if self._device is None else None

    def retire(self, slot: Slot, shapes: Any) -> None:
        """Give a slot up: its request ended without an answer. Its shapes' sizes are learnt anew."""
        with self._lock:
            self._sizes.pop(shapes, None)
            slot.retired_at = monotonic()
            self._retired.append(slot)

    def forgettable(self) -> list[Slot]:
        """Slots that the server may be told to forget; while it is, the caller keeps them."""
        with self._lock:
            long_ago = monotonic() - RETIRED_FOR
            slots = [slot for slot in self._retired if slot.retired_at < long_ago]
            self._retired = [slot for slot in self._retired if slot.retired_at >= long_ago]
            for slot in slots:
                self._every.pop(slot.name).memory.remove()
        return slots

    def close(self) -> list[Slot]:
        """Remove every file; returns the slots that the server is to forget, which the caller keeps meanwhile."""
        with self._lock:
            known = [slot for slot in self._every.values() if slot.registered]
            for slot in self._every.values():
                slot.memory.remove()
            self._every, self._free, self._retired = {}, [], []
            self._closed = True
            self._given_back.clear()
        return known

    def forget_registrations(self) -> None:
        """The server has been restarted: it knows no slot."""
        with self._lock:
            for slot in self._every.values():
                slot.registered = False

    def _carries(self, tensor: Any) -> bool:
        """Whether an input lies in the slot."""
        return self._device is None or isinstance(tensor, DeviceRows)

    def _returns(self, output: str) -> bool:
        """Whether an output lies in the slot."""
        return self._device is None or output in RESULTS

    def _give_back(self, slot: Slot, exported: bool = False) -> None:
        if not self._closed:
            slot.exported = exported
            self._given_back.append(slot)

    def _slot(self, needed: int) -> Slot:
        with self._lock:
            if self._closed:
                raise closed()
            while self._given_back:
                slot = self._given_back.popleft()
                if not slot.retired_at:
                    self._free.append(slot)
            fitting = (position for position, slot in enumerate(self._free) if slot.memory.size >= needed)
            position = next(fitting, None)
            slot = self._made_slot(needed) if position is None else self._free.pop(position)
        if slot.exported:
            slot.exported = False
            slot.memory.wait()
        return slot

    def _made_slot(self, needed: int) -> Slot:
        size = max(SLOT_BYTES if self._device is None else DEVICE_SLOT_BYTES, 1 << max(0, needed - 1).bit_length())
        self._made += 1
        name = f"{self._prefix}-{self._made}"
        memory: Memory
        if self._device is None:
            memory = SystemMemory(name, size)
        else:
            from client._cuda_memory import CudaMemory  # needs CUDA's Python

            if size + sum(slot.memory.size for slot in self._every.values()) > MOST_DEVICE_BYTES:
                raise InvalidValue(
                    f"shared_memory: {size:,} bytes more than the {MOST_DEVICE_BYTES:,} on cuda:{self._device} that a "
                    "connection may take for requests on their way and results in use; copy the results that you keep"
                )
            memory = CudaMemory(name, size, self._device)
        slot = self._every[name] = Slot(name, memory)
        return slot

    @staticmethod
    def _outputs(slot: Slot, request: Any, response: Any, server: str, lease: Lease) -> dict[str, Any]:
        names = {output.name for output in request.outputs}
        places = {
            output.name: (
                output.parameters["shared_memory_offset"].int64_param,
                output.parameters["shared_memory_byte_size"].int64_param,
            )
            for output in request.outputs
            if "shared_memory_region" in output.parameters
        }
        outputs: dict[str, Any] = {}
        for position, tensor in enumerate(response.outputs):
            dtype = DTYPES.get(tensor.datatype)
            if dtype is None or tensor.name not in names:
                raise SchemaMismatch(f"{server} has an unexpected output {tensor.name!r} of {tensor.datatype}")
            if tensor.name not in places:
                outputs[tensor.name] = message_output(response, position, server)
                continue
            offset, size = places[tensor.name]
            count = int(np.prod(tensor.shape, dtype=np.int64))
            if count * dtype.itemsize > size or count < 0:
                raise ServerError(f"{server} sent a malformed answer: {tensor.name!r} of shape {list(tensor.shape)}")
            outputs[tensor.name] = slot.memory.read(offset, tensor.shape, dtype, lease)
        return outputs


def unregister_request(kind: str, name: str) -> Any:
    return getattr(service_pb2, f"{kind}SharedMemoryUnregisterRequest")(name=name)


def may_pass(error: BaseException) -> bool:
    """Whether a request failed for what is known of the server: it was restarted, or the artifact was replaced."""
    text = str(error)
    return isinstance(error, SilverTritonError) and (
        ("Unable to find" in text and "shared memory region" in text)
        or "shared memory size specified with the request for output" in text
    )


def not_registered(error: SilverTritonError, kind: str) -> ServerError:
    if kind == "System":
        remedy = f"shared_memory= needs a server on this host that may open what this process writes to {FOLDER}"
    else:
        remedy = (
            "shared_memory='cuda:N' needs a server on this host that uses the same GPU under the same number and may "
            "open this process's memory on it (in containers: the same IPC and PID namespaces); shared_memory=True or "
            "nothing at all do without"
        )
    return ServerError(f"{error}; {remedy}")


def _refer(tensor: Any, region: str, offset: int, size: int) -> None:
    parameters = tensor.parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = size
    parameters["shared_memory_offset"].int64_param = offset


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
