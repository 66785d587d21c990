"""Small networks of every kind for the tests of ONNX, untrained, and random requests to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from builder import ops
from builder.data.columns import CategoryColumn, NumberColumn, TagsColumn
from builder.formula import names_of, parse_formula
from builder.index.build import build_index
from builder.network.diversity import DiverseSelection
from builder.network.groups import GroupReranking, GroupScores, TaskGroups
from builder.network.history import AttentionPooling
from builder.network.items import ItemFeatures
from builder.network.neighbours import Neighbours
from builder.network.pipeline import Pipeline
from builder.network.rerank import Kind, Reranker, Reranking, RetrievalScore
from builder.network.search import Search
from builder.network.towers import UserTower
from builder.network.value import ValueModel
from builder.network.vocabulary import Vocabulary
from client import F, compile_filter
from client.filters import Condition
from client.schema import Feature, Schema
from tests.kernels.reference import Column

ITEMS, DIMS, RESULTS, CANDIDATES, HISTORY = 120, 8, 10, 40, 4
IDS = np.sort(np.random.default_rng(1).permutation(1000)[:ITEMS])
USER = (Feature("segment", "category", "integer"), Feature("age", "number"))
COLOUR, TAGS, PRICE = (
    Feature("colour", "category", "integer", filter=True),
    Feature("tags", "tags", "integer", filter=True),
    Feature("price", "number", filter=True),
)
_COLOURS = np.arange(ITEMS) % 5 + 1
_PRICES = np.where(np.arange(ITEMS) % 7 == 3, np.nan, np.arange(ITEMS) % 11 - 4.0)
COLUMNS = (
    CategoryColumn(COLOUR, _COLOURS),
    TagsColumn(TAGS, np.arange(ITEMS + 1) * 2, np.stack([np.arange(ITEMS) % 3, np.arange(ITEMS) % 4 + 5], 1).ravel()),
    NumberColumn(PRICE, _PRICES),
)
REFERENCE_COLUMNS: list[Column] = [
    [frozenset([int(colour)]) for colour in _COLOURS],
    [frozenset([item % 3, item % 4 + 5]) for item in range(ITEMS)],
    _PRICES,
]


@dataclass(frozen=True)
class Made:
    network: Pipeline
    schema: Schema


def make(
    *,
    tower: str | None = None,
    rerank: Kind | None = None,
    value: str | None = None,
    grouped: bool = False,
    diversity: dict[str, Any] | None = None,
    columns: tuple[Any, ...] = COLUMNS,
    candidates: int = CANDIDATES,
) -> Made:
    """`tower`: "mean" or "attention" over histories, None for query vectors; `grouped`: a vector for each task;
    `candidates`: the most a request may ask for."""
    ops.load()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(ITEMS, DIMS)).astype(np.float32)
    index = build_index(vectors, IDS, columns, clusters=4, seed=0)
    tasks = ("watch", "buy") if grouped or rerank else ("watch",)
    features = tuple(column.feature for column in columns)
    user = USER if tower else ()
    schema = Schema("t", user, features, tasks, HISTORY if tower else 0, 0 if tower else DIMS, RESULTS, candidates, 4)
    search = Search(index, fingerprint=schema.fingerprint, candidates=30, max_candidates=candidates, probes=4)
    groups = TaskGroups([[1], [0]], [1.0, 1.0]) if grouped else None
    formula = None if value is None else parse_formula(value, {*tasks, "price"})
    items = ItemFeatures(index.forward, () if formula is None else set(names_of(formula)))
    scoring: nn.Module = RetrievalScore() if groups is None else GroupScores(groups)
    if rerank is not None:
        scoring = reranking(rerank, vectors, index)
        scoring = scoring if groups is None else GroupReranking(groups, scoring)
    rules = None if diversity is None else DiverseSelection(index.forward, index.vectors, **diversity)
    network = Pipeline(
        None if tower is None else user_tower(tower, groups),
        search,
        scoring,
        ValueModel(tasks, formula, items.used),
        items,
        results=RESULTS,
        diversity=rules,
        groups=groups,
    )
    return Made(network.eval(), schema)


def user_tower(pooling: str, groups: TaskGroups | None) -> UserTower:
    segments = CategoryColumn(USER[0], np.array([3, -5, 8, 3]))
    ages = NumberColumn(USER[1], np.array([20.0, 40.0, np.nan, 31.0]))
    attention = AttentionPooling(DIMS, HISTORY, blocks=2, heads=2, dropout=0.0) if pooling == "attention" else None
    tower = UserTower([segments, ages], IDS, dims=DIMS, history_length=HISTORY, pooling=attention, groups=groups)
    return perturbed(tower)


def reranking(kind: Kind, vectors: np.ndarray, index: Any) -> Reranking:
    rows = torch.from_numpy(index.layout.row_of_item.astype(np.int32))
    items = torch.arange(ITEMS)
    of_items = torch.stack([(items + ahead) % ITEMS for ahead in range(1, 9)], 1)
    graph = Neighbours(rows[of_items], torch.rand(ITEMS, 8), history=3)
    reranker = perturbed(Reranker(kind, COLUMNS, np.arange(ITEMS), dims=DIMS, tasks=2, hidden=8, neighbours=graph))
    of_items_kept = reranker.keep(vectors)
    kept = torch.zeros(len(index.ids), of_items_kept.shape[1], dtype=torch.float16)
    kept[rows.long()] = of_items_kept
    return Reranking(reranker.scorer, kept, graph, Vocabulary(IDS))


def perturbed(module: Any) -> Any:
    """Weights that are nowhere zero, so that every part has a say."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return module.eval()


FILTERS: tuple[Condition, ...] = (
    F.colour == 3,
    F.tags.any_of(1, 6) & ~(F.price > 2),
    F.tags.all_of(2, 8) | F.price.is_unknown() | (F.colour == 99),
    ~F.colour.is_in([1, 2, 4]) & (F.price >= -4) & (F.price < 5.5),
)


def requests(made: Made, rows: int, seed: int, *, history: int = 3, exclude: int = 5) -> dict[str, torch.Tensor]:
    """Random requests; some rows are bad, each in its own way."""
    rng = np.random.default_rng(seed)
    schema = made.schema
    filters = np.zeros((rows, 24), np.int64)
    for row in range(rows if schema.item_features else 0):
        program = compile_filter(FILTERS[rng.integers(len(FILTERS))], schema)
        if rng.random() < 0.7:
            filters[row, : len(program)] = program
    weights = rng.normal(size=(rows, len(schema.tasks))).astype(np.float32)
    weights[rng.random(weights.shape) < 0.4] = np.nan
    limits = np.zeros((rows, 2), np.int32)
    limits[:, 1] = rng.choice([0, 7, CANDIDATES], rows)
    inputs: dict[str, np.ndarray] = {}
    if schema.query_dims:
        inputs["query"] = rng.normal(size=(rows, DIMS)).astype(np.float32)
    else:
        inputs["segment"] = rng.choice([3, -5, 8, 7, -(2**63)], (rows, 1))
        inputs["age"] = rng.choice(np.array([20, 55.5, np.nan, 1e9], np.float32), (rows, 1))
        inputs["history"] = rng.choice(np.concatenate([IDS[::9], [-1, -1, 12345]]), (rows, history))
    inputs |= {
        "filter": filters,
        "exclude": rng.choice(np.concatenate([IDS[::3], [-1, -1, 54321]]), (rows, exclude)),
        "task_weights": weights,
        "search": limits,
    }
    for row in range(0, rows, 4):  # one in four is bad
        name = list(inputs)[rng.integers(len(inputs))]
        if name == "filter":
            inputs[name][row, :2] = 12345, 1
        elif name in ("history", "exclude", "search"):
            inputs[name][row, -1] = -2
        elif name != "segment":
            inputs[name][row, 0] = np.inf
    return {name: torch.from_numpy(array) for name, array in inputs.items()}
