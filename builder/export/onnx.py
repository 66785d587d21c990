"""A network as an ONNX file whose operators are nodes of the domain `silvertriton` (onnx_nodes.py).

Inputs and outputs are those of the wire contract, in its order. The index, the filters and all weights are
initializers; past 2 GB they lie in a file of their own beside the model.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from builder import ops
from builder.export.onnx_nodes import nodes_known, translations
from builder.export.plugin_nodes import PluginNode, with_plugins
from builder.network.groups import GroupReranking
from builder.network.history import MeanPooling
from builder.network.pipeline import OUTPUT_NAMES, Pipeline, forward_source, input_names
from builder.network.plain import PlainNeighbours, PlainSearch, add_by_index, rescore, resolve_weights, select
from builder.network.ranking import RANKING_OUTPUTS, Ranking, ranking_names, ranking_source
from builder.network.rerank import Reranking
from builder.network.towers import UserTower
from client.schema import Schema

LARGEST_FILE = 1_700_000_000  # bytes of tensors in one file; protobuf reads no message of 2 GiB, names come on top
_USERS = 2  # of the example that the exporter follows; its shapes stay free
_IN_OPERATIONS_OF_ONNX = {torch.ops.aten.index_add.default: add_by_index}  # what TensorRT would not read
_LENGTHS = {"history": 3, "filter": 4, "exclude": 5, "items": 6}  # all different, so that none is taken for another


def write_onnx(
    network: Pipeline | Ranking, schema: Schema, path: Path, metadata: Mapping[str, str], *, plain: bool = False
) -> None:
    """Write `network` to `path`, and `path`.data beside it where that would take more than 2 GB; `onnx.checker` has
    checked it then.

    `metadata` becomes the model's metadata_props. `plain`: in operators of ONNX alone, with exact search. A tower of
    one's own cannot be exported, nor rules of diversity in a plain one.
    """
    if plain:
        program = _exported(_in_plain_parts(network), schema, _in_plain_operations())
    else:
        program = _exported(network, schema, None)
    _save(program, network, path, metadata)
    with nodes_known():
        onnx.checker.check_model(path, full_check=True)


def write_with_plugins(
    network: Pipeline | Ranking, schema: Schema, path: Path, metadata: Mapping[str, str]
) -> list[PluginNode]:
    """Write `network` as `write_onnx` does, its operators as TensorRT plugins, all else as in a plain one. Returns the
    plugins, of which TensorRT has to be told before it reads the file."""
    program = _exported(network, schema, _IN_OPERATIONS_OF_ONNX)
    nodes = with_plugins(program.model)
    _save(program, network, path, metadata)
    return nodes


def _exported(network: Any, schema: Schema, decompositions: dict[Any, Any] | None) -> torch.onnx.ONNXProgram:
    ops.load()
    names = ranking_names(schema) if isinstance(network, Ranking) else input_names(schema)
    outputs = RANKING_OUTPUTS if isinstance(network, Ranking) else OUTPUT_NAMES
    with _quiet():
        exported = torch.export.export(
            _with_forward(network, schema),
            (),
            {name: _example(schema, name) for name in names},
            dynamic_shapes={name: _free_dims(name) for name in names},
        )
        program = torch.onnx.export(
            exported if decompositions is None else exported.run_decompositions(decompositions),
            input_names=list(names),
            output_names=list(outputs),
            custom_translation_table=translations(),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program


def _save(program: torch.onnx.ONNXProgram, network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=_bytes(network) > LARGEST_FILE)


def _in_plain_parts(network: Pipeline | Ranking) -> Any:
    """The same network with exact search and the graph of items as plain modules have them."""
    alone = _shallow(network)
    if isinstance(network, Pipeline):
        alone.search = PlainSearch(network.search)
    reranking = network.rerank.rerank if isinstance(network.rerank, GroupReranking) else network.rerank
    if isinstance(reranking, Reranking):
        plain = _shallow(reranking)
        plain.neighbours = PlainNeighbours(reranking.neighbours)
        alone.rerank = plain
        if isinstance(network.rerank, GroupReranking):
            alone.rerank = _shallow(network.rerank)
            alone.rerank.rerank = plain
    return alone


def _in_plain_operations() -> dict[Any, Any]:
    """For `ExportedProgram.run_decompositions`: the operators that remain, in operations of torch."""
    return {
        **_IN_OPERATIONS_OF_ONNX,
        torch.ops.silvertriton.rescore.default: rescore,
        torch.ops.silvertriton.resolve_weights.default: resolve_weights,
        torch.ops.silvertriton.select.default: select,
    }


def _with_forward(network: Pipeline | Ranking, schema: Schema) -> nn.Module:
    """The same network, its tensors shared, with a `forward` in Python and with nothing that ONNX has no node for."""
    source = (ranking_source if isinstance(network, Ranking) else forward_source)(schema, own_tower=False)
    scope: dict[str, Any] = {"Tensor": Tensor, "List": list}
    exec(source, scope)
    alone = _shallow(network.eval())
    methods: dict[str, Any] = {"forward": scope["forward"]}
    if isinstance(network, Ranking):
        methods["parts"] = lambda self, rows: [rows]  # a graph cannot have as many parts as a request needs
    alone.__class__ = type(type(network).__name__, (type(network),), methods)
    if isinstance(tower := getattr(network, "tower", None), UserTower) and isinstance(tower.pooling, MeanPooling):
        alone.tower = _shallow(tower)
        alone.tower.pooling = _GatheredMean()
    return cast(nn.Module, alone)


def _shallow(module: nn.Module) -> Any:
    """A module of its own with the same parts."""
    other = copy.copy(module)
    for parts in ("_parameters", "_buffers", "_modules"):
        setattr(other, parts, dict(getattr(module, parts)))
    return other


class _GatheredMean(nn.Module):
    """`MeanPooling` without the embedding bag, which in ONNX is a loop over bags."""

    def forward(self, slots: Tensor, table: Tensor) -> Tensor:
        known = (slots > 0).unsqueeze(2)  # [B, L, 1]
        summed = (nn.functional.embedding(slots, table) * known).sum(1)
        return summed / known.sum(1).clamp(min=1)


def _bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def _example(schema: Schema, name: str) -> Tensor:
    length = _LENGTHS.get(name)
    if length is not None:
        return torch.full((_USERS, length), -1 if name != "filter" else 0)
    if name == "search":
        return torch.zeros(_USERS, 2, dtype=torch.int32)
    if name in ("query", "task_weights"):
        return torch.zeros(_USERS, schema.query_dims if name == "query" else len(schema.tasks))
    kind = next(feature.kind for feature in schema.user_features if feature.name == name)
    return torch.zeros(_USERS, 1, dtype=torch.int64 if kind == "category" else torch.float32)


def _free_dims(name: str) -> dict[int, Any]:
    free: dict[int, Any] = {0: torch.export.Dim("batch")}
    if name in _LENGTHS:
        free[1] = torch.export.Dim(f"{name}_length")
    return free


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: packages that it did not find, names of dims that it shares."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
