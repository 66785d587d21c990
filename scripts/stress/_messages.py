"""Hostile gRPC messages: a good request and what can be wrong with it, and the outcomes that each may have.

An outcome is the name of a gRPC status, or for an answer "row N", the largest status of its rows (0: results), or
"answered" where it has none.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from _conditions import random_condition, values_of
from _stress import Catalogue
from tritonclient.grpc import service_pb2

from client import compile_filter
from client._messages import infer_request
from client.schema import Schema, Status

Message = Any  # of service_pb2, or bytes
INVALID, INTERNAL, MISSING = "INVALID_ARGUMENT", "INTERNAL", "NOT_FOUND"
REFUSED = frozenset({INVALID})
TYPES = ["INT64", "INT32", "FP32", "FP64", "BOOL", "BYTES", "UINT8", "BF16", "FP16", "", "int64", "FP33", "\u00e9" * 50]
WORDS = [0, 1, -1, -2, 7, 2**31 - 1, -(2**31), 2**62, 2**63 - 1, -(2**63)]
SIZES = [0, -1, -(2**31), -(2**63), 2**31, 2**40, 2**61, 2**62, 2**63 - 1]
FLOATS = np.array([np.nan, -np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0], np.float32)


@dataclass(frozen=True)
class Attack:
    """`make` draws one message; `method` of the service takes it; `outcomes`: what may come of it."""

    make: Callable[[Maker], Message]
    outcomes: frozenset[str]
    method: str = "ModelInfer"
    weight: int = 10


class Maker:
    """Draws messages to an artifact of `catalogue` with `schema`; `most`: rows of a batch at most."""

    def __init__(self, seed: list[int], catalogue: Catalogue, schema: Schema, most: int) -> None:
        self.rng, self.python = np.random.default_rng(seed), random.Random(str(seed))
        self.queries, self.schema, self.most = catalogue.queries, schema, most
        self.dims = int(catalogue.queries.shape[1])
        self.values, self.ids = values_of(catalogue.items), catalogue.ids

    def tensors(self, rows: int = 1) -> dict[str, np.ndarray]:
        return {
            "query": self.queries[self.rng.integers(len(self.queries), size=rows)],
            "filter": np.zeros((rows, 16), np.int64),
            "exclude": np.full((rows, 8), -1, np.int64),
            "task_weights": np.full((rows, len(self.schema.tasks)), np.nan, np.float32),
            "search": np.zeros((rows, 2), np.int32),
        }

    def good(self, rows: int = 1) -> Message:
        return infer_request("retrieval", "", self.tensors(rows))

    def pick(self, values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def some_input(self, message: Message) -> int:
        return int(self.rng.integers(len(message.inputs)))

    def with_tensor(self, name: str, array: np.ndarray) -> Message:
        return infer_request("retrieval", "", {**self.tensors(len(array)), name: array})

    def word(self) -> int:
        return self.pick(WORDS) if self.rng.random() < 0.5 else int(self.rng.integers(-(2**63), 2**63 - 1))

    def words(self, count: int) -> np.ndarray:
        return np.array([self.word() for _ in range(count)], np.int64)


# Shapes and types -----------------------------------------------------------------------------------------------------


def wrong_type(maker: Maker) -> Message:
    message = maker.good()
    tensor = message.inputs[maker.some_input(message)]
    tensor.datatype = maker.pick([kind for kind in TYPES if kind != tensor.datatype])
    return message


def wrong_rank(maker: Maker) -> Message:
    message = maker.good()
    shape = message.inputs[maker.some_input(message)].shape
    if maker.rng.random() < 0.5:
        shape.extend([1] * maker.pick([1, 2, 1000]))
    else:
        del shape[: maker.pick([1, 2])]
    return message


def wrong_size(maker: Maker) -> Message:
    """A tensor of a fixed length that has another one, its bytes as many as it says."""
    name = maker.pick(["query", "task_weights", "search"])
    array = maker.tensors()[name]
    length = maker.pick([n for n in (1, 2, 3, 1000) if n != array.shape[1]])
    return maker.with_tensor(name, np.zeros((1, length), array.dtype))


def absurd_sizes(maker: Maker) -> Message:
    message = maker.good()
    shape = message.inputs[maker.some_input(message)].shape
    shape[int(maker.rng.integers(2))] = maker.pick(SIZES)
    return message


def all_rows_absurd(maker: Maker) -> Message:
    """Every input claims the same absurd number of rows."""
    message, rows = maker.good(), maker.pick(SIZES)
    for tensor in message.inputs:
        tensor.shape[0] = rows
    return message


def empty_lists(maker: Maker) -> Message:
    return maker.with_tensor(maker.pick(["filter", "exclude"]), np.zeros((1, 0), np.int64))


def filter_of_one_word(maker: Maker) -> Message:
    return maker.with_tensor("filter", np.zeros((1, 1), np.int64))


def too_many_rows(maker: Maker) -> Message:
    return maker.good(maker.most + maker.pick([1, 2, 63, 1000]))


def rows_disagree(maker: Maker) -> Message:
    tensors = maker.tensors(4)
    name = maker.pick(list(tensors))
    tensors[name] = tensors[name][: maker.pick([1, 2, 3])]
    return infer_request("retrieval", "", tensors)


def strings(maker: Maker) -> Message:
    message = maker.good()
    at = maker.some_input(message)
    message.inputs[at].datatype = "BYTES"
    del message.inputs[at].shape[:]
    message.inputs[at].shape.extend([1, 2])
    lengths = maker.pick([b"\x02\0\0\0ab\x01\0\0\0c", b"\xff\xff\xff\xffab", b"\x02\0\0", b"\0\0\0\0\0\0\0\0"])
    message.raw_input_contents[at] = lengths
    return message


# Which inputs, and their bytes ----------------------------------------------------------------------------------------


def missing_input(maker: Maker) -> Message:
    message = maker.good()
    at = maker.some_input(message)
    del message.inputs[at], message.raw_input_contents[at]
    return message


def extra_input(maker: Maker) -> Message:
    message = maker.good()
    for _ in range(maker.pick([1, 1, 300])):
        message.inputs.add(name=maker.pick(["quer", "", "item_ids", "x" * 20_000]), datatype="INT64", shape=[1, 1])
        message.raw_input_contents.append(b"\0" * 8)
    return message


def duplicate_input(maker: Maker) -> Message:
    message = maker.good()
    at = maker.some_input(message)
    message.inputs.append(message.inputs[at])
    message.raw_input_contents.append(message.raw_input_contents[at])
    return message


def bytes_off(maker: Maker) -> Message:
    message = maker.good()
    at = maker.some_input(message)
    content = message.raw_input_contents[at]
    cut = int(maker.rng.integers(len(content)))
    longer = content + b"\0" * maker.pick([1, 7, 8, 4096])
    message.raw_input_contents[at] = content[:cut] if maker.rng.random() < 0.5 else longer
    return message


def contents_missing(maker: Maker) -> Message:
    message = maker.good()
    if maker.rng.random() < 0.5:
        del message.raw_input_contents[maker.some_input(message) :]
    else:
        message.raw_input_contents.extend([b""] * maker.pick([1, 2, 500]))
    return message


def typed_contents(maker: Maker) -> Message:
    """Bytes and typed contents at once, or typed contents of another type or number."""
    message = maker.good()
    at = maker.some_input(message)
    field = maker.pick(["int64_contents", "fp32_contents", "int_contents", "bool_contents", "bytes_contents"])
    value: Any = b"abc" if field == "bytes_contents" else 1
    getattr(message.inputs[at].contents, field).extend([value] * maker.pick([1, 8, 3, 5000]))
    if maker.rng.random() < 0.5:
        del message.raw_input_contents[:]
    return message


def unknown_outputs(maker: Maker) -> Message:
    message = maker.good()
    for number in range(maker.pick([1, 2, 2000])):
        message.outputs.add(name=maker.pick(["", "item_id", f"o{number}", "query"]))
    return message


def classified(maker: Maker) -> Message:
    """The classification extension on outputs that are none."""
    message = maker.good()
    output = message.outputs.add(name=maker.pick(["scores", "item_ids", "count"]))
    output.parameters["classification"].int64_param = maker.pick([-1, 0, 1, 2**31, 2**62])
    return message


# Values ---------------------------------------------------------------------------------------------------------------


def bad_query(maker: Maker) -> Message:
    query = maker.tensors()["query"].copy()
    query[0, maker.rng.integers(query.shape[1])] = maker.pick(FLOATS[:4])
    return maker.with_tensor("query", query)


def any_query(maker: Maker) -> Message:
    bits = maker.rng.integers(0, 2**32, (1, maker.dims), dtype=np.uint32)
    return maker.with_tensor("query", bits.view(np.float32))


def any_exclusions(maker: Maker) -> Message:
    return maker.with_tensor("exclude", maker.words(int(maker.rng.integers(1, 70)))[None])


def any_search(maker: Maker) -> Message:
    values = [0, 1, -1, 2**31 - 1, -(2**31), maker.schema.clusters + 1, maker.schema.max_candidates + 1]
    return maker.with_tensor("search", np.array([[maker.pick(values), maker.pick(values)]], np.int32))


def any_weights(maker: Maker) -> Message:
    tasks = len(maker.schema.tasks)
    return maker.with_tensor("task_weights", maker.rng.choice(FLOATS, (1, tasks)))


def another_schema(maker: Maker) -> Message:
    program = maker.words(16)
    program[:3] = maker.schema.fingerprint ^ (1 << int(maker.rng.integers(63))), 1, 7
    return maker.with_tensor("filter", program[None])


def any_program(maker: Maker) -> Message:
    """Random instructions of plausible opcodes, features and counts, for the right schema."""
    rng, length = maker.rng, int(maker.rng.integers(2, 70))
    program = np.zeros(length, np.int64)
    heads = rng.integers(0, 11, length) | rng.integers(0, 12, length) << 8 | rng.integers(0, 4, length) << 32
    program[:] = np.where(rng.random(length) < 0.7, heads, maker.words(length))
    program[0] = maker.schema.fingerprint
    program[1] = length - 2 if rng.random() < 0.8 else maker.word()
    return maker.with_tensor("filter", program[None])


def damaged_program(maker: Maker) -> Message:
    """A program that the client compiled, with some words changed or swapped, or none."""
    condition = random_condition(maker.python, maker.values, int(maker.rng.integers(5)))
    program = compile_filter(condition, maker.schema).copy()
    for _ in range(maker.pick([0, 1, 1, 2, 5])):
        at = int(maker.rng.integers(2, len(program))) if len(program) > 2 else 1
        program[at] = maker.pick([maker.word(), program[at] ^ (1 << int(maker.rng.integers(63))), maker.pick(program)])
    return maker.with_tensor("filter", program[None])


def any_words(maker: Maker) -> Message:
    return maker.with_tensor("filter", maker.words(int(maker.rng.integers(2, 70)))[None])


def all_at_once(maker: Maker) -> Message:
    rows = int(maker.rng.integers(1, 9))
    tensors = {
        "query": maker.rng.integers(0, 2**32, (rows, maker.dims), dtype=np.uint32).view(np.float32),
        "filter": maker.words(rows * 24).reshape(rows, 24),
        "exclude": maker.words(rows * 24).reshape(rows, 24),
        "task_weights": maker.rng.choice(FLOATS, (rows, len(maker.schema.tasks))),
        "search": maker.rng.integers(-(2**31), 2**31, (rows, 2)).astype(np.int32),
    }
    return infer_request("retrieval", "", tensors)


def huge_list(maker: Maker) -> Message:
    """Half a million ids, or as many filter words: megabytes of a request."""
    name, fill = maker.pick([("filter", 0), ("exclude", -1), ("exclude", 5)])
    return maker.with_tensor(name, np.full((1, 1 << 19), fill, np.int64))


# Bytes that are no message --------------------------------------------------------------------------------------------


def truncated(maker: Maker) -> bytes:
    message: bytes = maker.good().SerializeToString()
    return message[: int(maker.rng.integers(1, len(message)))]


def flipped(maker: Maker) -> bytes:
    message = bytearray(maker.good().SerializeToString())
    for _ in range(maker.pick([1, 2, 8])):
        message[maker.rng.integers(len(message))] ^= 1 << int(maker.rng.integers(8))
    return bytes(message)


def garbage(maker: Maker) -> bytes:
    return maker.rng.bytes(maker.pick([1, 16, 300, 5000]))


# Names, parameters, shared memory -------------------------------------------------------------------------------------


def wrong_model(maker: Maker) -> Message:
    message = maker.good()
    message.model_name = maker.pick(["", "retrieva", "../retrieval", "retrieval/1", "\0", "x" * 100_000, "%s%n"])
    return message


def wrong_version(maker: Maker) -> Message:
    message = maker.good()
    message.model_version = maker.pick(["999", "-1", "0", "abc", "1.5", "9" * 30, " ", "2e400", "latest"])
    return message


def odd_parameters(maker: Maker) -> Message:
    """Those that the server knows, with odd values and types, and others."""
    message = maker.good()
    message.id = maker.pick(["", "a", "\U0001f3ac", "i" * 100_000])
    names = ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output",
             "triton_enable_empty_final_response", "nonsense"]  # fmt: skip
    for name in maker.rng.choice(names, 2, replace=False):
        field, value = maker.pick(
            [("int64_param", maker.word()), ("string_param", "\u00e9" * 10), ("bool_param", True)]
        )
        setattr(message.parameters[name], field, value)
    return message


def unknown_region(maker: Maker) -> Message:
    """An input or an output in shared memory that nobody registered."""
    message = maker.good()
    tensor = message.inputs[maker.some_input(message)]
    if maker.rng.random() < 0.3:
        tensor = message.outputs.add(name="scores")
    else:
        del message.raw_input_contents[:]
    region = maker.pick(["none", "", "/dev/shm/x", "triton_python_backend_shm_region_1"])
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = maker.pick([8, 0, -1, 2**62])
    tensor.parameters["shared_memory_offset"].int64_param = maker.pick([0, -1, 2**62])
    return message


def register_memory(maker: Maker) -> Message:
    key = maker.pick(["/none", "", "none", "/../etc/passwd", "/\0", "/" + "k" * 300])
    size, offset = maker.pick([0, 1, 2**40, 2**64 - 1]), maker.pick([0, 1, 2**63])
    return service_pb2.SystemSharedMemoryRegisterRequest(name="region", key=key, offset=offset, byte_size=size)


def register_device(maker: Maker) -> Message:
    return service_pb2.CudaSharedMemoryRegisterRequest(
        name="region", raw_handle=maker.rng.bytes(maker.pick([0, 1, 64])), device_id=maker.pick([-1, 0, 2**40]),
        byte_size=maker.pick([0, 1, 2**40]),
    )  # fmt: skip


def load_model(maker: Maker) -> Message:
    return service_pb2.RepositoryModelLoadRequest(model_name=maker.pick(["retrieval", "nothing", "../x"]))


def unload_model(maker: Maker) -> Message:
    return service_pb2.RepositoryModelUnloadRequest(model_name=maker.pick(["retrieval", "nothing"]))


def unknown_config(maker: Maker) -> Message:
    return service_pb2.ModelConfigRequest(name=maker.pick(["nothing", ""]), version=maker.pick(["", "x", "999"]))


def _rows(*statuses: Status) -> frozenset[str]:
    return frozenset(f"row {int(status)}" for status in statuses)


OK, EVERY = Status.OK, _rows(*Status)
MALFORMED, OTHER = Status.FILTER_MALFORMED, Status.FILTER_FINGERPRINT
RESULTS = _rows(OK)
ECHOED = frozenset({"RESOURCE_EXHAUSTED"})  # a name of many kB repeated by the server, which gRPC refuses
KEY = frozenset({"UNAVAILABLE"})  # what the server says where a key is wanted
ANY = frozenset({INVALID, INTERNAL, MISSING, "UNIMPLEMENTED", "answered"}) | EVERY | ECHOED

ATTACKS: dict[str, Attack] = {
    "wrong type": Attack(wrong_type, REFUSED),
    "wrong rank": Attack(wrong_rank, REFUSED),
    "wrong size": Attack(wrong_size, REFUSED),
    "absurd sizes": Attack(absurd_sizes, REFUSED | RESULTS),
    "all rows absurd": Attack(all_rows_absurd, REFUSED | {INTERNAL}),
    "empty lists": Attack(empty_lists, RESULTS | _rows(Status.FILTER_MALFORMED)),
    "filter of one word": Attack(filter_of_one_word, _rows(Status.FILTER_MALFORMED)),
    "too many rows": Attack(too_many_rows, REFUSED, weight=3),
    "rows disagree": Attack(rows_disagree, REFUSED),
    "strings": Attack(strings, REFUSED),
    "missing input": Attack(missing_input, REFUSED),
    "extra input": Attack(extra_input, REFUSED | ECHOED),
    "duplicate input": Attack(duplicate_input, REFUSED),
    "bytes too few or many": Attack(bytes_off, REFUSED),
    "contents too few or many": Attack(contents_missing, REFUSED | RESULTS),
    "typed contents": Attack(typed_contents, REFUSED),
    "unknown outputs": Attack(unknown_outputs, REFUSED),
    "classification": Attack(classified, REFUSED | {"answered"}),
    "NaN or infinite query": Attack(bad_query, _rows(Status.QUERY)),
    "any query": Attack(any_query, _rows(OK, Status.QUERY)),
    "any exclusions": Attack(any_exclusions, _rows(OK, Status.EXCLUDE)),
    "any search": Attack(any_search, _rows(OK, Status.SEARCH)),
    "any weights": Attack(any_weights, _rows(OK, Status.TASK_WEIGHTS)),
    "another schema's filter": Attack(another_schema, _rows(OTHER)),
    "any program": Attack(any_program, _rows(OK, MALFORMED)),
    "damaged program": Attack(damaged_program, _rows(OK, MALFORMED, OTHER), weight=60),
    "any filter words": Attack(any_words, _rows(OK, MALFORMED, OTHER)),
    "all at once": Attack(all_at_once, EVERY, weight=30),
    "huge list": Attack(huge_list, RESULTS, weight=1),
    "truncated message": Attack(truncated, frozenset({INVALID, INTERNAL, MISSING}), weight=30),
    "flipped bits": Attack(flipped, ANY, weight=60),
    "garbage message": Attack(garbage, frozenset({INVALID, INTERNAL, MISSING})),
    "wrong model": Attack(wrong_model, frozenset({MISSING, INVALID}) | ECHOED),
    "wrong version": Attack(wrong_version, frozenset({MISSING, INVALID}) | RESULTS),
    "odd parameters": Attack(odd_parameters, REFUSED | RESULTS),
    "unknown region": Attack(unknown_region, REFUSED | {MISSING}),
    "register memory": Attack(register_memory, KEY, "SystemSharedMemoryRegister"),
    "register device memory": Attack(register_device, KEY, "CudaSharedMemoryRegister"),
    "load a model": Attack(load_model, KEY, "RepositoryModelLoad"),
    "unload a model": Attack(unload_model, KEY, "RepositoryModelUnload"),
    "unknown configuration": Attack(unknown_config, frozenset({MISSING, INVALID}), "ModelConfig"),
    "unknown method": Attack(garbage, frozenset({"UNIMPLEMENTED"}), "ModelInvent"),
}
