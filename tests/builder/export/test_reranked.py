"""Two tasks from interactions to the order of results: labels, reranker, formula, weights of a request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from builder.config import Config
from builder.data.synthetic import synthetic
from builder.export.artifact import export
from builder.export.manifest import read_manifest
from builder.export.sources import read_source
from builder.export.tune import tune
from builder.training.run import TrainedRun, load, train
from tests.builder.artifacts import ask

USERS, RESULTS = 40, 30
SETTINGS = """
tasks: {watch: true, long_view: seconds > 60}
training: {epochs: 2, batch: 256, negatives: 64, learning_rate: 0.01}
rerank: {epochs: 3, learning_rate: 0.01, candidates: 100, patience: 3}
index: {results: 30, clusters: 8}
value: "0.7 * watch + 0.3 * long_view * log(1 + coalesce(price, 0))"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, Path]:
    """A run and the version exported from it."""
    folder = tmp_path_factory.mktemp("two-tasks")
    config = synthetic(folder / "data", users=400, items=600, seed=2)
    events = folder / "data" / "interactions.parquet"
    table = pq.read_table(events)
    seconds = pa.array(table["item_id"].to_numpy() % 120)  # of the item alone: half of them are seen for long
    pq.write_table(table.append_column("seconds", seconds), events)
    config.write_text(config.read_text() + SETTINGS)
    run = train(Config.load(config), folder / "run", False)
    return load(run), export(read_source(run), folder / "repository", model="retrieval")


def requests(trained: TrainedRun, weights: list[float]) -> dict[str, torch.Tensor]:
    asking = trained.held_out(sample=USERS)
    longest = int(asking.exclude.lengths.max())
    return {
        **{name: torch.from_numpy(array) for name, array in asking.features.items()},
        "history": torch.from_numpy(asking.history),
        "filter": torch.zeros(USERS, 2, dtype=torch.int64),
        "exclude": torch.from_numpy(asking.exclude.padded(longest)),
        "task_weights": torch.tensor([weights] * USERS),
        "search": torch.tensor([[8, 600]] * USERS, dtype=torch.int32),  # everything is a candidate
    }


def values_by_hand(trained: TrainedRun, ids: torch.Tensor, tasks: np.ndarray, weights: list[float]) -> np.ndarray:
    price = next(column for column in trained.catalogue.columns if column.feature.name == "price").values
    logs = np.log1p(np.nan_to_num(price[trained.catalogue.find(ids.numpy())], nan=0.0))
    watch, long_view = (tasks[:, :, t].astype(np.float64) * weights[t] for t in (0, 1))
    return 0.7 * watch + 0.3 * long_view * logs


def test_a_request_weighs_the_tasks(trained: tuple[TrainedRun, Path]) -> None:
    run, version = trained
    orders = []
    for weights in ([float("nan")] * 2, [1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]):
        ids, values, tasks, count, status, _ = ask(version, requests(run, weights))
        assert (count == RESULTS).all()
        assert (status == 0).all()
        used = [1.0, 1.0] if np.isnan(weights[0]) else weights
        np.testing.assert_allclose(values, values_by_hand(run, ids, tasks.numpy(), used), rtol=1e-4, atol=1e-6)
        assert (values.diff(dim=1) <= 0).all()
        orders.append(ids)
    assert not any(torch.equal(orders[0], other) for other in orders[1:])


def test_task_scores_are_those_of_the_trained_reranker(trained: tuple[TrainedRun, Path]) -> None:
    run, version = trained
    assert run.reranker is not None
    inputs = requests(run, [float("nan")] * 2)
    ids, _, tasks, _, _, _ = ask(version, inputs)
    items = torch.from_numpy(run.catalogue.find(ids.numpy()))
    vectors = torch.from_numpy(np.array(run.item_vectors[items.numpy()]))
    query = run.queries(run.held_out(sample=USERS))
    history = torch.from_numpy(np.where(inputs["history"] >= 0, run.catalogue.find(inputs["history"].numpy()), -1))
    with torch.no_grad():
        logits = run.reranker(query, history, items, vectors, (vectors * query.unsqueeze(1)).sum(2))
    np.testing.assert_allclose(tasks, logits.sigmoid(), atol=2e-3)  # rows and item sides are float16
    assert logits[:, :, 0].std() > 0


def test_no_more_of_a_history_counts_than_is_read(trained: tuple[TrainedRun, Path]) -> None:
    """Clients cut histories; one that sends older items too, or ids that no item has, gets the same answers."""
    run, version = trained
    inputs = requests(run, [float("nan")] * 2)
    history = inputs["history"].clone()
    history[:, -1] = torch.from_numpy(run.catalogue.ids[:USERS])  # nobody's is empty
    history[:, 2::5] = -1
    plain = ask(version, {**inputs, "history": history})
    unknown = torch.where(history < 0, 10**12, history)
    older = torch.cat([torch.from_numpy(run.catalogue.ids[-70:]).expand(USERS, -1), unknown], 1)
    for sent in (unknown, older):
        for one, other in zip(ask(version, {**inputs, "history": sent}), plain, strict=True):
            assert torch.equal(one, other)
    longer = torch.where(older == 10**12, torch.from_numpy(run.catalogue.ids[100:101]), older)
    assert not torch.equal(ask(version, {**inputs, "history": longer})[2], plain[2])


def test_nothing_left_to_rank(trained: tuple[TrainedRun, Path]) -> None:
    """All excluded, and all but two: a normal answer of as many results, beside others of the batch."""
    run, version = trained
    inputs = requests(run, [float("nan")] * 2)
    plain = ask(version, inputs)
    ids = torch.from_numpy(run.catalogue.ids)
    exclude = torch.full((USERS, len(ids)), -1)
    exclude[:, : inputs["exclude"].shape[1]] = inputs["exclude"]
    exclude[0], exclude[1] = ids, ids
    exclude[1, :2] = -1
    found, values, tasks, count, status, _ = ask(version, {**inputs, "exclude": exclude})
    assert status.sum() == 0
    assert count[:3, 0].tolist() == [0, 2, RESULTS]
    assert (found[0] == -1).all()
    assert torch.isneginf(values[0]).all()
    assert torch.isneginf(tasks[0]).all()
    assert sorted(found[1, :2].tolist()) == sorted(ids[:2].tolist())
    assert (found[1, 2:] == -1).all()
    for one, other in zip((found, values, tasks), plain, strict=False):
        torch.testing.assert_close(one[2:], other[2:], rtol=0, atol=1e-6)


def test_figures_and_calibration_are_reported(trained: tuple[TrainedRun, Path]) -> None:
    run, version = trained
    report = json.loads((version.parents[2] / "run" / "report.json").read_text())
    assert report["calibration"].keys() == {"watch", "long_view"}
    for measured in report["calibration"].values():
        assert sum(measured["count"]) > 10_000
        assert 0 <= measured["ece"] < 0.05
    assert run.figures["rerank_test_recall_at_20"] > 0
    assert read_manifest(version).index.bytes["reranker"] > 0


def test_tune_keeps_its_candidates(trained: tuple[TrainedRun, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.export.calibrate._exact_rows", lambda search, queries: 0)
    version = trained[1]
    tuned = tune(read_source(version.parents[2] / "run"), version.parents[1], recall=0.9, write=False)
    assert tuned.chosen.candidates == read_manifest(version).index.candidates == 4 * RESULTS
