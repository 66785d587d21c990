"""Rerankers against slow readings of their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builder import ops
from builder.data.columns import CategoryColumn, NumberColumn, TagsColumn
from builder.network.neighbours import FEATURES, Neighbours
from builder.network.rerank import (
    COMPONENT_DIMS,
    COMPONENTS,
    Calibration,
    Kind,
    Reranker,
    Reranking,
    RetrievalScore,
)
from builder.network.vocabulary import Vocabulary
from client.schema import Feature

ITEMS, DIMS, TASKS, HIDDEN = 50, 6, 2, 8
COLUMNS = (
    CategoryColumn(Feature("colour", "category", "integer"), np.arange(ITEMS) % 4),
    TagsColumn(Feature("tags", "tags", "integer"), np.arange(ITEMS + 1) * 2, np.tile([1, 7], ITEMS)),
    NumberColumn(Feature("price", "number"), np.linspace(0.0, 9.0, ITEMS)),
)


def perturbed(module: nn.Module, seed: int) -> None:
    """Weights that are nowhere zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)


def graph() -> Neighbours:
    """Each item's neighbours are the two after it, with weights of their own."""
    ops.load()
    items = torch.arange(ITEMS, dtype=torch.int32)
    rows = torch.stack([(items + 1) % ITEMS, (items + 2) % ITEMS], dim=1)
    return Neighbours(rows, torch.rand(ITEMS, 2, generator=torch.Generator().manual_seed(9)), history=3)


def make(kind: Kind, seed: int = 0) -> Reranker:
    popularity = np.arange(ITEMS) ** 2
    reranker = Reranker(kind, COLUMNS, popularity, dims=DIMS, tasks=TASKS, hidden=HIDDEN, neighbours=graph())
    perturbed(reranker, seed)
    calibration = reranker.scorer.calibration
    calibration.temperature.copy_(torch.tensor([0.5, 2.0]))
    calibration.bias.copy_(torch.tensor([-1.0, 3.0]))
    return reranker.eval()


def request(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """query [3, D], history [3, 4], items [3, 7] with repeats between users, their vectors, scores."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(3, DIMS, generator=generator)
    items = torch.stack([torch.randperm(ITEMS, generator=generator)[:7] for _ in range(3)])
    history = torch.tensor([[-1, 3, 4, -1], [5, 6, 7, 8], [-1, -1, -1, -1]])
    history[0, 1] = items[0, 0] - 1 if items[0, 0] > 0 else ITEMS - 1
    history[1, 0] = items[1, 2] - 1 if items[1, 2] > 0 else ITEMS - 1  # the fourth newest: one too many
    history[1, 3] = items[1, 3] - 2 if items[1, 3] > 1 else ITEMS - 1
    vectors = torch.randn(ITEMS, DIMS, generator=generator)[items]
    return query, history, items, vectors, torch.randn(3, 7, generator=generator)


def slow_features(history: list[int], items: list[int], scores: np.ndarray) -> np.ndarray:
    """[M, 5] of one request, in float64."""
    weights = graph().weights.double().numpy()
    sums, maxima = np.zeros(len(items)), np.zeros(len(items))
    for seen in [item for item in history if item >= 0][-3:]:
        for j in (0, 1):
            for m, item in enumerate(items):
                if item == (seen + j + 1) % ITEMS:
                    sums[m] += weights[seen, j]
                    maxima[m] = max(maxima[m], weights[seen, j])
    length = min(max(sum(item >= 0 for item in history), 1), 3)
    logs = [np.log10(values + 1e-3) for values in (sums, maxima)]
    return np.stack([scores.astype(np.float64), sums / length**0.5, maxima, *logs], axis=1)


def slow_logits(
    reranker: Any, query: Tensor, history: Tensor, item: int, vector: Tensor, score: float, features: np.ndarray
) -> np.ndarray:
    """The logits [T] of one candidate of one user, in float64."""
    kept = reranker.items_kept(torch.tensor([item]), vector[None])[0].double().numpy()
    state = {name: tensor.double().numpy() for name, tensor in reranker.scorer.state_dict().items()}
    user, item_vector = query.double().numpy(), vector.double().numpy()

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(state[f"{name}.weight"] @ x + state.get(f"{name}.bias", 0.0))

    logits = score * state["retrieved.scale"] + state["retrieved.bias"]
    if reranker.kind in ("mlp", "graph"):
        known = np.array([np.log1p(min(int((history >= 0).sum()), 3))])
        first = linear("user", user) + linear("product", user * item_vector) + kept if reranker.kind == "mlp" else kept
        first = np.maximum(first + linear("length", known) + linear("features", features), 0)
        logits = logits + linear("last", np.maximum(linear("second", first), 0)) + linear("skip", features)
    else:
        users = linear("user", user).reshape(COMPONENTS, COMPONENT_DIMS)
        users /= np.linalg.norm(users, axis=1, keepdims=True)
        parts = kept[: COMPONENTS * COMPONENT_DIMS].reshape(COMPONENTS, COMPONENT_DIMS)
        pairs = np.array([float(part @ u) for part in parts for u in users])
        gates = linear("pair_gates", pairs) + kept[COMPONENTS * COMPONENT_DIMS :]
        gates = gates + linear("user_gates.2", np.maximum(linear("user_gates.0", user), 0))
        gates = np.exp(gates.reshape(TASKS, -1))
        gates /= gates.sum(1, keepdims=True)
        logits = logits + (gates @ pairs) * state["mixed"] + linear("skip", features)
    return np.asarray(logits / state["calibration.temperature"] + state["calibration.bias"])


@pytest.mark.parametrize("kind", ["mlp", "mol", "graph"])
def test_logits(kind: Kind) -> None:
    reranker = make(kind)
    query, history, items, vectors, scores = request(1)
    with torch.no_grad():
        logits = reranker(query, history, items, vectors, scores)
        assert logits.shape == (3, 7, TASKS)
        for b in range(3):
            features = slow_features(history[b].tolist(), items[b].tolist(), scores[b].numpy())
            assert features.shape == (7, FEATURES)
            assert b == 2 or features[:, 1].any()  # the graph says something
            for m in range(7):
                expected = slow_logits(
                    reranker, query[b], history[b], int(items[b, m]), vectors[b, m], float(scores[b, m]), features[m]
                )
                np.testing.assert_allclose(logits[b, m].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_item_side_reads_vector_popularity_and_features() -> None:
    item_side = make("mlp").item_side
    vectors = torch.zeros(2, DIMS)
    with torch.no_grad():
        base = item_side(torch.tensor([0, 0]), vectors)
        assert torch.equal(base[0], base[1])
        # 4 items on, colour and tags are the same: popularity and price differ.
        assert not torch.allclose(item_side(torch.tensor([4, 4]), vectors), base)
        vectors[1, 2] = 1.0
        moved = item_side(torch.tensor([0, 0]), vectors)
    torch.testing.assert_close(moved[1] - moved[0], item_side.project.weight[:, 2])


@pytest.mark.parametrize("kind", ["mlp", "mol", "graph"])
def test_an_untrained_one_keeps_the_order_of_the_search(kind: Kind) -> None:
    torch.manual_seed(0)
    popularity = np.ones(ITEMS, np.int64)
    reranker = Reranker(kind, COLUMNS, popularity, dims=DIMS, tasks=TASKS, hidden=HIDDEN, neighbours=graph())
    query, history, items, vectors, scores = request(2)
    with torch.no_grad():
        logits = reranker(query, history, items, vectors, scores)
    torch.testing.assert_close(logits, scores.unsqueeze(2).expand(-1, -1, TASKS))


@pytest.mark.parametrize(
    ("kind", "fused"), [("mlp", True), ("mlp", False), ("graph", True), ("graph", False), ("mol", False)]
)
def test_served_by_row_as_trained_by_item(kind: Kind, fused: bool) -> None:
    """`fused`: by the operator, as on a CPU; else by torch's operators, as on a GPU."""
    reranker = make(kind)
    rng = np.random.default_rng(3)
    item_of_row = np.concatenate([rng.permutation(ITEMS), np.full(14, -1)])  # two blocks of 32
    catalogue = rng.normal(size=(ITEMS, DIMS)).astype(np.float32)
    scales = torch.rand(2, 32) + 0.5
    of_rows = torch.from_numpy(np.where(item_of_row[:, None] >= 0, catalogue[item_of_row], 0.0)).float()
    halves = (of_rows / scales.view(-1, 1)).half()
    kept = reranker.keep(catalogue, chunk=16)
    row_of_item = torch.from_numpy(np.argsort(item_of_row)[14:].astype(np.int32))
    neighbours = Neighbours(row_of_item[reranker.neighbours.rows.long()], reranker.neighbours.weights, history=3)
    catalogue_ids = Vocabulary(np.arange(ITEMS) * 10)
    reranking = Reranking(reranker.scorer, kept[np.maximum(item_of_row, 0)], neighbours, catalogue_ids)
    if not fused and kind != "mol":
        del reranking.tasks
    served = torch.jit.script(reranking)
    assert ("silvertriton.rerank" in served.code) == fused
    ids = torch.from_numpy(item_of_row * 10)
    rows = torch.tensor([[3, 40, 0, -1], [7, -1, -1, -1]], dtype=torch.int32)
    query = torch.randn(2, DIMS)
    scores = torch.tensor([[3.0, 2.0, 1.0, -torch.inf], [0.5, -torch.inf, -torch.inf, -torch.inf]])
    with torch.no_grad():
        items = torch.where(rows >= 0, torch.from_numpy(item_of_row)[rows.clamp(min=0).long()], -1)
        history = torch.stack([items[0, [1, 3, 0]] - 1, torch.tensor([-1, -1, int(items[1, 0]) - 2])]).clamp(min=-1)
        found = served(
            query, torch.where(history >= 0, history * 10, -1), rows, scores, halves, scales, ids, row_of_item
        )
        vectors = torch.from_numpy(catalogue)[items.clamp(min=0)]
        expected = torch.sigmoid(reranker(query, history, items, vectors, scores.clamp(min=0)))
    assert torch.isfinite(found).all()
    real = rows >= 0
    torch.testing.assert_close(found[real], expected[real], atol=5e-3, rtol=0)  # of float16
    # What a raw client may send besides: more than the newest three, and ids that no item has.
    with torch.no_grad():
        asked = torch.tensor([[120, 130, 120, 30, 41], [-1, 120, 130, 10**12, 999]])
        read = torch.tensor([[120, 30, -1], [130, -1, -1]])
        one, other = (served(query, h, rows, scores, halves, scales, ids, row_of_item) for h in (asked, read))
        trained = torch.tensor([[9, 1, 12, 3, -1], [4, 12, 13, 5, -1]])
        given = (items, vectors, scores.clamp(min=0))
        more, newest = (reranker(query, h, *given) for h in (trained, trained[:, 1:4]))
    torch.testing.assert_close(one[real], other[real], rtol=0, atol=0)
    torch.testing.assert_close(more[real], newest[real], rtol=0, atol=0)


def test_without_a_reranker_the_score_is_that_of_the_search() -> None:
    scores = torch.randn(2, 3)
    nothing = torch.zeros(0)
    nobody = nothing.long()
    scored = torch.jit.script(RetrievalScore())(
        nothing, nobody, nothing.int(), scores, nothing.half(), nothing, nobody, nothing.int()
    )
    assert torch.equal(scored[:, :, 0], scores)


def test_calibration() -> None:
    calibration = Calibration(2)
    logits = torch.tensor([[1.0, -2.0]])
    assert torch.equal(calibration(logits), logits)
    calibration.temperature.copy_(torch.tensor([2.0, 0.5]))
    calibration.bias.copy_(torch.tensor([0.0, 1.0]))
    assert calibration(logits).tolist() == [[0.5, -3.0]]
