"""The network whose operators are TensorRT plugins: run node by node, the plugins' kernels in the emulation, it
answers as the served network does; and the rest of it is what TensorRT reads."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from builder import nvcc
from builder.errors import BuilderError
from builder.export.artifact import export
from builder.export.formats import check_formats
from builder.export.manifest import verify
from builder.export.onnx import write_with_plugins
from builder.export.onnx_nodes import DOMAIN
from builder.export.plugin_nodes import PluginNode, register
from builder.export.plugins import Plugin
from builder.export.sources import read_source
from builder.export.tensorrt import LENGTHS, write_plan
from builder.export.torchscript import script
from builder.network.pipeline import OUTPUT_NAMES, Pipeline, input_names
from builder.network.ranking import RANKING_OUTPUTS, Ranking, ranking_names
from tests.builder.artifacts import configs, listing, write_config
from tests.builder.export.onnx_networks import CANDIDATES, IDS, Made, make, requests
from tests.builder.export.test_onnx import VARIANTS, same
from tests.kernels.cuda import plugin_calls

FREE = 999_983  # a dim of a request, as no index has it
pytestmark = pytest.mark.timeout(300)  # the first time, the plugins are compiled


def emulated(nodes: Sequence[PluginNode]) -> list[type[OpRun]]:
    """The plugins for `onnx.reference`: each is called with what its node is given, as TensorRT calls it."""

    def node_class(node: PluginNode) -> type[OpRun]:
        def run(self: OpRun, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
            assert attributes == {"plugin_namespace": DOMAIN, "aot": 1}
            outputs = plugin_calls.start(
                node.plugin, node.numbers, [torch.from_numpy(given.copy()) for given in inputs]
            )
            return tuple(output.numpy() for output in outputs)

        return type(node.name, (OpRun,), {"op_domain": DOMAIN, "_run": run})

    return [node_class(node) for node in nodes]


@dataclass(frozen=True)
class Written:
    made: Made
    network: Pipeline | Ranking
    path: Path
    nodes: list[PluginNode]


@pytest.fixture(scope="module", params=["query", "mean, mlp, groups", "mean, mlp, groups: ranking"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    variant, _, ranking = request.param.partition(": ")
    made = make(**VARIANTS[variant])
    network = Ranking(made.network).eval() if ranking else made.network
    path = tmp_path_factory.mktemp("plugins") / "model.onnx"
    return Written(made, network, path, write_with_plugins(network, made.schema, path, {}))


def test_it_computes_what_is_served(written: Written) -> None:
    made, is_ranking = written.made, isinstance(written.network, Ranking)
    model = onnx.load(written.path)
    names = ranking_names(made.schema) if is_ranking else input_names(made.schema)
    assert [value.name for value in model.graph.input] == list(names)
    evaluator = ReferenceEvaluator(model, new_ops=emulated(written.nodes))
    served = script(written.network, made.schema)
    for seed, (rows, history, exclude) in enumerate([(9, 3, 5), (1, 1, 1), (6, 9, 2)]):
        inputs = requests(made, rows, seed, history=history, exclude=exclude)
        given = np.random.default_rng(seed).permuted(np.tile([*IDS, -1, 99_999], (rows, 1)), axis=1)
        inputs = {name: {**inputs, "items": torch.from_numpy(given)}[name] for name in names}
        with np.errstate(all="ignore"), torch.inference_mode():  # some inputs are infinite
            got = evaluator.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            expected = served(**inputs)
        same(expected, got, RANKING_OUTPUTS if is_ranking else OUTPUT_NAMES, seed)


def types_of(model: onnx.ModelProto) -> dict[str, str]:
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return {name: helper.tensor_dtype_to_np_dtype(kind).name for name, kind in types.items()}


def test_nodes_and_definitions_agree(written: Written) -> None:
    """In names, in numbers of inputs and outputs, and in types."""
    model, nodes = onnx.load(written.path), written.nodes
    types = types_of(model)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    ours = [node for node in model.graph.node if node.domain == DOMAIN]
    assert [node.op_type for node in ours] == [node.name for node in nodes]
    for node, defined in zip(ours, nodes, strict=True):
        assert [types[name] for name in node.input] == defined.plugin.types(defined.numbers)
        assert [types[name] for name in node.output] == [kind for kind, _ in results_of(defined, 3)]
        for name, given in zip(defined.plugin.inputs, node.input, strict=False):
            if name in defined.plugin.weights:
                assert len(shapes[given]) == 1
                assert shapes[given][0] > 0


def results_of(node: PluginNode, size: int) -> list[tuple[str, tuple[int, ...]]]:
    return node.plugin.results({**dict.fromkeys(node.plugin.sizes, size), **node.numbers})


def test_tensorrt_reads_all_else(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every plugin cut out: what it gives becomes an input of the network, what it takes an output."""
    tensorrt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    model = onnx.load(written.path)
    candidates = FREE if isinstance(written.network, Ranking) else CANDIDATES
    sizes = {"batch": FREE, "candidates": candidates, "tasks": len(written.made.schema.tasks)}
    for value in cut_out(model, written.nodes, sizes):
        monkeypatch.setitem(LENGTHS, value.name, LENGTHS["items"])
    path = tmp_path / "cut.onnx"
    onnx.save(model, path)
    write_plan(path, tmp_path / "model.plan", tensorrt)


def cut_out(model: onnx.ModelProto, nodes: Sequence[PluginNode], sizes: dict[str, int]) -> list[onnx.ValueInfoProto]:
    """Returns the new inputs."""
    graph, types = model.graph, types_of(model)
    ours = [node for node in graph.node if node.domain == DOMAIN]
    others = [node for node in graph.node if node.domain != DOMAIN]
    asked = {name for node in others for name in node.input}
    computed = {name for node in others for name in node.output}
    inputs = []
    for node, defined in zip(ours, nodes, strict=True):
        results = defined.plugin.results({**dict.fromkeys(defined.plugin.sizes, 1), **sizes, **defined.numbers})
        for name, (kind, shape) in zip(node.output, results, strict=True):
            if name in asked:
                inputs.append(value_info(name, kind, [None if size == FREE else size for size in shape]))
    taken = [name for node in ours for name in node.input] + [value.name for value in graph.output]
    outputs = [value_info(name, types[name], None) for name in dict.fromkeys(taken) if name in computed]
    weights = [tensor for tensor in graph.initializer if tensor.name in asked]
    graph.input.extend(inputs)
    for field, values in ((graph.node, others), (graph.output, outputs), (graph.initializer, weights)):
        del field[:]
        field.extend(values)
    return inputs


def value_info(name: str, kind: str, dims: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), dims)


def test_tensorrt_is_told_shapes_kernels_and_arguments(written: Written) -> None:
    """By a stand-in for `tensorrt.plugin`, which has numbers where TensorRT has symbols."""
    tensorrt = ModuleType("stand_in")
    tensorrt.__dict__.update(int32="int32", int64="int64", float32="float32")
    plugins = StandIn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "stand_in.plugin", plugins)
        patch.setattr(Plugin, "ptx", lambda plugin: f"PTX of {plugin.operator}")
        register(written.nodes, tensorrt)
    assert list(plugins.described) == list(plugins.launched) == [f"{DOMAIN}::{node.name}" for node in written.nodes]
    for node in written.nodes:
        plugin = node.plugin
        describe, launch = plugins.described[f"{DOMAIN}::{node.name}"], plugins.launched[f"{DOMAIN}::{node.name}"]
        names = [*plugin.inputs, *["numbers"] * bool(node.numbers)]
        assert list(inspect.signature(describe).parameters) == names
        assert list(inspect.signature(launch).parameters) == [*names, "outputs", "tactic"]
        sizes = {name: 7 + i for i, name in enumerate(plugin.sizes)}
        shapes: dict[str, list[int]] = {name: [1, 1, 1] for name in names}
        for name, (of, axis) in plugin.sizes.items():
            shapes[of][axis] = sizes[name]
        inputs = [Desc(tuple(shape), "") for shape in shapes.values()]
        results = plugin.results({**sizes, **node.numbers})
        described = describe(*inputs)
        assert [(desc.dtype, desc.shape_expr) for desc in described] == results
        assert len(get_args(inspect.signature(describe).return_annotation)) == len(results)
        entry, ptx, params, arguments = launch(*inputs, described, 0)
        assert (entry, ptx) == (plugin.entry, f"PTX of {plugin.operator}")
        assert (params.grid_x, params.block_x) == (plugin.grid({**sizes, **node.numbers}), plugin.threads)
        assert arguments == list(sizes.values())


@dataclass(frozen=True)
class Desc:
    shape_expr: tuple[int, ...]
    dtype: str


class StandIn(ModuleType):
    TensorDesc, KernelLaunchParams, SymExprs = Desc, SimpleNamespace, list

    def __init__(self) -> None:
        super().__init__("stand_in.plugin")
        self.described: dict[str, Callable[..., Any]] = {}
        self.launched: dict[str, Callable[..., Any]] = {}
        self.register = lambda name: lambda function: self.described.update({name: function})
        self.aot_impl = lambda name: lambda function: self.launched.update({name: function})
        self.from_shape_expr, self.SymInt32 = Desc, int
        self.SymIntExprs = SimpleNamespace(from_tuple=list)


def test_without_nvcc_it_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvcc.TARGETS_VARIABLE, "none")
    with pytest.raises(
        BuilderError, match=r"^--format tensorrt: there is no nvcc.*\n.* --format tensorrt-plain needs none"
    ):
        check_formats(["tensorrt"], own_tower=False, diverse=False)


def test_an_export_builds_the_plan_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but TensorRT's part."""
    plugins, operators = StandIn(), []
    monkeypatch.setitem(sys.modules, "stand_in.plugin", plugins)
    monkeypatch.setattr("builder.export.tensorrt.require_tensorrt", lambda: ModuleType("stand_in"))
    monkeypatch.setattr("builder.export.plugins.require_nvcc", lambda: None)
    monkeypatch.setattr(Plugin, "ptx", lambda plugin: f"PTX of {plugin.operator}")

    def build(source: Path, path: Path, tensorrt: ModuleType) -> None:
        nodes = [node.op_type for node in onnx.load(source).graph.node if node.domain == DOMAIN]
        assert set(nodes) <= {name.removeprefix(f"{DOMAIN}::") for name in plugins.launched}
        operators.append([name.rpartition("_")[0] for name in nodes])
        path.write_bytes(b"a plan")

    monkeypatch.setattr("builder.export.tensorrt.write_plan", build)
    config = write_config(tmp_path, np.eye(8, dtype=np.float32), "diversity: {mmr: 0.5}\nindex: {results: 3}\n")
    version = export(read_source(config), tmp_path / "repository", formats=["tensorrt"])
    assert operators == [["resolve_weights", "search", "select_diverse"], ["resolve_weights", "rescore"]]
    files = {"libsilvertriton_ops.so", "model.plan", "model.pt", "model.py"}
    assert set(verify(version).files) == files
    assert listing(version.parent / "configs") == configs("tensorrt.pbtxt")


def test_a_version_has_one_plan() -> None:
    with pytest.raises(BuilderError, match=r"^--format: got tensorrt and tensorrt-plain, expected one"):
        check_formats(["tensorrt", "tensorrt-plain"], own_tower=False, diverse=False)
