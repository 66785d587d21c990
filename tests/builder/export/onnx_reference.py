"""The nodes of the domain `silvertriton` for `onnx.reference`, as the slow references of the operators have them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun

from builder.export.manifest import OPERATORS
from builder.export.onnx_nodes import DOMAIN
from tests.kernels import reference
from tests.kernels.reference import Catalogue, Column, Limits, Request

Rows = list[tuple[Any, ...]]


def nodes(columns: Sequence[Column]) -> list[type[OpRun]]:
    """One class a node. `columns`: of the items by ascending id, in the order of the filter features."""

    def search(named: dict[str, Any]) -> tuple[np.ndarray, ...]:
        width = named["max_candidates"]
        index = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
        catalogue = Catalogue(index, columns, named["item_rows"].astype(np.int64), named["fingerprint"])
        limits = Limits(named["probes"], named["candidates"], width, named["exact_rows"])
        answers: Rows = []
        for query, program, exclude, asked, status in zip(
            *(named[name] for name in ("query", "filter", "exclude", "limits", "status")), strict=True
        ):
            request = Request(query, program.tolist(), exclude.tolist(), tuple(asked.tolist()), int(status))
            found = reference.search(request, catalogue, limits)
            more = width - len(found.rows)
            rows, ids = (np.pad(list_, (0, more), constant_values=-1) for list_ in (found.rows, found.ids))
            scores = np.pad(found.scores, (0, more), constant_values=-np.inf)
            answers.append((rows, ids, scores, found.stats, found.status))
        return stacked(answers, (np.int32, np.int64, np.float32, np.int32, np.int32))

    def rescore(named: dict[str, Any]) -> tuple[np.ndarray, ...]:
        of_rows = zip(named["query"], named["rows"], strict=True)
        return (np.stack([reference.rescore(q, named["vectors"], named["scales"], rows) for q, rows in of_rows]),)

    def resolve_weights(named: dict[str, Any]) -> tuple[np.ndarray, ...]:
        asked = zip(named["task_weights"], named["status"].tolist(), strict=True)
        answers = [reference.resolve_weights(weights, named["defaults"], status) for weights, status in asked]
        return stacked(answers, (np.float32, np.int32))

    def neighbour_scores(named: dict[str, Any]) -> tuple[np.ndarray, ...]:
        graph = [named[name] for name in ("ids", "item_rows", "neighbours", "weights", "most")]
        of_rows = zip(named["history"], named["rows"], strict=True)
        return stacked([reference.neighbour_scores(h, rows, *graph) for h, rows in of_rows], (np.float32, np.float32))

    def select(named: dict[str, Any]) -> tuple[np.ndarray, ...]:
        return chosen(named, lambda b: reference.select(named["values"][b], named["ids"][b], named["k"]))

    def select_diverse(named: dict[str, Any]) -> tuple[np.ndarray, ...]:
        offsets = named["group_offsets"]
        groups = [named["groups"][a:b].tolist() for a, b in itertools.pairwise(offsets)]
        rules = named["vectors"], named["inverse_lengths"], groups, named["most"].tolist(), named["mmr"], named["k"]
        return chosen(
            named,
            lambda b: reference.select_diverse(named["values"][b], named["ids"][b], named["rows"][b].tolist(), *rules),
        )

    return [_node(f) for f in (search, rescore, resolve_weights, neighbour_scores, select, select_diverse)]


def chosen(named: dict[str, Any], positions: Callable[[int], list[int]]) -> tuple[np.ndarray, ...]:
    answers: Rows = []
    k = named["k"]
    for b, status in enumerate(named["status"].tolist()):
        best = positions(b) if status == 0 else []
        ids, scores = np.full(k, -1), np.full(k, -np.inf)
        tasks = np.full((k, named["task_scores"].shape[2]), -np.inf)
        ids[: len(best)], scores[: len(best)] = named["ids"][b, best], named["values"][b, best]
        tasks[: len(best)] = named["task_scores"][b, best]
        answers.append((ids, np.where(np.isnan(scores), -np.inf, scores), tasks, len(best)))
    return stacked(answers, (np.int64, np.float32, np.float32, np.int32))


def stacked(answers: Sequence[Sequence[Any]], types: tuple[type, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(column, type_) for column, type_ in zip(zip(*answers, strict=True), types, strict=True))


def _node(run: Callable[[dict[str, Any]], tuple[np.ndarray, ...]]) -> type[OpRun]:
    operator = getattr(torch.ops.silvertriton, run.__name__).default
    names = [argument.name for argument in operator._schema.arguments]

    def _run(self: OpRun, *inputs: np.ndarray, **numbers: Any) -> tuple[np.ndarray, ...]:
        return run({**dict(zip(names, inputs, strict=False)), **numbers})

    name = "".join(part.title() for part in run.__name__.split("_"))
    return type(name, (OpRun,), {"op_domain": DOMAIN, "op_schema_version": OPERATORS, "_run": _run})
