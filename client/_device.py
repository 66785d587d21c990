"""Arrays on a CUDA device as DLPack describes them. Only the copy to NumPy calls CUDA."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from client.errors import InvalidValue

_CUDA = 2  # DLPack's kDLCUDA
_LEGACY_STREAM = 1  # DLPack's number of CUDA's legacy default stream, for which the streams of tritonclient wait
_KINDS = {0: "i", 2: "f"}  # NumPy's, by DLPack's type code
_NAMES = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}


class Lease:
    """Memory lent to the arrays that refer to this object; `ended` is called when none is left.

    `exported`: whether another library was given one of them, so that work on the device may still read it.
    """

    __slots__ = ("_ended", "exported")

    def __init__(self, ended: Callable[[bool], None]) -> None:
        self._ended = ended
        self.exported = False

    def __del__(self) -> None:
        self._ended(self.exported)


class DeviceArray:
    """An array on a CUDA device, contiguous in C order: results of a client with `shared_memory="cuda:N"`.

    `torch.from_dlpack(array)` and `cupy.from_dlpack(array)` refer to the same memory, which is used for other requests
    once neither the array nor what was made of it is left. `numpy.asarray(array)` and `tolist()` copy it to the host.
    Indexing its first dimension gives views.

    `shape`, `dtype`: as NumPy has them; `device`: such as "cuda:0".
    """

    __slots__ = ("_number", "_owner", "_pointer", "dtype", "shape")

    def __init__(self, pointer: int, shape: Sequence[int], dtype: np.dtype[Any], number: int, owner: object) -> None:
        self._pointer, self._number, self._owner = pointer, number, owner
        self.shape, self.dtype = tuple(shape), dtype

    @property
    def device(self) -> str:
        return f"cuda:{self._number}"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def tolist(self) -> Any:
        """The values as Python's numbers, in lists of lists."""
        return np.asarray(self).tolist()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[DeviceArray]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, index: int | slice) -> DeviceArray:
        stride = self.nbytes // max(1, len(self))
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step == 1:
                shape = (max(0, last - first), *self.shape[1:])
                return DeviceArray(self._pointer + first * stride, shape, self.dtype, self._number, self._owner)
        elif isinstance(index, int | np.integer):
            position = range(len(self))[index]  # IndexError as in a list
            return DeviceArray(self._pointer + position * stride, self.shape[1:], self.dtype, self._number, self._owner)
        raise TypeError(
            f"an array on {self.device} takes an integer or a slice of step 1 as its index, got {index!r}; for more, "
            "give it to torch.from_dlpack or numpy.asarray first"
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self._number

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule of DLPack before 1.0. There is nothing to wait for on `stream`: the values are there."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"an array on {self.device} is given as it lies there, not copied")
        if isinstance(self._owner, Lease):
            self._owner.exported = True
        # NumPy writes the capsule, and lets go of `_Address` with it; it never looks at the address.
        capsule = np.asarray(_Address(self._pointer, self.shape, self.dtype, self._owner)).__dlpack__()
        _described(capsule).device = self.__dlpack_device__()
        return capsule

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"an array on {self.device} must be copied to become one of NumPy")
        from client._cuda_memory import copy_to_host  # where CUDA's Python is first needed

        array = np.empty(self.shape, self.dtype)
        if array.nbytes:
            copy_to_host(array, self._pointer)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"an array on {self.device} can be neither pickled nor copied; numpy.asarray(array) is a copy on the host"
        )

    def __repr__(self) -> str:
        return f"<DeviceArray of {self.dtype} {list(self.shape)} on {self.device}>"


class DeviceRows:
    """[B, n] tensor of a request, some rows of which are on a device: `pieces`, flat arrays, one after the other."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], pieces: Sequence[DeviceArray | NDArray[Any]]):
        self.shape, self.dtype = shape, dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.pieces = [piece for piece in pieces if len(piece)]

    def joined(self) -> list[DeviceArray | NDArray[Any]]:
        """The pieces, but those of the device that follow each other in memory, as rows of a matrix do, as one.

        Whether they are of one allocation cannot be seen. `self` must outlive the list.
        """
        joined: list[Any] = []
        for piece in self.pieces:
            last = joined[-1] if joined else None
            if (
                isinstance(piece, DeviceArray)
                and isinstance(last, DeviceArray)
                and last._pointer + last.nbytes == piece._pointer
            ):
                shape = (len(last) + len(piece),)
                joined[-1] = DeviceArray(last._pointer, shape, self.dtype, last._number, None)
            else:
                joined.append(piece)
        return joined


def is_on_device(value: object) -> bool:
    """Whether it is an array on a CUDA device."""
    place = getattr(value, "__dlpack_device__", None)
    return place is not None and not isinstance(value, np.ndarray) and int(place()[0]) == _CUDA


def vector_on_device(where: str, value: Any, dtype: type, device: int | None) -> DeviceArray:
    """The flat array `value`, which is on a CUDA device. Later work of tritonclient waits for the caller's stream.

    `device`: the one that the client shares memory of. Raises `InvalidValue`.
    """
    number = int(value.__dlpack_device__()[1])
    if device is None:
        raise InvalidValue(
            f"{where}: is on cuda:{number}; make the client with shared_memory='cuda:{number}' to pass it from there, "
            "or copy it to the host"
        )
    if number != device:
        raise InvalidValue(f"{where}: is on cuda:{number}, the client shares memory of cuda:{device}; copy it there")
    try:
        capsule = value.__dlpack__(stream=_LEGACY_STREAM)
        tensor = _described(capsule)
    except Exception as error:
        raise InvalidValue(f"{where}: cannot be read through DLPack: {error}") from error
    shape = tuple(tensor.shape[: tensor.ndim])
    code, bits = tensor.dtype.type_code.value, tensor.dtype.bits
    expected: np.dtype[Any] = np.dtype(dtype)
    if (_KINDS.get(code), bits, tensor.dtype.lanes) != (expected.kind, 8 * expected.itemsize, 1):
        got = f"{_NAMES.get(code, 'numbers of ')}{bits}"
        raise InvalidValue(f"{where}: got {got} on cuda:{number}, expected {expected}")
    if len(shape) != 1 or (tensor.strides and shape[0] > 1 and tensor.strides[0] != 1):
        raise InvalidValue(f"{where}: got shape {list(shape)} on cuda:{number}, expected one dimension, contiguous")
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, expected, number, capsule)


class _Address:
    """Memory in the form in which NumPy takes it over."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> None:
        self.__array_interface__ = {"version": 3, "data": (pointer, False), "shape": shape, "typestr": dtype.str}
        self._owner = owner


def _described(capsule: Any) -> Any:
    """What a capsule says of its array, as a structure of ctypes."""
    from tritonclient.utils import _dlpack  # not by an import of `client`

    return _dlpack.get_managed_tensor(capsule).dl_tensor
