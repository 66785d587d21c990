"""The operators' nodes of an ONNX network become TensorRT plugins (plugins.py), which TensorRT is then told of."""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from builder.export.onnx_nodes import DOMAIN
from builder.export.plugins import PLUGINS, Plugin, as_weights

_COUNT = itertools.count()  # TensorRT knows a plugin by its name for as long as the process lives


@dataclass(frozen=True)
class PluginNode:
    """A node of a network: `name`, its operator in the domain `silvertriton`, and what that does."""

    name: str
    plugin: Plugin
    numbers: dict[str, int]


def with_plugins(model: ir.Model) -> list[PluginNode]:
    """Make every node of an operator in `model` a plugin with a name of its own; returns them in their order.

    Weights become initializers [n] of the types that a plan has, `numbers` another. `plugin_namespace` and `aot` tell
    TensorRT's parser what the node is.
    """
    graph = model.graph
    weights: dict[str, ir.Value] = {}
    found = []
    for node in graph:
        if node.domain != DOMAIN:
            continue
        plugin = _plugin_of(node)
        shapes = {}
        for at, (name, kind) in enumerate(plugin.inputs.items()):
            given = node.inputs[at]
            assert given is not None
            assert given.name is not None
            assert given.dtype is not None
            assert given.dtype.numpy() == kind, f"{node.op_type} {name}: {given.dtype}, expected {kind}"
            if name not in plugin.weights:
                continue
            assert given.const_value is not None, f"{node.op_type} {name}: no initializer"
            shapes[name] = tuple(given.const_value.shape.numpy())
            if given.name not in weights:
                weights[given.name] = _initializer(graph, f"{given.name}_words", as_weights(given.const_value.numpy()))
            node.replace_input_with(at, weights[given.name])
        numbers = plugin.numbers(shapes, {name: attribute.value for name, attribute in node.attributes.items()})
        name = f"{plugin.operator}_{next(_COUNT)}"
        if numbers:
            node.resize_inputs(len(plugin.inputs) + 1)
            values = np.array(list(numbers.values()), np.int64)
            node.replace_input_with(len(plugin.inputs), _initializer(graph, f"{name}_numbers", values))
        if plugin.scratch is not None:
            node.resize_outputs(len(plugin.outputs) + 1)
            node.outputs[-1].name = f"{name}_scratch"
            node.outputs[-1].dtype = ir.DataType.INT64
        node.op_type = name
        node.attributes.clear()
        node.attributes.add(ir.AttrString("plugin_namespace", DOMAIN))
        node.attributes.add(ir.AttrInt64("aot", 1))
        found.append(PluginNode(name, plugin, numbers))
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return found


def register(nodes: Sequence[PluginNode], tensorrt: Any) -> None:
    """Tell the module `tensorrt` what `nodes` are, for the time of this process: shapes of what they give, kernels and
    how to launch them.

    Raises `BuilderError` where there is no nvcc, `OplibError` where it fails.
    """
    plugins = importlib.import_module(f"{tensorrt.__name__}.plugin")
    ptx = {plugin.operator: plugin.ptx() for plugin in {node.plugin.operator: node.plugin for node in nodes}.values()}
    for node in nodes:
        describe, launch = _definitions(node, ptx[node.plugin.operator], tensorrt, plugins)
        plugins.register(f"{DOMAIN}::{node.name}")(describe)
        plugins.aot_impl(f"{DOMAIN}::{node.name}")(launch)


def _definitions(
    node: PluginNode, ptx: str, tensorrt: Any, plugins: Any
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two functions that `tensorrt.plugin` calls with descriptions of tensors, whose dims are symbolic."""
    plugin = node.plugin
    names = [*plugin.inputs, *["numbers"] * bool(node.numbers)]
    places = {name: (names.index(of), axis) for name, (of, axis) in plugin.sizes.items()}

    def varying(inputs: Sequence[Any]) -> dict[str, Any]:
        return {name: inputs[at].shape_expr[axis] for name, (at, axis) in places.items()}

    def describe(*inputs: Any) -> tuple[Any, ...]:
        results = plugin.results({**varying(inputs), **node.numbers})
        return tuple(plugins.from_shape_expr(shape, getattr(tensorrt, kind)) for kind, shape in results)

    def launch(*given: Any) -> tuple[str, str, Any, Any]:  # inputs, outputs, tactic
        sizes = varying(given[: len(names)])
        params = plugins.KernelLaunchParams()
        params.grid_x = plugin.grid({**sizes, **node.numbers})
        params.block_x = plugin.threads
        arguments = plugins.SymIntExprs.from_tuple([plugins.SymInt32(size) for size in sizes.values()])
        return plugin.entry, ptx, params, arguments

    # What `tensorrt.plugin` checks: a description for each input, one for each output, and what a launch is made of.
    described = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=plugins.TensorDesc)
        for name in names
    ]
    outputs = len(plugin.outputs) + (plugin.scratch is not None)
    more = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("outputs", "tactic")]
    describe.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        described,
        return_annotation=tuple[(plugins.TensorDesc,) * outputs],  # type: ignore[misc]
    )
    launch.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*described, *more], return_annotation=tuple[str, str, plugins.KernelLaunchParams, plugins.SymExprs]
    )
    return describe, launch


def _plugin_of(node: ir.Node) -> Plugin:
    return next(p for p in PLUGINS.values() if p.operator.replace("_", "") == node.op_type.lower())


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    value = ir.Value(
        name=name, const_value=ir.tensor(array), type=ir.TensorType(ir.tensor(array).dtype), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    return value
