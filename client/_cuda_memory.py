"""Device memory that the server opens through CUDA's interprocess handles, as tritonclient allocates it.

Needs CUDA's Python (`cuda.bindings`), which is imported by the first use of this module.
"""

from __future__ import annotations

import base64
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from client._device import DeviceArray, DeviceRows, Lease
from client.errors import InvalidValue

try:
    from cuda.bindings import runtime
    from tritonclient.utils import cuda_shared_memory
except (ImportError, RuntimeError) as absent:  # RuntimeError: tritonclient's, of one that looks for another module
    raise InvalidValue(
        f"shared_memory: tensors on a GPU need CUDA's Python ({absent}): pip install 'silvertriton[cuda]'"
    ) from absent


class CudaMemory:
    """One allocation. It is freed when nothing refers to it any more; by the driver at the end of the process.

    Raises `InvalidValue` where it cannot be made.
    """

    def __init__(self, name: str, size: int, device: int) -> None:
        self.size = size
        self._name, self._device = name, device
        try:
            self._region = cuda_shared_memory.create_shared_memory_region(name, size, device)
        except cuda_shared_memory.CudaSharedMemoryException as error:
            raise InvalidValue(f"shared_memory: {size:,} bytes on cuda:{device}: {_reason(error)}") from error
        # tritonclient keeps a list of all; taken off it, the region frees itself.
        weakref.finalize(self, cuda_shared_memory.destroy_shared_memory_region, self._region).atexit = False

    def register_request(self) -> service_pb2.CudaSharedMemoryRegisterRequest:
        handle = base64.b64decode(cuda_shared_memory.get_raw_handle(self._region))
        return service_pb2.CudaSharedMemoryRegisterRequest(
            name=self._name, raw_handle=handle, device_id=self._device, byte_size=self.size
        )

    def write(self, offset: int, tensor: DeviceRows) -> None:
        """Copy the rows to the beginning, and wait for that. Raises `InvalidValue` where CUDA does not."""
        assert offset == 0, "the one input that may be on a device comes first"
        fill = cuda_shared_memory.set_shared_memory_region_from_dlpack
        refused = cuda_shared_memory.CudaSharedMemoryException
        try:
            try:
                fill(self._region, tensor.joined())
            except refused:  # neighbours of two allocations may not be copied at once
                fill(self._region, tensor.pieces)
        except refused as error:
            raise InvalidValue(f"shared_memory: copying on cuda:{self._device}: {_reason(error)}") from error

    def read(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any], lease: Lease) -> DeviceArray:
        # A private name: tritonclient's own view of a region tells the address in a capsule that it never frees.
        return DeviceArray(self._region._base_addr + offset, shape, dtype, self._device, lease)

    def wait(self) -> None:
        """Until all that this process has asked of the device is done."""
        before = _done(runtime.cudaGetDevice())
        _done(runtime.cudaSetDevice(self._device))
        try:
            _done(runtime.cudaDeviceSynchronize())
        finally:
            cuda_shared_memory.maybe_set_device(before)  # which begins no context where there was none

    def remove(self) -> None:
        """Nothing: results may lie in it, the last of which frees it."""


def require_device(number: int) -> None:
    """Raise `InvalidValue` unless there is that CUDA device."""
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess:
        raise InvalidValue(f"shared_memory: no CUDA device: {_text(error)}")
    if number >= count:
        raise InvalidValue(f"shared_memory: got cuda:{number}, this process sees {count} CUDA devices")


def copy_to_host(array: NDArray[Any], pointer: int) -> None:
    """Fill the array from device memory, and wait for that."""
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    _done(runtime.cudaMemcpy(array.ctypes.data, pointer, array.nbytes, kind))


def _done(result: tuple[Any, ...]) -> Any:
    if result[0] != runtime.cudaError_t.cudaSuccess:
        raise InvalidValue(f"shared_memory: {_text(result[0])}")
    return result[1] if len(result) > 1 else None


def _text(error: Any) -> str:
    text: bytes = runtime.cudaGetErrorString(error)[1]
    return text.decode()


def _reason(error: BaseException) -> str:
    """tritonclient raises from an error whose text are bytes."""
    cause = error.__cause__
    reason = cause.args[0] if cause is not None and cause.args else str(error)
    return reason.decode() if isinstance(reason, bytes) else str(reason)
