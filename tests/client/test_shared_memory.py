"""The slots of shared memory without a server; tests/end_to_end/test_client.py has them with one."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from client import ClientClosed, DeviceArray, InvalidValue, SchemaMismatch, ServerError
from client import _shared_memory as module
from client._device import DeviceRows
from client._messages import DATATYPES
from client._shared_memory import ALIGNMENT, FOLDER, SLOT_BYTES, Slot, Slots
from tests.client.host_device import host_device, on_device
from tests.client.shells import SHELLS

__all__ = ["host_device"]  # a fixture

INPUTS = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.ones((2, 1), np.float32)}
OUTPUT = np.arange(4, dtype=np.float32).reshape(2, 2)


@pytest.fixture
def slots() -> Iterator[Slots]:
    slots = Slots()
    yield slots
    slots.close()


def answered(slots: Slots) -> Any:
    """One request whose outputs came in the message, so that their sizes are known."""
    slot, request, shapes = slots.take("m", "", INPUTS)
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="x", datatype="FP32", shape=OUTPUT.shape)
    response.raw_output_contents.append(OUTPUT.tobytes())
    return slot, request, slots.answer(slot, request, response, shapes, "server")


def place(tensor: Any) -> tuple[str, int, int]:
    parameters = tensor.parameters
    return (
        parameters["shared_memory_region"].string_param,
        parameters["shared_memory_offset"].int64_param,
        parameters["shared_memory_byte_size"].int64_param,
    )


def test_what_is_in_a_slot_is_what_the_request_says(slots: Slots) -> None:
    slot, request, answer = answered(slots)
    assert not request.outputs
    assert not request.raw_input_contents
    np.testing.assert_array_equal(answer.outputs["x"], OUTPUT)
    again, request, shapes = slots.take("m", "2", INPUTS)
    assert again is slot
    assert request.model_version == "2"
    assert [place(tensor) for tensor in request.inputs] == [(slot.name, 0, 48), (slot.name, ALIGNMENT, 8)]
    assert [place(tensor) for tensor in request.outputs] == [(slot.name, 2 * ALIGNMENT, 16)]
    file = (FOLDER / slot.name).read_bytes()
    assert len(file) == SLOT_BYTES
    assert np.frombuffer(file, np.int64, 6).tolist() == list(range(6))
    slot.memory.bytes[128:144] = (OUTPUT + 1).tobytes()  # as a server would
    response = service_pb2.ModelInferResponse(model_version="2")
    response.outputs.add(name="x", datatype="FP32", shape=OUTPUT.shape)
    answer = slots.answer(slot, request, response, shapes, "server")
    slot.memory.bytes[128:144] = bytes(16)  # what was returned is a copy
    np.testing.assert_array_equal(answer.outputs["x"], OUTPUT + 1)
    assert answer.version == "2"


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "error"),
    [("x", "FP32", [2, 3], ServerError), ("x", "BYTES", [2], SchemaMismatch), ("y", "FP32", [1], SchemaMismatch)],
)
def test_answers_that_do_not_fit(slots: Slots, name: str, datatype: str, shape: list[int], error: Any) -> None:
    answered(slots)
    slot, request, shapes = slots.take("m", "", INPUTS)
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    with pytest.raises(error):
        slots.answer(slot, request, response, shapes, "server")


def test_each_request_on_its_way_has_a_slot_of_its_own(slots: Slots) -> None:
    one, two = (slots.take("m", "", INPUTS)[0] for _ in range(2))
    assert one is not two


def test_a_larger_request_gets_a_larger_slot(slots: Slots) -> None:
    large = {"a": np.zeros((1, SLOT_BYTES // 8 + 1), np.int64)}
    slot, _, _ = slots.take("m", "", large)
    assert slot.memory.size == 2 * SLOT_BYTES
    assert slot.memory.register_request().byte_size == 2 * SLOT_BYTES


def test_a_retired_slot_is_not_used_again_and_later_forgotten(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    slot, _, _ = answered(slots)
    slot, _, shapes = slots.take("m", "", INPUTS)
    slots.retire(slot, shapes)
    other, request, _ = slots.take("m", "", INPUTS)
    assert other is not slot
    assert not request.outputs  # sizes are learnt anew
    assert slots.forgettable() == []
    monkeypatch.setattr(module, "RETIRED_FOR", -1.0)
    assert slots.forgettable() == [slot]
    assert not (FOLDER / slot.name).exists()
    assert slots.forgettable() == []


def test_closing_removes_every_file(slots: Slots) -> None:
    slot, _, _ = answered(slots)
    slot.registered = True
    slots.take("m", "", INPUTS)
    slots.retire(*slots.take("n", "", INPUTS)[::2])
    assert slots.close() == [slot]
    assert not list(FOLDER.glob(f"{slot.name.rpartition('-')[0]}-*"))
    with pytest.raises(ClientClosed):  # a call that races with it
        slots.take("m", "", INPUTS)


ENDS = """
import os
from tests.client.test_shared_memory import INPUTS, Slots
slots = Slots()
slot, _, _ = slots.take("m", "", INPUTS)
path = f"/dev/shm/{slot.name}"
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(os.path.exists(path), path)  # the end of a fork, which goes by the same names, takes nothing away
"""


def test_the_end_of_a_process_removes_every_file() -> None:
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", ENDS], cwd=root, capture_output=True, text=True, check=True).stdout
    was_there, path = told.split()
    assert was_there == "True"
    assert not Path(path).exists()


def test_files_that_cannot_be_made_are_told(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module.os, "open", refuse)
    with pytest.raises(InvalidValue, match="shared_memory: 65,536 bytes in /dev/shm: Too many open files"):
        slots.take("m", "", INPUTS)


NAMES = ("item_ids", "scores", "task_scores", "count")
RESULTS = {
    "item_ids": np.arange(6, dtype=np.int64).reshape(2, 3),
    "scores": np.arange(6, dtype=np.float32).reshape(2, 3) / 8,
    "task_scores": np.arange(6, dtype=np.float32).reshape(2, 3, 1) / 4,
    "count": np.array([[3], [2]], np.int32),
}
PLACES = {"item_ids": (64, 48), "scores": (128, 24), "task_scores": (192, 24)}
QUERIES = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def device_slots(host_device: None) -> Iterator[Slots]:
    slots = Slots(device=0)
    yield slots
    slots.close()


def device_inputs() -> dict[str, Any]:
    rows = DeviceRows((2, 4), QUERIES.dtype, [on_device(row) for row in QUERIES])
    return {"query": rows, "exclude": np.full((2, 1), -1, np.int64)}


def message(outputs: dict[str, np.ndarray], lying: tuple[str, ...] = ()) -> Any:
    """An answer as the server gives it: what lies in shared memory has an empty content."""
    response = service_pb2.ModelInferResponse()
    for name, array in outputs.items():
        response.outputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        response.raw_output_contents.append(b"" if name in lying else array.tobytes())
    return response


def device_answer(slots: Slots) -> tuple[Slot, Any]:
    """One request that is answered through the slot."""
    slot, request, shapes = slots.take("m", "", device_inputs())
    if not request.outputs:
        assert slots.answer(slot, request, message(RESULTS), shapes, "server") is None
        return device_answer(slots)
    for name, (offset, size) in PLACES.items():  # as a server would
        slot.memory.bytes[offset : offset + size] = RESULTS[name].tobytes()
    return slot, slots.answer(slot, request, message(RESULTS, tuple(PLACES)), shapes, "server")


def test_a_device_slot_carries_what_is_or_belongs_there(device_slots: Slots) -> None:
    slot, request, shapes = device_slots.take("m", "", device_inputs())
    assert slot.memory.size == module.DEVICE_SLOT_BYTES
    assert slot.memory.bytes[:32] == QUERIES.tobytes()
    query, exclude = request.inputs
    assert (query.name, query.datatype, query.shape, place(query)) == ("query", "FP32", [2, 4], (slot.name, 0, 32))
    assert (exclude.name, exclude.shape, list(exclude.parameters)) == ("exclude", [2, 1], [])
    assert list(request.raw_input_contents) == [bytes(b"\xff" * 16)]
    assert not request.outputs
    assert device_slots.answer(slot, request, message(RESULTS), shapes, "server") is None  # asked again
    again, request, _ = device_slots.take("m", "", device_inputs())
    assert again is slot
    assert [output.name for output in request.outputs] == list(NAMES)
    assert [place(output) for output in request.outputs[:3]] == [(slot.name, *PLACES[name]) for name in NAMES[:3]]
    assert not request.outputs[3].parameters


def test_results_lie_in_the_slot_until_nothing_refers_to_them(device_slots: Slots) -> None:
    slot, answer = device_answer(device_slots)
    for name in PLACES:
        array = answer.outputs[name]
        assert isinstance(array, DeviceArray)
        np.testing.assert_array_equal(np.asarray(array), RESULTS[name])
    np.testing.assert_array_equal(answer.outputs["count"], RESULTS["count"])
    kept = answer.outputs["scores"][1]
    del answer, array
    other, more = device_answer(device_slots)
    assert other is not slot
    np.testing.assert_array_equal(np.asarray(kept), RESULTS["scores"][1])
    del kept, more
    slots_used = {device_slots.take("m", "", device_inputs())[0].name for _ in range(2)}
    assert slots_used == {slot.name, other.name}
    assert (slot.memory.waits, other.memory.waits) == (0, 0)  # NumPy's copies had been waited for


def test_a_slot_waits_for_those_who_were_given_its_results(device_slots: Slots) -> None:
    slot, answer = device_answer(device_slots)
    capsule = answer.outputs["item_ids"].__dlpack__()
    del answer
    assert device_slots.take("m", "", device_inputs())[0] is not slot
    del capsule
    assert device_slots.take("m", "", device_inputs())[0] is slot
    assert slot.memory.waits == 1


def test_results_outlive_the_client(device_slots: Slots) -> None:
    slot, answer = device_answer(device_slots)
    slot.registered = True
    assert device_slots.close() == [slot]
    np.testing.assert_array_equal(np.asarray(answer.outputs["item_ids"]), RESULTS["item_ids"])


def test_a_ranking_comes_in_the_message(device_slots: Slots) -> None:
    for _ in range(2):
        slot, request, shapes = device_slots.take("m_rank", "", device_inputs())
        ranking = {"scores": RESULTS["scores"], "known": np.ones((2, 3), np.int32)}
        answer = device_slots.answer(slot, request, message(ranking), shapes, "server")
        assert answer is not None
        np.testing.assert_array_equal(answer.outputs["scores"], RESULTS["scores"])


def test_device_memory_is_bounded(device_slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_DEVICE_BYTES", 2 * module.DEVICE_SLOT_BYTES)
    kept = [device_answer(device_slots)[1] for _ in range(2)]
    with pytest.raises(InvalidValue, match=r"2,097,152 bytes more than the 4,194,304 on cuda:0 .* copy the results"):
        device_slots.take("m", "", device_inputs())
    del kept[0]
    assert device_answer(device_slots)[1] is not None


def test_a_retired_device_slot_is_not_used_again(device_slots: Slots) -> None:
    device_answer(device_slots)
    slot, request, shapes = device_slots.take("m", "", device_inputs())
    wrong = message({**RESULTS, "scores": np.zeros((2, 4), np.float32)}, tuple(PLACES))
    with pytest.raises(ServerError, match=r"malformed answer: 'scores' of shape \[2, 4\]") as failure:
        device_slots.answer(slot, request, wrong, shapes, "server")
    device_slots.retire(slot, shapes)  # as client/_grpc.py does, before the frames of the failure are gone
    del failure
    assert device_slots.take("m", "", device_inputs())[0] is not slot


def test_a_message_without_the_outputs_contents(device_slots: Slots) -> None:
    device_answer(device_slots)
    slot, request, shapes = device_slots.take("m", "", device_inputs())
    response = message(RESULTS, tuple(PLACES))
    del response.raw_output_contents[3:]
    with pytest.raises(ServerError, match="malformed answer"):
        device_slots.answer(slot, request, response, shapes, "server")


@pytest.mark.parametrize("shell", SHELLS.values())
@pytest.mark.parametrize("other", [{"hedge": 0.1}, {"transport": object()}])
def test_what_it_does_not_go_with(shell: Any, other: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="shared_memory: goes with neither hedge= nor transport="):
        shell("a:1", shared_memory=True, **other)
