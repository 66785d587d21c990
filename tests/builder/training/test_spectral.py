"""The spectral start against dense linear algebra, and a run that begins with it from training to export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from builder.config import Config
from builder.data.interactions import Events
from builder.data.lists import offsets_of
from builder.data.synthetic import synthetic
from builder.errors import BuilderError
from builder.evaluation.exact import exact_search
from builder.evaluation.metrics import quality
from builder.export.artifact import export
from builder.export.sources import from_run
from builder.network.towers import ItemTower, UserTower
from builder.training import run, spectral
from builder.training.trainer import Trainer
from client.hashing import UNKNOWN_KEY
from tests.builder.artifacts import ask

USERS, ITEMS, DIMS = 60, 40, 8


def drawn(seed: int) -> tuple[Events, NDArray[np.float64]]:
    """Interactions, and the same as a dense matrix [U, N]; one user and one item have none."""
    rng = np.random.default_rng(seed)
    taken = rng.random((USERS, ITEMS)) < rng.random(ITEMS) ** 2
    taken[3], taken[:, 5] = False, False
    users, items = np.nonzero(taken)
    labels = np.ones((len(items), 1), dtype=bool)
    return Events(offsets_of(users, USERS), items.astype(np.int32), None, labels), taken.astype(np.float64)


def expected_scores(taken: NDArray[np.float64], dims: int) -> NDArray[np.float64]:
    """[N, N]: what item i of a history adds to the score of item j, by the papers' formulas, up to a factor."""
    of_users, of_items = taken.sum(1), taken.sum(0)
    of_users += 0.25 * of_users[of_users > 0].mean()
    of_items += 0.25 * of_items[of_items > 0].mean()
    _, _, right = np.linalg.svd(taken / np.sqrt(np.outer(of_users, of_items)))
    return (right[:dims].T @ right[:dims]) * np.outer(of_items**-0.5, of_items**0.5)


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_closed_form(seed: int) -> None:
    events, taken = drawn(seed)
    found = spectral.decompose(events, ITEMS, dims=DIMS, seed=seed)
    scores = found.history.astype(np.float64) @ found.items.T
    expected = expected_scores(taken, DIMS)
    factor = (scores * expected).sum() / (expected**2).sum()
    np.testing.assert_allclose(scores, factor * expected, atol=2e-3 * np.abs(scores).max())
    assert np.square(found.items).sum() / np.count_nonzero(taken.sum(0)) == pytest.approx(1, rel=1e-5)
    assert not found.items[5].any()
    assert not found.history[5].any()


@pytest.mark.parametrize("rank", [3, 12, 30])
def test_singular_vectors(rank: int) -> None:
    rng = np.random.default_rng(rank)
    matrix = (rng.standard_normal((50, rank)) @ rng.standard_normal((rank, 30))).astype(np.float32)
    found = spectral.right_singular_vectors(matrix, 12, seed=0).astype(np.float64)
    _, _, right = np.linalg.svd(matrix.astype(np.float64))
    kept = min(rank, 12)
    np.testing.assert_allclose(found[:, :kept] @ found[:, :kept].T, right[:kept].T @ right[:kept], atol=1e-3)
    assert not found[:, kept:].any()


def test_towers_begin_with_it() -> None:
    events, taken = drawn(0)
    ids = np.arange(ITEMS) * 10
    user = UserTower((), ids, dims=DIMS, history_length=ITEMS).eval()
    item = ItemTower((), ITEMS, dims=DIMS, unit=False)
    spectral.start_towers(user, item, events, seed=0)
    histories = np.where(taken[:8] > 0, ids, -1)
    histories[3] = -1  # nobody
    histories[4] = 1  # an id that no item has
    found = (user([], torch.from_numpy(histories)).detach().numpy() @ item.vectors().T).astype(np.float64)
    for row, history in enumerate(taken[:8]):
        known = taken.sum(0) if row in (3, 4) else history  # of whom nothing is known: the mean user
        expected = known @ expected_scores(taken, DIMS)
        cosine = found[row] @ expected / np.linalg.norm(found[row]) / np.linalg.norm(expected)
        assert cosine == pytest.approx(1, abs=1e-4), row


def test_more_dims_than_there_are() -> None:
    events, taken = drawn(0)
    items = np.count_nonzero(taken.sum(0))
    assert 30 < items < ITEMS
    message = rf"network.dims: got 40, expected at most {items}: a spectral start needs .*\n  Lower it"
    with pytest.raises(BuilderError, match=message):
        spectral.decompose(events, ITEMS, dims=40, seed=0)


TRAINING = {"start": "spectral", "epochs": 0, "batch": 256, "negatives": 64, "learning_rate": 0.001}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With features of users and items, a user id and times."""
    return synthetic(tmp_path_factory.mktemp("data"), users=400, items=300, seed=1)


def config(data: Path, **training: Any) -> Config:
    raw = Config.load(data).model_dump()
    raw["training"] = {**TRAINING, **training}
    raw["index"] = {"results": 20, "clusters": 6}
    return Config.model_validate(raw)


@pytest.fixture(scope="module")
def untrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.train(config(data), tmp_path_factory.mktemp("runs") / "start", False)


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / run.METRICS).read_text().splitlines()]


def popular(loaded: run.TrainedRun) -> float:
    """Validation recall at 20 of the most popular items."""
    validation = loaded.dataset.validation
    popularity = np.bincount(loaded.dataset.train.items, minlength=300).astype(np.float32)
    found, _ = exact_search(np.ones((len(validation), 1)), popularity[:, None], 20, exclude=validation.seen)
    return quality(found, validation.targets).recall


def test_without_epochs_the_start_is_the_result(untrained: Path) -> None:
    loaded = run.load(untrained)
    (line,) = log_of(untrained)
    assert line == {"epoch": 0, "recall": line["recall"], "ndcg": line["ndcg"], "seconds": line["seconds"]}
    assert line["seconds"] > 0
    assert loaded.figures["best_epoch"] == loaded.figures["epochs"] == 0
    assert loaded.figures["validation_recall_at_20"] == line["recall"] > 1.15 * popular(loaded)
    lengths = np.linalg.norm(loaded.item_vectors, axis=1)
    assert lengths.max() > 2 * np.median(lengths)
    expected = spectral.decompose(loaded.dataset.train, 300, dims=loaded.config.network.dims, seed=0)
    np.testing.assert_array_equal(loaded.item_vectors, expected.items)


def test_features_add_nothing_until_they_are_trained(untrained: Path) -> None:
    loaded = run.load(untrained)
    asking = loaded.held_out("test")
    strangers = run.Requests(
        {
            feature.name: np.full_like(array, UNKNOWN_KEY if feature.kind == "category" else np.nan)
            for feature, array in zip(loaded.user_features, asking.features.values(), strict=True)
        },
        asking.history,
        asking.exclude,
        asking.targets,
    )
    torch.testing.assert_close(loaded.queries(strangers), loaded.queries(asking))


def test_training_has_to_beat_the_start(data: Path, untrained: Path, tmp_path: Path) -> None:
    start = log_of(untrained)[0]
    better = run.train(config(data, epochs=2), tmp_path / "better", False)
    log = log_of(better)
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert {**start, "seconds": log[0]["seconds"]} == log[0]
    assert run.load(better).figures["validation_recall_at_20"] == max(line["recall"] for line in log)
    worse = run.train(config(data, epochs=9, patience=2, learning_rate=3.0), tmp_path / "worse", False)
    assert [line["epoch"] for line in log_of(worse)] == [0, 1, 2]
    assert run.load(worse).figures["best_epoch"] == 0
    np.testing.assert_array_equal(run.load(worse).item_vectors, run.load(untrained).item_vectors)


def test_a_run_goes_on_from_where_it_was(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(data, epochs=2)
    whole = run.train(settings, tmp_path / "whole", False)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.train(settings, tmp_path / "killed", False)
    assert [line["epoch"] for line in log_of(tmp_path / "killed")] == [0]
    monkeypatch.setattr(run, "start_towers", None)  # not again
    resumed = run.train(settings, tmp_path / "killed", True)
    np.testing.assert_array_equal(np.load(resumed / run.VECTORS), np.load(whole / run.VECTORS))
    assert [line["recall"] for line in log_of(resumed)] == [line["recall"] for line in log_of(whole)]


def test_the_artifact_answers_as_the_run(untrained: Path, tmp_path: Path) -> None:
    """Item vectors of different lengths, codes and clusters included."""
    loaded = run.load(untrained)
    version = export(from_run(loaded), tmp_path / "repository", model="retrieval")
    asking = loaded.held_out("test", sample=100)
    inputs = {
        **{name: torch.from_numpy(array) for name, array in asking.features.items()},
        "history": torch.from_numpy(asking.history),
        "filter": torch.zeros(100, 2, dtype=torch.int64),
        "exclude": torch.full((100, 1), -1),
        "task_weights": torch.full((100, 1), float("nan")),
        "search": torch.tensor([[6, 300]] * 100, dtype=torch.int32),
    }
    inputs["history"][7] = -1
    ids, scores, _, count, status, _ = ask(version, inputs)
    assert (status == 0).all()
    assert (count == 20).all()
    asking.history[7] = -1
    exact = loaded.queries(asking).numpy() @ loaded.item_vectors.T
    at = loaded.catalogue.find(ids.numpy())
    np.testing.assert_allclose(scores, np.take_along_axis(exact, at, axis=1), atol=1e-3)
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :20], atol=1e-3)
    popularity = np.bincount(loaded.dataset.train.items, minlength=300)
    assert popularity[at[7]].min() > np.median(popularity[popularity > 0])


def test_without_times_and_features(data: Path, tmp_path: Path) -> None:
    raw = config(data).model_dump()
    raw["data"] |= {"users": None, "interactions": {**raw["data"]["interactions"], "time": None}}
    raw["data"]["items"]["features"] = []
    raw["network"]["user_id"] = False
    loaded = run.load(run.train(Config.model_validate(raw), tmp_path / "run", False))
    assert loaded.figures["validation_recall_at_20"] > 1.15 * popular(loaded)
