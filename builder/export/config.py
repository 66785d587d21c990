"""config.pbtxt: a network's inputs, outputs and schema in Triton's model configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from builder.errors import BuilderError
from builder.export.formats import PLAIN_BATCH, PLAIN_FILE, PLAN_FILE
from builder.export.manifest import MODEL_FILE
from builder.network.pipeline import OUTPUT_NAMES, input_names
from builder.network.ranking import RANKING_OUTPUTS, ranking_names
from client.contract import Contract
from client.schema import Schema

MAX_BATCH = 64  # requests that the server may put into one call of the network
WARMUP_LENGTH = 8  # of inputs of any length


@dataclass(frozen=True)
class Configuration:
    """One way to serve a version. `file`: what of it the backend loads. `kind`: Triton's name of what computes it."""

    backend: str
    file: str
    kind: str

    @property
    def needs_cuda(self) -> bool:
        """Whether it runs our operators on a GPU, for which their library must have been compiled."""
        return self.file == MODEL_FILE and self.kind == "KIND_GPU"


CONFIGURATIONS = {
    "python": Configuration("python", MODEL_FILE, "KIND_CPU"),
    "pytorch": Configuration("pytorch", MODEL_FILE, "KIND_CPU"),
    "python-gpu": Configuration("python", MODEL_FILE, "KIND_GPU"),
    "pytorch-gpu": Configuration("pytorch", MODEL_FILE, "KIND_GPU"),
    "onnxruntime": Configuration("onnxruntime", PLAIN_FILE, "KIND_AUTO"),
    "tensorrt": Configuration("tensorrt", PLAN_FILE, "KIND_GPU"),
}
"""By what a server calls them (`--model-config-name`). A version has those whose file it has, and whose operators."""

_INPUTS = {
    "query": ("TYPE_FP32", None),
    "history": ("TYPE_INT64", -1),
    "filter": ("TYPE_INT64", -1),
    "exclude": ("TYPE_INT64", -1),
    "task_weights": ("TYPE_FP32", None),
    "search": ("TYPE_INT32", 2),
    "items": ("TYPE_INT64", -1),
}


def model_config(
    schema: Schema,
    contract: Contract,
    *,
    model: str,
    configuration: str,
    threads: int,
    instances: int,
    snapshot: str,
    ranks: str | None = None,
) -> str:
    """Return the text of a configuration, one of `CONFIGURATIONS`. `contract`: what clients are told beside the schema.

    `instances`: how many requests, or batches of them, are computed at once, on CPUs; `threads`: torch threads of each.
    Both at least 1. `snapshot`: what is the same for all models of a snapshot. `ranks`: the retrieval model, in the
    configuration of its ranking model.
    """
    found = CONFIGURATIONS[configuration]
    backend = found.backend
    batch = MAX_BATCH if found.file == MODEL_FILE else PLAIN_BATCH
    config = model_config_pb2.ModelConfig(name=model, backend=backend, max_batch_size=batch)
    if backend == "onnxruntime":
        config.default_model_filename = found.file
    for name in input_names(schema) if ranks is None else ranking_names(schema):
        data_type, dims = _input_type(schema, name)
        config.input.add(name=name, data_type=model_config_pb2.DataType.Value(data_type), dims=[dims])
    tasks, results = len(schema.tasks), schema.max_results if ranks is None else -1
    shapes = {
        "item_ids": ("TYPE_INT64", [results]),
        "scores": ("TYPE_FP32", [results]),
        "task_scores": ("TYPE_FP32", [results, tasks]),
        "count": ("TYPE_INT32", [1]),
        "status": ("TYPE_INT32", [1]),
        "stats": ("TYPE_INT32", [4]),
        "known": ("TYPE_INT32", [-1]),
    }
    for name in OUTPUT_NAMES if ranks is None else RANKING_OUTPUTS:
        data_type, shape = shapes[name]
        config.output.add(name=name, data_type=model_config_pb2.DataType.Value(data_type), dims=shape)
    # Batches form from requests that are waiting anyway; a delay would be paid in full by a lone client. No limit of
    # the queue and no priorities: with them the batcher overlooks a free instance for up to 0.5 s (docs/serving.md).
    config.dynamic_batching.SetInParent()
    # On each GPU one: it computes a batch with all its processors, and a second one would hold a second index.
    count = 1 if found.needs_cuda else instances
    config.instance_group.add(count=count, kind=model_config_pb2.ModelInstanceGroup.Kind.Value(found.kind))
    for parameter, value in contract.parameters().items():
        config.parameters[parameter].string_value = value
    config.parameters["schema"].string_value = schema.to_json()
    config.parameters["fingerprint"].string_value = str(schema.fingerprint)
    config.parameters["snapshot"].string_value = snapshot
    if ranks is not None:
        config.parameters["ranks"].string_value = ranks
    if backend == "onnxruntime":
        config.parameters["intra_op_thread_count"].string_value = str(threads)
    elif backend != "tensorrt":
        config.parameters["INTRA_OP_THREAD_COUNT"].string_value = str(threads)
    if backend == "pytorch":
        config.parameters["INFERENCE_MODE"].string_value = "true"
        config.parameters["DISABLE_OPTIMIZED_EXECUTION"].string_value = "true"  # see serving/triton_model.py
        config.parameters["ENABLE_WEIGHT_SHARING"].string_value = "true"
        # What serving/triton_model.py does by itself: requests that ask for nothing special, before the first user's.
        warmups = {"neutral": 1, "largest": batch} if found.needs_cuda else {"neutral": 1}
        for name, rows in warmups.items():
            warmup = config.model_warmup.add(name=name, batch_size=rows)
            for tensor in config.input:
                given = warmup.inputs[tensor.name]
                given.data_type, given.zero_data = tensor.data_type, True
                given.dims.extend(WARMUP_LENGTH if size < 0 else size for size in tensor.dims)
    text: str = text_format.MessageToString(config, as_utf8=True)
    return text


def _input_type(schema: Schema, name: str) -> tuple[str, int]:
    if name in _INPUTS:
        data_type, dims = _INPUTS[name]
        if dims is None:
            dims = schema.query_dims if name == "query" else len(schema.tasks)
        return data_type, dims
    kind = next(feature.kind for feature in schema.user_features if feature.name == name)
    return ("TYPE_INT64", 1) if kind == "category" else ("TYPE_FP32", 1)


def configured_processes(path: Path) -> tuple[int, int]:
    """Threads and instances that a config.pbtxt written by `model_config` asks for; 1 of what it does not mention.

    Raises `BuilderError` if it cannot be read.
    """
    config = read_config(path)
    try:
        threads = int(config.parameters["INTRA_OP_THREAD_COUNT"].string_value or 1)
    except ValueError as error:
        raise _unreadable(path, error) from error
    return threads, sum(group.count for group in config.instance_group) or 1


def read_config(path: Path) -> Any:
    """A model configuration, as a message. Raises `BuilderError` if it cannot be read."""
    config = model_config_pb2.ModelConfig()
    try:
        return text_format.Parse(path.read_text(), config)
    except (OSError, ValueError, text_format.ParseError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BuilderError:
    return BuilderError(f"cannot be read: {error}", where=str(path), remedy="Export the model again.")
