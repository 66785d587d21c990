"""The slots of shared memory without a server; tests/end_to_end/test_client.py has them with one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from client import ClientClosed, InvalidValue, SchemaMismatch, ServerError
from client import _shared_memory as module
from client._shared_memory import ALIGNMENT, FOLDER, SLOT_BYTES, Slots
from tests.client.shells import SHELLS

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
    slot.memory[128:144] = (OUTPUT + 1).tobytes()  # as a server would
    response = service_pb2.ModelInferResponse(model_version="2")
    response.outputs.add(name="x", datatype="FP32", shape=OUTPUT.shape)
    answer = slots.answer(slot, request, response, shapes, "server")
    slot.memory[128:144] = bytes(16)  # what was returned is a copy
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
    assert len(slot.memory) == 2 * SLOT_BYTES
    assert slot.register_request().byte_size == 2 * SLOT_BYTES


def test_a_retired_slot_is_not_used_again_and_later_forgotten(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    slot, _, _ = answered(slots)
    slot, _, shapes = slots.take("m", "", INPUTS)
    slots.retire(slot, shapes)
    other, request, _ = slots.take("m", "", INPUTS)
    assert other is not slot
    assert not request.outputs  # sizes are learnt anew
    assert slots.forgettable() == []
    monkeypatch.setattr(module, "RETIRED_FOR", -1.0)
    assert slots.forgettable() == [slot.name]
    assert not (FOLDER / slot.name).exists()
    assert slots.forgettable() == []


def test_closing_removes_every_file(slots: Slots) -> None:
    slot, _, _ = answered(slots)
    slot.registered = True
    slots.take("m", "", INPUTS)
    slots.retire(*slots.take("n", "", INPUTS)[::2])
    assert slots.close() == [slot.name]
    assert not list(FOLDER.glob(f"{slot.name.rpartition('-')[0]}-*"))
    with pytest.raises(ClientClosed):  # a call that races with it
        slots.take("m", "", INPUTS)


@pytest.mark.parametrize("shell", SHELLS.values())
@pytest.mark.parametrize("other", [{"hedge": 0.1}, {"transport": object()}])
def test_what_it_does_not_go_with(shell: Any, other: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="shared_memory: goes with neither hedge= nor transport="):
        shell("a:1", shared_memory=True, **other)
