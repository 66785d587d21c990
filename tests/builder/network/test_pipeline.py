"""The forward pass from tensors to results, scripted as it is served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builder import ops
from builder.data.columns import NumberColumn
from builder.export.torchscript import script
from builder.index.build import build_index
from builder.network.items import ItemFeatures
from builder.network.pipeline import OUTPUT_NAMES, Pipeline, forward_source, input_names
from builder.network.rerank import RetrievalScore
from builder.network.search import Search
from builder.network.value import ValueModel
from client import F, compile_filter
from client.schema import Feature, Schema, Status
from tests.builder.artifacts import exact, neutral

ITEMS, DIMS, RESULTS = 200, 6, 12
PRICE = Feature("price", "number", filter=True)
VECTORS = np.random.default_rng(4).normal(size=(ITEMS, DIMS)).astype(np.float32)
PRICES = np.arange(ITEMS, dtype=np.float64)
NAN = float("nan")


class SumTower(nn.Module):
    """Adds what it is given to its first dimension."""

    def forward(self, features: list[Tensor], history: Tensor) -> Tensor:
        query = torch.zeros(history.size(0), 6)
        for feature in features:
            query[:, 0] += torch.nan_to_num(feature[:, 0].float())
        query[:, 1] = history.clamp(min=0).sum(1).float()
        return query


def schema(user: tuple[Feature, ...] = (), history: int = 0, *, tower: bool = False) -> Schema:
    return Schema("t", user, (PRICE,), ("score",), history, 0 if tower else DIMS, RESULTS, 50, 3)


def network(of: Schema, tower: nn.Module | None = None) -> Any:
    ops.load()
    index = build_index(VECTORS, np.arange(ITEMS), (NumberColumn(PRICE, PRICES),), clusters=3, seed=0)
    search = Search(index, fingerprint=of.fingerprint, probes=3, candidates=50, max_candidates=50)
    return script(
        Pipeline(tower, search, RetrievalScore(), ValueModel(["score"]), ItemFeatures(index.forward), results=RESULTS),
        of,
    )


def test_inputs_in_order() -> None:
    user = (Feature("a", "category", "string"), Feature("b", "number"))
    assert input_names(schema()) == ("query", "filter", "exclude", "task_weights", "search")
    assert input_names(schema(user, 5, tower=True))[:3] == ("a", "b", "history")
    assert input_names(schema(user, 0, tower=True))[:3] == ("a", "b", "filter")
    assert forward_source(schema(), own_tower=False).startswith(
        "def forward(self, query: Tensor, filter: Tensor, exclude: Tensor, task_weights: Tensor, search: Tensor):\n"
    )


def test_results_against_brute_force() -> None:
    queries = np.random.default_rng(5).normal(size=(10, DIMS)).astype(np.float32)
    outputs = dict(zip(OUTPUT_NAMES, network(schema())(**neutral(10, torch.from_numpy(queries))), strict=True))
    assert [tuple(t.shape) for t in outputs.values()] == [(10, 12), (10, 12), (10, 12, 1), (10, 1), (10, 1), (10, 4)]
    dtypes = [torch.int64, torch.float32, torch.float32, torch.int32, torch.int32, torch.int32]
    assert [t.dtype for t in outputs.values()] == dtypes
    for row, query in enumerate(queries):
        assert outputs["item_ids"][row].tolist() == exact(VECTORS, query, RESULTS)
    assert torch.equal(outputs["task_scores"][:, :, 0], outputs["scores"])
    assert outputs["count"].tolist() == [[RESULTS]] * 10


def test_fewer_passing_items_than_results() -> None:
    of = schema()
    program = torch.from_numpy(compile_filter(F.price < 5, of))[None]
    inputs = {**neutral(1, torch.ones(1, DIMS)), "filter": program, "exclude": torch.tensor([[2, -1]])}
    item_ids, scores, tasks, count, status, stats = network(of)(**inputs)
    assert sorted(item_ids[0, :4].tolist()) == [0, 1, 3, 4]
    assert item_ids[0, 4:].tolist() == [-1] * 8
    assert torch.isneginf(scores[0, 4:]).all()
    assert torch.isneginf(tasks[0, 4:]).all()
    assert (count.item(), status.item(), stats[0, 1].item()) == (4, 0, 4)


def test_a_negative_weight_reverses_and_nan_scores_do_not_return() -> None:
    inputs = neutral(1, torch.ones(1, DIMS))
    inputs["search"][0, 1] = RESULTS
    plain = network(schema())(**inputs)
    inputs["task_weights"][:] = -2
    turned = network(schema())(**inputs)
    assert turned[0].tolist() == plain[0].flip(1).tolist()
    np.testing.assert_allclose(turned[1].numpy(), -2 * plain[1].flip(1).numpy())
    assert torch.equal(turned[2], plain[2].flip(1))  # the task's own score keeps its sign


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("age", float("inf"), Status.USER_FEATURE),
        ("age", float("-inf"), Status.USER_FEATURE),
        ("history", -2, Status.HISTORY),
        ("exclude", -2, Status.EXCLUDE),
        ("task_weights", float("inf"), Status.TASK_WEIGHTS),
        ("search", -1, Status.SEARCH),
        ("filter", 1, Status.FILTER_FINGERPRINT),
    ],
)
def test_a_bad_row_is_empty_and_its_neighbours_are_not_touched(name: str, value: float, status: Status) -> None:
    of = schema((Feature("age", "number"),), 3, tower=True)
    served = network(of, SumTower())
    user = {"age": torch.tensor([[1.0], [2.0], [3.0]]), "history": torch.tensor([[-1, 1], [-1, 2], [-1, -1]])}
    good = served(**user, **neutral(3))
    assert good[4].tolist() == [[0]] * 3
    inputs = {key: tensor.clone() for key, tensor in {**user, **neutral(3)}.items()}
    inputs[name][1] = value
    mixed = served(**inputs)
    assert mixed[4].tolist() == [[0], [int(status)], [0]]
    assert mixed[0][1].tolist() == [-1] * RESULTS
    assert (mixed[3][1].item(), mixed[5][1].tolist()) == (0, [0, 0, 0, 0])
    for one, other in zip(good, mixed, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])


def test_the_first_of_several_faults_is_reported() -> None:
    of = schema((Feature("age", "number"),), 3, tower=True)
    inputs = {"age": torch.tensor([[float("inf")], [NAN]]), "history": torch.tensor([[-5], [-5]]), **neutral(2)}
    inputs["search"][:] = -1
    assert network(of, SumTower())(**inputs)[4].tolist() == [[Status.USER_FEATURE], [Status.HISTORY]]


def test_a_tower_that_gives_no_number_spoils_its_own_row_only() -> None:
    class Nan(nn.Module):
        def forward(self, features: list[Tensor], history: Tensor) -> Tensor:
            return features[0].expand(-1, 6)

    of = schema((Feature("age", "number"),), 0, tower=True)
    outputs = network(of, Nan())(age=torch.tensor([[1.0], [NAN]]), **neutral(2))
    assert outputs[4].tolist() == [[0], [Status.QUERY]]
    assert outputs[0][0].tolist() == exact(VECTORS, np.ones(DIMS, np.float32), RESULTS)


class LookUp(nn.Module):
    """A tower of one's own that takes any item id, and -1 for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ITEMS + 1, DIMS)

    def forward(self, history: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(history + 1)
        return embedded.sum(1)


def test_a_bad_history_does_not_make_an_own_tower_raise_for_its_neighbours() -> None:
    served = network(schema((), 3, tower=True), torch.jit.script(LookUp()))
    outputs = served(history=torch.tensor([[1, 2], [-5, 2]]), **neutral(2))
    assert outputs[4].tolist() == [[0], [Status.HISTORY]]
    assert outputs[3].tolist() == [[RESULTS], [0]]


def test_two_schemas_in_one_process_keep_their_own_forward() -> None:
    """TorchScript shares types between modules that look alike."""
    one = network(schema((Feature("a", "number"),), 0, tower=True), SumTower())
    two = network(schema((Feature("b", "number"),), 2, tower=True), SumTower())
    names = [[argument.name for argument in net.forward.schema.arguments[1:3]] for net in (one, two)]
    assert names == [["a", "filter"], ["b", "history"]]
