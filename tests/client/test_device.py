"""Arrays on a device, with host memory in its place; tests/end_to_end/test_gpu_shared_memory.py has them on a GPU."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from tritonclient.utils import _dlpack

from client import Codec, DeviceArray, Feature, InvalidValue, Request, RetrievalClient, Schema
from client._device import DeviceRows, Lease, is_on_device, vector_on_device
from tests.client.host_device import bytes_of, host_device, on_device
from tests.client.shells import SHELLS

__all__ = ["host_device"]  # a fixture

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


class Other:
    """An array of another library, on a device."""

    def __init__(self, array: np.ndarray, number: int = 0) -> None:
        self._array, self._number = array, number
        self.streams: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._number

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        capsule = self._array.__dlpack__()
        _dlpack.get_managed_tensor(capsule).dl_tensor.device = (2, self._number)
        return capsule


@pytest.mark.usefixtures("host_device")
def test_values_and_views() -> None:
    array = on_device(VALUES)
    assert (array.shape, array.dtype, array.device, len(array), array.nbytes) == ((4, 3), VALUES.dtype, "cuda:0", 4, 48)
    assert array.tolist() == VALUES.tolist()
    np.testing.assert_array_equal(np.asarray(array), VALUES)
    assert np.asarray(array, np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.asarray(array[-1]), VALUES[-1])
    np.testing.assert_array_equal(np.asarray(array[1:3]), VALUES[1:3])
    np.testing.assert_array_equal(np.asarray(array[3:1]), VALUES[3:1])
    assert array[2][1].tolist() == VALUES[2, 1]
    assert [row.tolist() for row in array] == VALUES.tolist()
    assert repr(array) == "<DeviceArray of float32 [4, 3] on cuda:0>"
    with pytest.raises(IndexError):
        array[4]
    for index in (slice(None, None, 2), (0, 1), [0], None):
        with pytest.raises(TypeError, match=r"an integer or a slice of step 1.*torch\.from_dlpack or numpy\.asarray"):
            array[index]  # type: ignore[index]
    with pytest.raises(TypeError, match="without dimensions"):
        len(array[0][0])
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="must be copied"):
            np.asarray(array, copy=False)


def test_what_dlpack_is_told() -> None:
    array = on_device(VALUES, 3)
    assert array.__dlpack_device__() == (2, 3)
    capsule = array[1:].__dlpack__(stream=1, max_version=(1, 0))
    tensor = _dlpack.get_managed_tensor(capsule).dl_tensor
    assert (tensor.device.device_type.value, tensor.device.device_id) == (2, 3)
    assert tensor.data + tensor.byte_offset == VALUES.ctypes.data + 12
    assert tensor.shape[: tensor.ndim] == [3, 3]
    assert (tensor.dtype.type_code.value, tensor.dtype.bits, tensor.dtype.lanes) == (2, 32, 1)
    for wrong in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match="as it lies there, not copied"):
            array.__dlpack__(**wrong)


def test_memory_is_lent_until_nothing_refers_to_it() -> None:
    ended: list[bool] = []

    def lent() -> DeviceArray:
        return DeviceArray(VALUES.ctypes.data, (4, 3), VALUES.dtype, 0, Lease(ended.append))

    array = lent()
    view = array[1:2]
    del array
    assert ended == []
    del view
    assert ended == [False]
    capsule = lent().__dlpack__()  # what another library holds
    gc.collect()
    assert ended == [False]
    del capsule
    assert ended == [False, True]


def test_a_library_that_takes_the_capsule_lets_go_of_the_memory() -> None:
    class Host(DeviceArray):  # torch has no CUDA here: it is told that this is the host
        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    ended: list[bool] = []
    tensor = torch.from_dlpack(Host(VALUES.ctypes.data, (4, 3), VALUES.dtype, 0, Lease(ended.append)))
    assert tensor.data_ptr() == VALUES.ctypes.data
    assert tensor.tolist() == VALUES.tolist()
    view = tensor[1]
    del tensor
    assert ended == []
    del view
    assert ended == [True]


def test_arrays_of_others_are_taken_as_they_lie() -> None:
    array = VALUES[1].copy()
    other = Other(array)
    assert is_on_device(other)
    assert not any(map(is_on_device, (array, torch.zeros(2), [1.0], None, 1)))
    vector = vector_on_device("query", other, np.float32, 0)
    assert other.streams == [1]  # the legacy default stream waits for the caller's
    assert bytes_of(vector) == array.tobytes()
    kept = weakref.ref(array)
    del array, other
    gc.collect()
    assert kept() is not None
    del vector
    assert kept() is None


@pytest.mark.parametrize(
    ("value", "device", "told"),
    [
        (Other(VALUES[0]), None, r"query: is on cuda:0; make the client with shared_memory='cuda:0' .* copy it to the"),
        (Other(VALUES[0], 1), 0, r"query: is on cuda:1, the client shares memory of cuda:0; copy it there"),
        (Other(VALUES[0].astype(np.float16)), 0, r"query: got float16 on cuda:0, expected float32"),
        (Other(np.arange(3)), 0, r"query: got int64 on cuda:0, expected float32"),
        (Other(VALUES), 0, r"query: got shape \[4, 3\] on cuda:0, expected one dimension, contiguous"),
        (Other(VALUES[:, 1]), 0, r"query: got shape \[4\] on cuda:0, expected one dimension, contiguous"),
        (Other(np.frombuffer(bytes(12), np.float32)), 0, r"query: cannot be read through DLPack: .*readonly"),
    ],
)
def test_arrays_that_cannot_be_taken(value: Any, device: int | None, told: str) -> None:
    with pytest.raises(InvalidValue, match=told):
        vector_on_device("query", value, np.float32, device)


def test_rows_of_one_matrix_are_one_piece() -> None:
    padding = np.full(3, -1, np.float32)
    one, two, four = (vector_on_device("q", Other(VALUES[at]), np.float32, 0) for at in (0, 1, 3))
    rows = DeviceRows((4, 3), np.dtype(np.float32), [one, padding[:0], two, four, padding])
    assert rows.nbytes == 48
    assert [bytes_of(piece) for piece in rows.pieces] == [
        *(VALUES[at].tobytes() for at in (0, 1, 3)),
        padding.tobytes(),
    ]
    assert [bytes_of(piece) for piece in rows.joined()] == [
        VALUES[:2].tobytes(),
        VALUES[3].tobytes(),
        padding.tobytes(),
    ]


def schema(history: int) -> Schema:
    users = (Feature("user_id", "category", "integer"),) if history else ()
    return Schema(
        name="s", user_features=users, item_features=(), tasks=("t",), history_length=history,
        query_dims=0 if history else 3, max_results=10, max_candidates=10, clusters=4,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["query", "history"])
def test_batches_are_encoded_as_on_the_host(name: str) -> None:
    """Whether all rows are on the device, one is, or none."""
    codec, device = Codec(schema(5 * (name == "history"))), Codec(schema(5 * (name == "history")), device=0)
    if name == "query":
        values: list[Any] = list(VALUES)
    else:
        values = [np.arange(first, first + length) for first, length in ((1, 3), (10, 9), (20, 0), (30, 5))]
    expected = codec.encode([Request(**{name: row}) for row in values])
    for taken in ({0, 1, 2, 3}, {1}, {0, 2}):
        requests = [Request(**{name: Other(row) if at in taken else row}) for at, row in enumerate(values)]
        tensors = device.encode(requests)
        rows: Any = tensors[name]
        assert isinstance(rows, DeviceRows)
        assert (rows.shape, rows.dtype) == (expected[name].shape, expected[name].dtype)
        assert b"".join(map(bytes_of, rows.pieces)) == expected[name].tobytes()
        assert b"".join(map(bytes_of, rows.joined())) == expected[name].tobytes()
        for other in expected.keys() - {name}:
            np.testing.assert_array_equal(tensors[other], expected[other])
    same = device.encode([Request(**{name: row}) for row in values])
    np.testing.assert_array_equal(same[name], expected[name])


def test_what_does_not_fit_the_artifact() -> None:
    with pytest.raises(InvalidValue, match="query: got 4 numbers on cuda:0, expected 3"):
        Codec(schema(0), device=0).encode([Request(query=Other(np.zeros(4, np.float32)))])
    with pytest.raises(InvalidValue, match="history: got int32 on cuda:0, expected int64"):
        Codec(schema(5), device=0).encode([Request(history=Other(np.zeros(4, np.int32)))])
    with pytest.raises(InvalidValue, match="query: is on cuda:0; make the client with shared_memory='cuda:0'"):
        Codec(schema(0)).encode([Request(query=Other(np.zeros(3, np.float32)))])


@pytest.mark.parametrize("shell", SHELLS.values())
@pytest.mark.parametrize("device", ["cuda", "cuda:", "cuda:-1", "cuda:x", "gpu:0", "cuda:0 ", 0, None])
def test_devices_that_are_none(shell: Any, device: Any) -> None:
    with pytest.raises(
        InvalidValue, match=r"shared_memory: got .*expected True, False, or a device such as \"cuda:0\""
    ):
        shell("a:1", shared_memory=device)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_no_second_owner_of_its_memory_is_made(make: Any) -> None:
    """Of two leases of one slot each would give it back, and two requests would share it."""
    ends: list[bool] = []
    array = DeviceArray(VALUES.ctypes.data, VALUES.shape, VALUES.dtype, 0, Lease(ends.append))
    with pytest.raises(TypeError, match=r"cuda:0 can be neither pickled nor copied; numpy.asarray"):
        make(array)
    del array
    gc.collect()
    assert ends == [False]


WITHOUT_CUDA = """
import sys
sys.modules["cuda"] = None
from client import InvalidValue, RetrievalClient
try:
    RetrievalClient("a:1", shared_memory="cuda:0")
except InvalidValue as error:
    print(error)
"""


def test_without_the_python_of_cuda() -> None:
    told = subprocess.run([sys.executable, "-c", WITHOUT_CUDA], capture_output=True, text=True, check=True).stdout
    assert told.startswith("shared_memory: tensors on a GPU need CUDA's Python (")
    assert told.endswith("): pip install 'silvertriton[cuda]'\n")


def test_without_a_device() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    if torch.cuda.is_available():
        with pytest.raises(InvalidValue, match=r"shared_memory: got cuda:99, this process sees [0-9]+ CUDA devices"):
            RetrievalClient("a:1", shared_memory="cuda:99")
    else:
        with pytest.raises(InvalidValue, match="shared_memory: no CUDA device: "):
            RetrievalClient("a:1", shared_memory="cuda:0")
