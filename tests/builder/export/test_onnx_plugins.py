"""The network whose operators are TensorRT plugins: run node by node, the plugins' kernels in the emulation, it
answers as the served network does; and the rest of it is what TensorRT reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from builder import nvcc
from builder.errors import BuilderError
from builder.export.formats import check_formats
from builder.export.onnx import write_with_plugins
from builder.export.onnx_nodes import DOMAIN
from builder.export.plugin_nodes import PluginNode
from builder.export.tensorrt import LENGTHS, write_plan
from builder.export.torchscript import script
from builder.network.pipeline import OUTPUT_NAMES, input_names
from builder.network.ranking import RANKING_OUTPUTS, Ranking, ranking_names
from tests.builder.export.onnx_networks import CANDIDATES, IDS, make, requests
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


@pytest.mark.parametrize("variant", ["query", "mean, mlp, groups"])
def test_it_computes_what_is_served(variant: str, tmp_path: Path) -> None:
    made = make(**VARIANTS[variant])
    path = tmp_path / "model.onnx"
    nodes = write_with_plugins(made.network, made.schema, path, {})
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == list(input_names(made.schema))
    check_nodes(model, nodes)
    evaluator = ReferenceEvaluator(model, new_ops=emulated(nodes))
    served = script(made.network, made.schema)
    for seed, (rows, history, exclude) in enumerate([(9, 3, 5), (1, 1, 1), (6, 9, 2)]):
        inputs = requests(made, rows, seed, history=history, exclude=exclude)
        with np.errstate(all="ignore"), torch.inference_mode():  # some inputs are infinite
            got = evaluator.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            expected = served(**inputs)
        same(expected, got, OUTPUT_NAMES, seed)
        assert (expected[4] == 0).any() or rows == 1, f"seed {seed}"


def types_of(model: onnx.ModelProto) -> dict[str, str]:
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return {name: helper.tensor_dtype_to_np_dtype(kind).name for name, kind in types.items()}


def check_nodes(model: onnx.ModelProto, nodes: Sequence[PluginNode]) -> None:
    """Nodes and definitions agree in names, in numbers of inputs and outputs, and in types."""
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


def test_the_ranking_model_computes_what_is_served(tmp_path: Path) -> None:
    made = make(**VARIANTS["mean, mlp, groups"])
    ranking = Ranking(made.network).eval()
    path = tmp_path / "model.onnx"
    nodes = write_with_plugins(ranking, made.schema, path, {})
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == list(ranking_names(made.schema))
    check_nodes(model, nodes)
    evaluator = ReferenceEvaluator(model, new_ops=emulated(nodes))
    served = script(ranking, made.schema)
    for seed, (rows, items) in enumerate([(5, 60), (1, 1)]):
        rng = np.random.default_rng(seed)
        given = [rng.permutation(np.concatenate([IDS, [-1, 99_999]]))[:items] for _ in range(rows)]
        inputs = {**requests(made, rows, seed), "items": torch.from_numpy(np.stack(given))}
        inputs = {name: inputs[name] for name in ranking_names(made.schema)}
        with np.errstate(all="ignore"), torch.inference_mode():
            got = evaluator.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            same(served(**inputs), got, RANKING_OUTPUTS, seed)


@pytest.mark.parametrize(("variant", "ranking"), [("query", False), *[("mean, mlp, groups", r) for r in (False, True)]])
def test_tensorrt_reads_all_else(variant: str, ranking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every plugin cut out: what it gives becomes an input of the network, what it takes an output."""
    tensorrt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    made = make(**VARIANTS[variant])
    network = Ranking(made.network).eval() if ranking else made.network
    path = tmp_path / "model.onnx"
    nodes = write_with_plugins(network, made.schema, path, {})
    model = onnx.load(path)
    sizes = {"batch": FREE, "candidates": FREE if ranking else CANDIDATES, "tasks": len(made.schema.tasks)}
    for value in cut_out(model, nodes, sizes):
        monkeypatch.setitem(LENGTHS, value.name, LENGTHS["items"])
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


def test_without_nvcc_it_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvcc.TARGETS_VARIABLE, "none")
    with pytest.raises(
        BuilderError, match=r"^--format tensorrt: there is no nvcc.*\n.* --format tensorrt-plain needs none"
    ):
        check_formats(["tensorrt"], own_tower=False, diverse=False)


def test_a_version_has_one_plan() -> None:
    with pytest.raises(BuilderError, match=r"^--format: got tensorrt and tensorrt-plain, expected one"):
        check_formats(["tensorrt", "tensorrt-plain"], own_tower=False, diverse=False)
