"""The models of the mesh, cut out of the unified artifact: the same tower, reranker and value model, tensor for tensor.

    REPOSITORY/tower, REPOSITORY/scoring                    what the orchestrator calls
    REPOSITORY/search, REPOSITORY/retrieval (ensemble)      added for the Merlin-style server

The first two are TorchScript behind the same model.py as the unified artifact.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from google.protobuf import text_format
from mesh_services.networks import Scoring, Tower
from tritonclient.grpc import model_config_pb2

from builder.export.config import MAX_BATCH
from builder.export.manifest import CODE_FILE, LIBRARY_FILE, MODEL_FILE
from client.schema import Schema

TYPES = {"INT64": "TYPE_INT64", "INT32": "TYPE_INT32", "FP32": "TYPE_FP32"}
Tensors = list[tuple[str, str, list[int]]]  # name, type, dims


def write_models(artifact: Path, schema: Schema, repository: Path) -> None:
    """Write `tower` and `scoring` from the unified artifact, a version directory. Vectors of tasks and rules of
    diversity are left out: no workload has them."""
    network: Any = torch.jit.load(str(artifact / MODEL_FILE)).eval()
    features = [(f.name, "INT64" if f.kind == "category" else "FP32", [1]) for f in schema.user_features]
    history: Tensors = [("history", "INT64", [-1])] if schema.history_length else []
    dims = network.search.vectors.size(1)
    tower = torch.jit.script(Tower(network).eval())
    arguments = ", ".join(f"{name}: Tensor" for name, _, _ in features + history)
    listed = "history" if history else f"{features[0][0]} * 0 - 1"
    tower.define(
        f"def forward(self, {arguments}):\n"
        f"    _features: List[Tensor] = [{', '.join(name for name, _, _ in features)}]\n"
        f"    return (self.tower(_features, {listed}),)\n"
    )
    _write(repository, "tower", tower, [*features, *history], [("query", "FP32", [dims])], artifact)
    tasks, results = len(schema.tasks), schema.max_results
    _write(
        repository,
        "scoring",
        torch.jit.script(Scoring(network).eval()),
        [
            ("query", "FP32", [dims]),
            ("history", "INT64", [-1]),
            ("positions", "INT32", [-1]),
            ("retrieved", "FP32", [-1]),
            ("task_weights", "FP32", [tasks]),
        ],
        [
            ("item_ids", "INT64", [results]),
            ("scores", "FP32", [results]),
            ("task_scores", "FP32", [results, tasks]),
            ("count", "INT32", [1]),
        ],
        artifact,
    )


def write_ensemble(repository: Path, schema: Schema, settings: Path, candidates: int, threads: int) -> None:
    """Add the Merlin-style server's models: `search`, Faiss and filters in the Python backend, and `retrieval`, an
    ensemble of tower, search and scoring. `settings`: what _tuning.py wrote; `candidates`: of a request that asks for
    none; `threads`: of searches side by side."""
    dims = schema_dims(repository)
    tasks, results = len(schema.tasks), schema.max_results
    search = config("search", "python", [
        ("query", "FP32", [dims]), ("filter", "INT64", [-1]), ("exclude", "INT64", [-1]), ("search", "INT32", [2]),
    ], [("positions", "INT32", [-1]), ("retrieved", "FP32", [-1])])  # fmt: skip
    for name, value in {
        "settings": str(settings),
        "candidates": str(candidates),
        "threads": str(threads),
        "code": str(Path(__file__).parents[1]),
    }.items():
        search.parameters[name].string_value = value
    save(repository, search)
    (repository / "search" / "1").mkdir(exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("search_model.py"), repository / "search" / "1" / CODE_FILE)
    users: Tensors = [(f.name, "INT64" if f.kind == "category" else "FP32", [1]) for f in schema.user_features]
    users += [("history", "INT64", [-1])] if schema.history_length else []
    asked: Tensors = [
        *users,
        ("filter", "INT64", [-1]),
        ("exclude", "INT64", [-1]),
        ("task_weights", "FP32", [tasks]),
        ("search", "INT32", [2]),
    ]
    answered: Tensors = [
        ("item_ids", "INT64", [results]),
        ("scores", "FP32", [results]),
        ("task_scores", "FP32", [results, tasks]),
        ("count", "INT32", [1]),
    ]
    ensemble = config("retrieval", "", asked, answered)
    ensemble.platform = "ensemble"
    ensemble.ClearField("dynamic_batching")
    ensemble.ClearField("instance_group")
    steps = {
        "tower": ([name for name, _, _ in users], ["query"]),
        "search": (["query", "filter", "exclude", "search"], ["positions", "retrieved"]),
        "scoring": (
            ["query", "history", "positions", "retrieved", "task_weights"],
            [name for name, _, _ in answered],
        ),
    }
    for model, (inputs, outputs) in steps.items():
        step = ensemble.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        for name in inputs:
            # Without histories the scoring model still wants one: what is excluded is as good as any, it has no graph.
            step.input_map[name] = "exclude" if name == "history" and not schema.history_length else name
        for name in outputs:
            step.output_map[name] = name
    save(repository, ensemble)
    (repository / "retrieval" / "1").mkdir(exist_ok=True)


def schema_dims(repository: Path) -> int:
    tower = text_format.Parse((repository / "tower" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    return int(tower.output[0].dims[0])


def set_instances(repository: Path, model: str, count: int) -> None:
    """How many instances of a model the server starts."""
    path = repository / model / "config.pbtxt"
    found = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    found.instance_group[0].count = count
    path.write_text(text_format.MessageToString(found, as_utf8=True))


def config(name: str, backend: str, inputs: Tensors, outputs: Tensors) -> Any:
    """As builder/export/config.py has it: batches form from requests that wait anyway, one torch thread."""
    found = model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=MAX_BATCH)
    for tensors, add in ((inputs, found.input.add), (outputs, found.output.add)):
        for tensor, kind, dims in tensors:
            add(name=tensor, data_type=model_config_pb2.DataType.Value(TYPES[kind]), dims=dims)
    found.dynamic_batching.SetInParent()
    found.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    found.parameters["INTRA_OP_THREAD_COUNT"].string_value = "1"
    return found


def save(repository: Path, found: Any) -> None:
    (repository / found.name).mkdir(parents=True, exist_ok=True)
    (repository / found.name / "config.pbtxt").write_text(text_format.MessageToString(found, as_utf8=True))


def _write(
    repository: Path, name: str, network: torch.jit.ScriptModule, inputs: Tensors, outputs: Tensors, artifact: Path
) -> None:
    save(repository, config(name, "python", inputs, outputs))
    version = repository / name / "1"
    version.mkdir(exist_ok=True)
    network.save(str(version / MODEL_FILE))
    for file in (CODE_FILE, LIBRARY_FILE):
        shutil.copyfile(artifact / file, version / file)
