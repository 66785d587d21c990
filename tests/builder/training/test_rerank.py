"""Training of the reranker: what it is shown, its loss, and that it learns what the search cannot know."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builder.config import Rerank
from builder.data.catalogue import Catalogue
from builder.data.lists import Lists
from builder.data.splits import HeldOut
from builder.errors import BuilderError
from builder.evaluation.exact import exact_search
from builder.network.neighbours import Neighbours
from builder.network.rerank import Reranker
from builder.training import checkpoint, rerank
from builder.training.logging import RunLog
from builder.training.rerank import Candidates, Miner, best_items, listwise_and_pointwise, probabilities, train_reranker
from tests.builder.training.test_logging import read as scalars

ITEMS, DIMS, USERS = 300, 8, 120
CPU = torch.device("cpu")


def make(kind: str, hidden: int) -> Reranker:
    graph = Neighbours(torch.empty(ITEMS, 0, dtype=torch.int32), torch.empty(ITEMS, 0), history=4)
    popularity = np.ones(ITEMS, np.int64)
    return Reranker(kind, (), popularity, dims=DIMS, tasks=1, hidden=hidden, neighbours=graph)  # type: ignore[arg-type]


def lists(rows: list[list[int]]) -> Lists:
    return Lists(np.cumsum([0, *map(len, rows)]), np.array([value for row in rows for value in row], np.int64))


def made(seed: int) -> tuple[Catalogue, np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(seed)
    catalogue = Catalogue(np.arange(ITEMS) * 2 + 5, (), np.arange(ITEMS))
    vectors = rng.normal(size=(ITEMS, DIMS)).astype(np.float32)
    return catalogue, vectors, torch.from_numpy(rng.normal(size=(USERS, DIMS)).astype(np.float32))


def test_candidates_are_what_exact_search_finds_without_what_was_seen() -> None:
    catalogue, vectors, queries = made(0)
    rng = np.random.default_rng(1)
    seen = lists([sorted(rng.choice(ITEMS, u % 7, replace=False).tolist()) for u in range(USERS)])
    targets = lists([rng.choice(ITEMS, u % 4, replace=False).tolist() for u in range(USERS)])
    labels = rng.random((len(targets.values), 2)) < 0.5
    held_out = HeldOut(np.arange(USERS, dtype=np.int32), seen, seen, targets, labels)
    found = Miner(catalogue, vectors, 400, seed=0).candidates(queries, held_out, 4)
    assert found.items.shape == (USERS, ITEMS)  # no more than there are
    assert found.history.tolist() == seen.padded(4).tolist()
    expected, scores = exact_search(queries, vectors, ITEMS, exclude=seen)
    for u in range(USERS):
        left = ITEMS - u % 7
        assert (found.items[u, left:] == -1).all()
        assert set(found.items[u, :left].tolist()) == set(expected[u, :left].tolist())
        np.testing.assert_allclose(found.scores[u, :left], scores[u, :left], atol=0.02)
        of_target = dict(zip(targets[u].tolist(), labels[targets.owners == u].tolist(), strict=True))
        assert found.labels[u].tolist() == [of_target.get(item, [False, False]) for item in found.items[u].tolist()]


def test_loss_by_hand() -> None:
    logits = torch.tensor([[[1.0, -1.0], [0.0, 2.0], [9.0, 9.0]]])
    labels = torch.tensor([[[True, False], [False, True], [True, True]]])  # the third is no candidate
    real = torch.tensor([[True, True, False]])

    def bce(logit: float, label: bool) -> float:
        return math.log1p(math.exp(-logit if label else logit))

    pointwise = bce(1, True) + bce(-1, False) + bce(0, False) + bce(2, True)
    listwise = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))
    assert float(listwise_and_pointwise(logits, labels, real)) == pytest.approx((pointwise + listwise) / 2)


def test_a_user_of_whom_all_is_masked_leaves_loss_and_gradient_alone() -> None:
    """Without any candidate there is nothing to learn, and nothing that is no number."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 1, requires_grad=True)
    labels = torch.tensor([[[True], [False], [False]], [[False], [False], [False]]])
    real = torch.tensor([[True, True, True], [False, False, False]])
    loss = listwise_and_pointwise(logits, labels, real)
    loss.backward()
    alone = logits.detach()[:1].clone().requires_grad_()
    expected = listwise_and_pointwise(alone, labels[:1], real[:1])
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:1], alone.grad)
    assert logits.grad[1].abs().sum() == 0


def test_candidates_of_a_user_who_has_seen_everything() -> None:
    catalogue, vectors, queries = made(2)
    everything, nothing = list(range(ITEMS)), list[int]()
    seen = lists([everything, nothing, everything])
    held_out = HeldOut(np.arange(3, dtype=np.int32), seen, seen, lists([[1], [2], []]), np.ones((2, 1), bool))
    found = Miner(catalogue, vectors, 50, seed=0).candidates(queries[:3], held_out, 4)
    assert (found.items[[0, 2]] == -1).all()
    assert torch.isneginf(found.scores[[0, 2]]).all()
    assert not found.labels[[0, 2]].any()
    assert (found.items[1] >= 0).all()
    value = probabilities(make("mlp", 8).eval(), found, vectors)
    assert torch.isfinite(value).all()
    assert (best_items(found.items, value.sum(2), 20)[[0, 2]] == -1).all()


@pytest.mark.parametrize("positive", [False, True])
def test_a_task_of_one_label_begins_with_what_it_always_is(positive: bool) -> None:
    candidates, _, _ = planted(3)
    labels = torch.cat([candidates.labels, torch.full_like(candidates.labels, positive)], 2)
    graph = Neighbours(torch.empty(ITEMS, 0, dtype=torch.int32), torch.empty(ITEMS, 0), history=4)
    reranker = Reranker("mlp", (), np.ones(ITEMS, np.int64), dims=DIMS, tasks=2, hidden=8, neighbours=graph)
    rerank._begin_with_scores(reranker, dataclasses.replace(candidates, labels=labels))
    scores = torch.tensor([[-3.0, 0.0, 7.0]])
    chance = reranker.scorer.retrieved(scores).sigmoid()
    assert chance[0, :, 0].std() > 0
    rare = 1 / (20 * USERS + 2)
    np.testing.assert_allclose(chance[0, :, 1].detach(), 1 - rare if positive else rare, rtol=1e-4)


def test_best_items() -> None:
    items = torch.tensor([[4, 7, -1, 2]])
    value = torch.tensor([[0.5, 0.9, 5.0, 0.5]])
    assert best_items(items, value, 2).tolist() == [[7, 4]]
    assert best_items(items, value, 6).tolist() == [[7, 4, 2, -1, -1, -1]]


def planted(seed: int) -> tuple[Candidates, HeldOut, np.ndarray]:
    """Candidates of which the one whose vector has a large second component is taken, whatever its score."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(ITEMS, DIMS)).astype(np.float32)
    items = np.stack([rng.choice(ITEMS, 20, replace=False) for _ in range(USERS)])
    best = vectors[items][:, :, 1].argmax(1)
    targets = lists([[int(items[u, best[u]])] for u in range(USERS)])
    held_out = HeldOut(np.arange(USERS, dtype=np.int32), targets, targets, targets, np.ones((USERS, 1), bool))
    labels = torch.from_numpy((np.arange(20) == best[:, None])[:, :, None])
    scores = torch.from_numpy(np.sort(rng.normal(size=(USERS, 20)).astype(np.float32))[:, ::-1].copy())
    queries = torch.from_numpy(rng.normal(size=(USERS, DIMS)).astype(np.float32))
    nothing = torch.full((USERS, 1), -1)
    return Candidates(queries, nothing, torch.from_numpy(items), scores, labels), held_out, vectors


@pytest.mark.parametrize("kind", ["mlp", "mol"])
def test_it_learns_what_the_search_cannot_know(kind: str) -> None:
    candidates, held_out, vectors = planted(0)
    settings = Rerank.model_validate({"kind": kind, "epochs": 60, "learning_rate": 0.01, "patience": 60})
    torch.manual_seed(0)
    reranker = make(kind, 32)
    figures = train_reranker(reranker, candidates, held_out, vectors, settings, seed=0, device=CPU)
    assert figures["rerank_validation_ndcg_at_20"] > figures["rerank_validation_ndcg_at_20_before"] + 0.2
    again = make(kind, 32)
    again.load_state_dict(reranker.state_dict())
    one, other = (probabilities(of.eval(), candidates, vectors) for of in (reranker, again))
    assert torch.equal(one, other)
    # Calibrated on the users that trained nothing: of 20 candidates one is taken.
    measured = torch.randperm(USERS, generator=torch.Generator().manual_seed(0))[: round(rerank.MEASURED_SHARE * USERS)]
    assert float(one[measured].mean()) == pytest.approx(1 / 20, rel=0.1)


def test_the_graph_alone_is_enough_for_what_it_tells() -> None:
    """The item after that of the history is taken; vectors are not read: there are none."""
    candidates, held_out, _ = planted(2)
    rng = np.random.default_rng(2)
    place = torch.from_numpy(rng.integers(0, 20, USERS))
    followers = candidates.items[torch.arange(USERS), place]
    history = ((followers - 1) % ITEMS).unsqueeze(1)
    labels = (torch.arange(20) == place.unsqueeze(1)).unsqueeze(2)
    targets = lists([[item] for item in followers.tolist()])
    held_out = dataclasses.replace(held_out, targets=targets)
    candidates = dataclasses.replace(candidates, history=history, labels=labels)
    after = Neighbours(
        (torch.arange(ITEMS, dtype=torch.int32) + 1).unsqueeze(1) % ITEMS, torch.ones(ITEMS, 1), history=4
    )
    torch.manual_seed(0)
    reranker = Reranker("graph", (), np.ones(ITEMS, np.int64), dims=DIMS, tasks=1, hidden=16, neighbours=after)
    settings = Rerank(kind="graph", epochs=20, learning_rate=0.01)
    none = np.empty((0, DIMS), np.float32)
    figures = train_reranker(reranker, candidates, held_out, none, settings, seed=0, device=CPU)
    assert figures["rerank_validation_ndcg_at_20_before"] < 0.6
    assert figures["rerank_validation_ndcg_at_20"] > 0.99


def test_where_nothing_is_better_the_order_of_the_search_stays() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(ITEMS, DIMS)).astype(np.float32)
    items = np.stack([rng.choice(ITEMS, 20, replace=False) for _ in range(USERS)])
    targets = lists([[int(items[u, 0])] for u in range(USERS)])  # always the first
    held_out = HeldOut(np.arange(USERS, dtype=np.int32), targets, targets, targets, np.ones((USERS, 1), bool))
    labels = torch.zeros(USERS, 20, 1, dtype=torch.bool)
    labels[:, 0] = True
    scores = torch.linspace(1, 0, 20).expand(USERS, 20).contiguous()
    nothing = torch.full((USERS, 1), -1)
    candidates = Candidates(torch.randn(USERS, DIMS), nothing, torch.from_numpy(items), scores, labels)
    reranker = make("mlp", 8)
    figures = train_reranker(reranker, candidates, held_out, vectors, Rerank(epochs=2), seed=0, device=CPU)
    assert figures["rerank_best_epoch"] == 0
    found = probabilities(reranker, candidates, vectors)[:, :, 0]
    assert torch.equal(found.argsort(dim=1, descending=True), torch.arange(20).expand(USERS, 20))


def test_too_few_users() -> None:
    candidates, held_out, vectors = planted(1)
    chosen = torch.arange(USERS)[: rerank.FEWEST_USERS - 1]
    reranker = make("mlp", 8)
    with pytest.raises(BuilderError, match="19 validation users with a target among their candidates"):
        train_reranker(
            reranker, candidates.take(chosen), held_out.take(chosen.numpy()), vectors, Rerank(), seed=0, device=CPU
        )


def learned(file: Path | None, settings: Rerank, log: RunLog | None = None) -> tuple[Reranker, dict[str, float]]:
    candidates, held_out, vectors = planted(0)
    torch.manual_seed(0)
    reranker = make("mlp", 16)
    figures = train_reranker(
        reranker, candidates, held_out, vectors, settings, seed=0, device=CPU, checkpoint=file, log=log
    )
    return reranker, figures


@pytest.mark.parametrize("killed_after", [1, 5, 8])
def test_a_killed_training_resumes_to_the_same_result(
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Rerank(epochs=8, learning_rate=0.01, patience=8)
    whole, figures = learned(None, settings, RunLog(tmp_path / "whole"))
    saves = 0
    save = checkpoint.save

    def killing_save(state: dict[str, Any], path: Path) -> None:
        nonlocal saves
        save(state, path)
        saves += 1
        if saves == killed_after:
            raise KeyboardInterrupt

    file, log = tmp_path / "checkpoint.pt", RunLog(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(rerank, "save", killing_save)
        with pytest.raises(KeyboardInterrupt):
            learned(file, settings, log)
    log.close()
    epochs = 0
    one_epoch = rerank._epoch

    def counted(*arguments: Any) -> float:
        nonlocal epochs
        epochs += 1
        return one_epoch(*arguments)

    monkeypatch.setattr(rerank, "_epoch", counted)
    resumed, again = learned(file, settings, RunLog(tmp_path / "killed"))
    assert epochs == 8 - killed_after
    assert again == figures
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    shown = scalars(tmp_path / "whole" / "reranker")
    assert [epoch for epoch, _ in shown["ndcg"]] == list(range(9))
    assert shown["ndcg"][0][1] == pytest.approx(figures["rerank_validation_ndcg_at_20_before"])
    assert max(value for _, value in shown["ndcg"]) == pytest.approx(figures["rerank_validation_ndcg_at_20"])
    assert scalars(tmp_path / "killed" / "reranker") == shown


def test_a_checkpoint_of_other_settings_is_no_beginning(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    _, first = learned(file, Rerank(epochs=2, learning_rate=0.01, patience=9))
    assert checkpoint.restore(file, CPU)["epoch"] == 2
    _, other = learned(file, Rerank(epochs=2, learning_rate=0.002, patience=9))
    assert other == learned(None, Rerank(epochs=2, learning_rate=0.002, patience=9))[1] != first
    longer = Rerank(epochs=4, learning_rate=0.002, patience=9)  # only for longer: it goes on
    assert learned(file, longer)[1] == learned(None, longer)[1]
    assert checkpoint.restore(file, CPU)["epoch"] == 4
    assert not any(name.startswith("neighbours") for name in checkpoint.restore(file, CPU)["reranker"])


def test_logistic_fit_finds_the_slope_and_the_bias() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(3.0, 5.0, size=(200_000, 2))
    chance = 1 / (1 + np.exp(-(inputs * [0.7, 0.1] + [-2.0, 0.5])))
    slope, bias = rerank._logistic_fit(
        torch.from_numpy(inputs), torch.from_numpy(rng.random(chance.shape) < chance).double()
    )
    np.testing.assert_allclose(slope, [0.7, 0.1], rtol=0.05)
    np.testing.assert_allclose(bias, [-2.0, 0.5], atol=0.05)
    slope, bias = rerank._logistic_fit(torch.from_numpy(inputs), torch.ones(inputs.shape, dtype=torch.float64))
    assert (slope.tolist(), bias.tolist()) == ([1.0, 1.0], [0.0, 0.0])
