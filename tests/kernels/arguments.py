"""Good arguments of every operator, and what an operator says to bad ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from builder import ops
from tests.kernels.catalogue import Items, random_columns, random_program, words_of
from tests.kernels.reference import Limits, Request

Arguments = dict[str, Any]
OPERATORS = ["filter_rows", "search", "rescore", "resolve_weights", "lookup", "rerank", "select", "select_diverse"]
ON_GPUS = [operator for operator in OPERATORS if operator not in ("lookup", "rerank")]
LIMITS = Limits(probes=0, candidates=20, max_candidates=25, exact_rows=3)


@cache
def catalogue(count: int) -> Items:
    generator, random = np.random.default_rng(4), Random(4)
    columns = [
        *random_columns(random, count),
        np.arange(count, dtype=np.float64),
        [frozenset([i % 3, 10 + i % 40]) for i in range(count)],  # frequent terms and rare ones
    ]
    vectors = generator.normal(size=(count, 19))
    return Items(vectors, columns, seed=4, clusters=6, code_dims=10, reach=[1, 0.5, 0], frequent=count // 15)


@cache
def all_arguments(count: int, batch: int) -> dict[str, Arguments]:
    items, random, generator = catalogue(count), Random(5), np.random.default_rng(5)
    codes = [random_program(random, items.columns, 5) for _ in range(batch)]
    requests = [
        Request(query, words_of(code), random.choices(items.ids.tolist(), k=2), (random.randint(0, 6), 0))
        for query, code in zip(items.queries(generator, batch), codes, strict=True)
    ]
    requests[0] = Request(requests[0].query, (0, 0), (int(items.ids[3]),))
    searching = items.arguments(requests, LIMITS)
    ops.load()
    rows, ids, scores, _, status = ops.search(**searching)
    return {
        "filter_rows": {"program": searching["filter"], **items.filtering},
        "search": searching,
        "rescore": {"query": searching["query"], "vectors": items.index["vectors"], "scales": items.index["scales"]}
        | {"rows": rows},
        "resolve_weights": {
            "task_weights": torch.tensor([[float("nan"), 0.5]] * batch),
            "defaults": torch.tensor([1.0, 2.0]),
            "status": status,
        },
        "lookup": {
            "keys": items.index["ids"][items.index["item_rows"].long()],
            "asked": torch.from_numpy(generator.integers(-1, 10 * count, 2000)),
        },
        "rerank": reranking(items, searching["query"], rows, scores),
        "select": {
            "values": scores,
            "ids": ids,
            "task_scores": torch.stack([scores, -scores, scores * 2], dim=2),
            "status": status,
            "k": 7,
        },
        "select_diverse": {
            "values": scores,
            "ids": ids,
            "rows": rows,
            "task_scores": torch.stack([scores, -scores], dim=2),
            "status": status,
            "vectors": items.index["vectors"],
            "inverse_lengths": inverse_lengths(items.index["vectors"]),
            **groups_of_rows([[row % 5, 5 + row % 7] for row in range(len(items.index["vectors"]))], [2] * 12),
            "mmr": 0.6,
            "k": 7,
        },
    }


def reranking(items: Items, query: Tensor, rows: Tensor, scores: Tensor) -> Arguments:
    """A reranker of 70 hidden units, 10 of the second layer and two tasks, over a random graph.

    70 in whole vectors is 80: one tile of registers at least, and a rest, on every instruction set.
    """
    generator = np.random.default_rng(6)
    held = items.index["item_rows"].numpy()
    of_index = {name: items.index[name] for name in ("vectors", "scales", "ids", "item_rows")}
    near = generator.choice(held, (len(held), 7)).astype(np.int32)
    layers = {"user": (21, 80), "first": (24, 80), "second": (71, 16), "output": (16, 16)}
    return {
        "query": query,
        "history": torch.from_numpy(generator.choice(items.ids, (len(query), 9))),
        "rows": rows,
        "scores": scores,
        "vectors": of_index["vectors"],
        "scales": of_index["scales"],
        "items": torch.from_numpy(generator.normal(size=(len(of_index["vectors"]), 70))).half(),
        "ids": of_index["ids"],
        "item_rows": of_index["item_rows"],
        "neighbours": torch.from_numpy(near),
        "weights": torch.from_numpy(generator.random(near.shape, np.float32)),
        **{name: torch.from_numpy(generator.normal(size=size)).float() for name, size in layers.items()},
        "most": 8,
        "tasks": 2,
    }


def inverse_lengths(vectors: Tensor) -> Tensor:
    """[R] float32, 0 for a zero row."""
    lengths = vectors.double().norm(dim=1)
    return torch.where(lengths > 0, 1 / lengths, 0.0).float()


def groups_of_rows(groups: list[list[int]], most: list[int]) -> Arguments:
    """The groups of each row, and how many results may be in each group, as `select_diverse` takes them."""
    sizes = [0, *map(len, groups)]
    return {
        "group_offsets": torch.tensor(sizes).cumsum(0) if most else torch.empty(0, dtype=torch.int64),
        "groups": torch.tensor([group for of_row in groups for group in of_row], dtype=torch.int32),
        "most": torch.tensor(most, dtype=torch.int32),
    }


def arguments(operator: str, count: int = 300, batch: int = 3) -> Arguments:
    """Good arguments of an operator, all on one random index."""
    return dict(all_arguments(count, batch)[operator])


def run(operator: str, given: Arguments) -> list[Tensor]:
    wrapper: Callable[..., Any] = getattr(ops, operator)
    result = wrapper(**given)
    return [result] if isinstance(result, Tensor) else list(result)


def message_of(operator: str, given: Arguments) -> str:
    with pytest.raises(RuntimeError) as caught:
        run(operator, given)
    message = str(caught.value).splitlines()[0]
    assert re.fullmatch(rf"silvertriton::{operator}: \w+: got .+, expected .+; .+", message), message
    return message
