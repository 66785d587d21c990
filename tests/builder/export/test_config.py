"""config.pbtxt: what the server reads says what the network takes and gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from builder.errors import BuilderError
from builder.export.config import MAX_BATCH, PLAIN_BATCH, configured_processes, model_config
from client.contract import Contract
from client.schema import Feature, Schema

WITH_TOWER = Schema(
    name="films",
    user_features=(Feature("user_id", "category", "integer"), Feature("age", "number")),
    item_features=(Feature("genres", "tags", "string", filter=True), Feature('quoted "ü"\n', "number")),
    tasks=("click", "buy"),
    history_length=50,
    query_dims=0,
    max_results=20,
    max_candidates=100,
    clusters=7,
)
CONTRACT = Contract(max_filter_words=500, items=1234)
WITHOUT_TOWER = Schema("v", (), (), ("score",), 0, 24, 100, 1024, 1)


def text(schema: Schema, configuration: str = "python", threads: int = 1, instances: int = 1) -> str:
    return model_config(
        schema, CONTRACT, model="retrieval", configuration=configuration, threads=threads, instances=instances,
        snapshot="5eed",
    )  # fmt: skip


def read(schema: Schema, configuration: str = "python", threads: int = 1, instances: int = 1) -> Any:
    config = model_config_pb2.ModelConfig()
    text_format.Parse(text(schema, configuration, threads, instances), config)
    return config


def tensors(found: Any) -> list[tuple[str, str, list[int]]]:
    return [(t.name, model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in found]


def test_inputs_and_outputs_follow_the_wire_contract() -> None:
    config = read(WITH_TOWER)
    assert (config.name, config.backend, config.max_batch_size) == ("retrieval", "python", MAX_BATCH)
    assert tensors(config.input) == [
        ("user_id", "TYPE_INT64", [1]),
        ("age", "TYPE_FP32", [1]),
        ("history", "TYPE_INT64", [-1]),
        ("filter", "TYPE_INT64", [-1]),
        ("exclude", "TYPE_INT64", [-1]),
        ("task_weights", "TYPE_FP32", [2]),
        ("search", "TYPE_INT32", [2]),
    ]
    assert tensors(config.output) == [
        ("item_ids", "TYPE_INT64", [20]),
        ("scores", "TYPE_FP32", [20]),
        ("task_scores", "TYPE_FP32", [20, 2]),
        ("count", "TYPE_INT32", [1]),
        ("status", "TYPE_INT32", [1]),
        ("stats", "TYPE_INT32", [4]),
    ]
    assert [name for name, _, _ in tensors(read(WITHOUT_TOWER).input)][:2] == ["query", "filter"]
    assert tensors(read(WITHOUT_TOWER).input)[0] == ("query", "TYPE_FP32", [24])


@pytest.mark.parametrize("schema", [WITH_TOWER, WITHOUT_TOWER])
@pytest.mark.parametrize("backend", ["python", "pytorch"])
def test_the_schema_travels_whole(schema: Schema, backend: str) -> None:
    config = read(schema, backend)
    assert config.backend == backend
    assert Schema.from_json(config.parameters["schema"].string_value) == schema
    assert int(config.parameters["fingerprint"].string_value) == schema.fingerprint
    assert Contract.read({name: value.string_value for name, value in config.parameters.items()}) == CONTRACT


def test_batches_form_without_a_delay_on_one_cpu_instance() -> None:
    config = read(WITHOUT_TOWER)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    ]


def test_threads_and_pytorch_parameters() -> None:
    assert read(WITHOUT_TOWER).parameters["INTRA_OP_THREAD_COUNT"].string_value == "1"
    assert read(WITHOUT_TOWER, "pytorch", 3).parameters["INTRA_OP_THREAD_COUNT"].string_value == "3"
    pytorch = read(WITHOUT_TOWER, "pytorch")
    assert pytorch.parameters["DISABLE_OPTIMIZED_EXECUTION"].string_value == "true"
    assert pytorch.parameters["INFERENCE_MODE"].string_value == "true"
    assert pytorch.parameters["ENABLE_WEIGHT_SHARING"].string_value == "true"


def test_pytorch_warms_up_with_every_input_and_no_requests_are_turned_away() -> None:
    config = read(WITH_TOWER, "pytorch")
    (warmup,) = config.model_warmup
    assert (warmup.name, warmup.batch_size, warmup.count) == ("neutral", 1, 0)
    given = {name: (tensor.data_type, list(tensor.dims), tensor.zero_data) for name, tensor in warmup.inputs.items()}
    assert given == {t.name: (t.data_type, [8 if n < 0 else n for n in t.dims], True) for t in config.input}
    assert not read(WITH_TOWER).model_warmup  # model.py does it
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert config.dynamic_batching.priority_levels == 0


@pytest.mark.parametrize("backend", ["python", "pytorch"])
def test_on_gpus_one_instance_and_the_rest_as_on_the_cpu(backend: str) -> None:
    config, on_cpu = read(WITH_TOWER, f"{backend}-gpu", 3, 5), read(WITH_TOWER, backend, 3, 5)
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_GPU)
    assert list(group.gpus) == []  # on each that there is
    sizes = [(warmup.name, warmup.batch_size) for warmup in config.model_warmup]
    assert sizes == ([("neutral", 1), ("largest", MAX_BATCH)] if backend == "pytorch" else [])
    for warmup in config.model_warmup:
        assert warmup.inputs == on_cpu.model_warmup[0].inputs
    for either in (config, on_cpu):
        either.ClearField("instance_group")
        either.ClearField("model_warmup")
    assert config == on_cpu


@pytest.mark.parametrize("backend", ["python", "pytorch"])
def test_instances_are_one_group_and_are_read_again(backend: str, tmp_path: Path) -> None:
    groups = read(WITHOUT_TOWER, backend, instances=5).instance_group
    assert [(group.count, group.kind) for group in groups] == [(5, model_config_pb2.ModelInstanceGroup.KIND_CPU)]
    path = tmp_path / "config.pbtxt"
    path.write_text(text(WITHOUT_TOWER, backend, threads=3, instances=5))
    assert configured_processes(path) == (3, 5)


def test_a_configuration_that_says_nothing_means_one(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text('backend: "python"\n')
    assert configured_processes(path) == (1, 1)
    path.write_text("instance_group [{ count: 2 }, { count: 1 }]\n")
    assert configured_processes(path) == (1, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"no configuration", "has no field named"),
        (b"\xff", "can't decode"),
        (b'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "many" } }', "invalid literal"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "config.pbtxt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuilderError, match=rf"/config.pbtxt: cannot be read: .*{reason}.*\n  Export the model again"):
        configured_processes(path)


@pytest.mark.parametrize(
    ("backend", "file", "kind"), [("onnxruntime", "plain.onnx", "KIND_AUTO"), ("tensorrt", "", "KIND_GPU")]
)
def test_plain_networks_are_served_in_smaller_batches(backend: str, file: str, kind: str) -> None:
    config, other = read(WITH_TOWER, backend, 3, 2), read(WITH_TOWER)
    assert (config.backend, config.max_batch_size) == (backend, PLAIN_BATCH)
    assert config.default_model_filename == file  # TensorRT's is model.plan by itself
    group = config.instance_group[0]
    assert (group.count, model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind)) == (2, kind)
    assert (tensors(config.input), tensors(config.output)) == (tensors(other.input), tensors(other.output))
    threads = config.parameters["intra_op_thread_count"].string_value if backend == "onnxruntime" else "3"
    assert threads == "3"
    assert "INTRA_OP_THREAD_COUNT" not in config.parameters
