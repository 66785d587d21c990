"""The operators as ONNX nodes of the domain `silvertriton`: their schemas, and how the exporter writes them.

A node is named as its operator in CamelCase (`search`: Search). Tensors are its inputs and outputs, in the operator's
order; numbers are attributes of the operator's names. docs/operators.md says what they mean. The version of the domain
is that of the operators (`OPERATORS`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import opset20 as op
from onnxscript.values import Op, Opset

from builder.export.manifest import OPERATORS

DOMAIN = "silvertriton"
IN_NETWORK = ("search", "rescore", "resolve_weights", "neighbour_scores", "select", "select_diverse")
_TENSORS = [f"tensor({kind})" for kind in ("float", "float16", "double", "int8", "int32", "int64")]
_ATTRIBUTES = {"int": OpSchema.AttrType.INT, "float": OpSchema.AttrType.FLOAT}


def node_schema(operator: str) -> OpSchema:
    """The schema of an operator's node, made from that of the operator; the operators have to be loaded."""
    of_torch = getattr(torch.ops.silvertriton, operator).default._schema
    tensors = [argument.name for argument in of_torch.arguments if str(argument.type) == "Tensor"]
    numbers = [argument for argument in of_torch.arguments if str(argument.type) != "Tensor"]
    results = [result.name for result in of_torch.returns]

    def parameters(names: list[str], prefix: str) -> list[OpSchema.FormalParameter]:
        return [OpSchema.FormalParameter(name, f"{prefix}{i}") for i, name in enumerate(names)]

    types = [f"T{i}" for i in range(len(tensors))] + [f"R{i}" for i in range(len(results))]
    return OpSchema(
        "".join(part.title() for part in operator.split("_")),
        DOMAIN,
        OPERATORS,
        inputs=parameters(tensors, "T"),
        outputs=parameters(results, "R"),
        type_constraints=[(name, _TENSORS, "docs/operators.md") for name in types],
        attributes=[OpSchema.Attribute(n.name, _ATTRIBUTES[str(n.type)], required=True) for n in numbers],
    )


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=)`: a node for each operator that a network calls."""
    opset = Opset(DOMAIN, OPERATORS)
    nodes = {name: node_schema(name) for name in IN_NETWORK}
    table: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.searchsorted.Tensor: search_sorted}
    for name, schema in nodes.items():
        operator = getattr(torch.ops.silvertriton, name).default
        names = [argument.name for argument in operator._schema.arguments]
        table[operator] = _writer(Op(opset, schema.name, schema), names)
    return table


def _writer(node: Op, names: list[str]) -> Callable[..., Any]:
    def write(*arguments: Any) -> Any:  # the operator's, tensors before numbers
        inputs = arguments[: len(node.op_schema.inputs)]
        numbers = arguments[len(inputs) :]
        return node(*inputs, **dict(zip(names[len(inputs) :], numbers, strict=True)))

    return write


@contextlib.contextmanager
def nodes_known() -> Iterator[None]:
    """While it lasts, `onnx.checker` checks the nodes too: inputs, outputs and attributes."""
    schemas = [node_schema(name) for name in IN_NETWORK]
    for schema in schemas:
        onnx.defs.register_schema(schema)
    try:
        yield
    finally:
        for schema in schemas:
            onnx.defs.deregister_schema(schema.name, schema.since_version, schema.domain)


def search_sorted(keys: Any, values: Any, **options: Any) -> Any:
    """`torch.searchsorted` of `keys [V]`, ascending, in standard operators: positions of the shape of `values`.

    Binary search with a gather for each power of two up to V. Raises `NotImplementedError` for `options` that are not
    torch's defaults.
    """
    if any(options.values()):
        raise NotImplementedError(f"searchsorted with {options}")
    count = int(keys.shape[0])
    place = op.Expand(op.Constant(value_ints=[0]), op.Shape(values))
    for bit in reversed(range(count.bit_length())):
        further = op.Add(place, op.Constant(value_int=1 << bit))
        last = op.Sub(op.Min(further, op.Constant(value_int=count)), op.Constant(value_int=1))
        is_less = op.Less(op.Gather(keys, last), values)
        within = op.LessOrEqual(further, op.Constant(value_int=count))
        place = op.Where(op.And(within, is_less), further, place)
    return place
