"""A stand-in for CUDA, for machines without a GPU: host memory whose addresses pass for those of a device.

Slots are files in /dev/shm that carry what device slots carry, so that a stock server can be asked to use them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client._device import DeviceArray, DeviceRows, Lease
from client._shared_memory import SystemMemory


class HostMemory(SystemMemory):
    def __init__(self, name: str, size: int, device: int) -> None:
        super().__init__(name, size)
        self.device, self.waits = device, 0
        self.address = np.frombuffer(self.bytes, np.uint8).ctypes.data

    def write(self, offset: int, tensor: DeviceRows) -> None:  # type: ignore[override]
        assert offset == 0
        contents = b"".join(map(bytes_of, tensor.joined()))
        ctypes.memmove(self.address, contents, len(contents))

    def read(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any], lease: Lease) -> Any:
        return DeviceArray(self.address + offset, shape, dtype, self.device, lease)

    def wait(self) -> None:
        self.waits += 1


def bytes_of(piece: DeviceArray | NDArray[Any]) -> bytes:
    return ctypes.string_at(piece._pointer, piece.nbytes) if isinstance(piece, DeviceArray) else piece.tobytes()


def on_device(array: NDArray[Any], number: int = 0) -> DeviceArray:
    """The array as if it were on that device."""
    return DeviceArray(array.ctypes.data, array.shape, array.dtype, number, array)


@pytest.fixture
def host_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the test lasts, `client` takes host memory for that of a device."""
    module: Any = ModuleType("client._cuda_memory")
    module.CudaMemory = HostMemory
    module.require_device = lambda number: None
    module.copy_to_host = lambda array, pointer: ctypes.memmove(array.ctypes.data, pointer, array.nbytes)
    monkeypatch.setitem(sys.modules, "client._cuda_memory", module)
