"""A version asked in this process answers as its parts do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.config import Config
from builder.data.synthetic import synthetic
from builder.evaluation.exact import exact_search
from builder.evaluation.in_process import Answers, artifact_search
from builder.export.artifact import export
from builder.export.repository import version_of_run
from builder.export.sources import from_run
from builder.training.run import Lists, TrainedRun, load, train
from tests.builder.export.test_reranked import SETTINGS

RESULTS = 30  # of SETTINGS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, Path, Answers]:
    folder = tmp_path_factory.mktemp("in-process")
    config = synthetic(folder / "data", users=300, items=500, seed=3)
    events = folder / "data" / "interactions.parquet"
    table = pq.read_table(events)
    table = table.append_column("seconds", pa.array(table["item_id"].to_numpy() % 120))
    pq.write_table(table, events)
    config.write_text(config.read_text() + SETTINGS)
    run = load(train(Config.load(config), folder / "run", False))
    version = export(from_run(run), folder / "repository")
    asked: list[int] = []
    answers = artifact_search(version, run.held_out(), run.catalogue, on_requests=asked.append)
    assert sum(asked) == len(run.held_out())
    return run, version, answers


def test_the_index_gives_the_order_of_the_towers(made: tuple[TrainedRun, Path, Answers]) -> None:
    run, _, answers = made
    asking = run.held_out()
    seen = Lists(asking.exclude.offsets, run.catalogue.find(asking.exclude.values))
    exact, _ = exact_search(run.queries(asking), run.item_vectors, 20, exclude=seen)
    assert answers.index.shape[1] >= 4 * RESULTS  # all that the reranker sees
    found = answers.index[:, :20]
    same = [len(set(one) & set(other)) / 20 for one, other in zip(exact.tolist(), found.tolist(), strict=True)]
    assert np.mean(same) > 0.97
    of_found = np.einsum("qd,qkd->qk", run.queries(asking).numpy(), run.item_vectors[found])
    assert (np.diff(of_found) < 1e-3).all()
    for row in range(len(asking)):
        assert not set(answers.index[row].tolist()) & set(seen[row].tolist())


def test_results_are_candidates_in_another_order(made: tuple[TrainedRun, Path, Answers]) -> None:
    run, _, answers = made
    assert answers.orders == ("reranker", "value formula")
    assert answers.results.shape == (len(run.held_out()), RESULTS)
    for found, candidates in zip(answers.results.tolist(), answers.index.tolist(), strict=True):
        assert set(found) <= set(candidates)
    assert (answers.results != answers.index[:, :RESULTS]).any(1).mean() > 0.9


def test_the_newest_version_of_the_run_is_found(made: tuple[TrainedRun, Path, Answers]) -> None:
    run, version, _ = made
    repository, name = version.parents[1], run.config.name
    assert version_of_run(repository, "retrieval", name, run.figures) == version
    assert version_of_run(repository, "retrieval", name, {**run.figures, "seconds": -1.0}) is None
    assert version_of_run(repository, "retrieval", "other", run.figures) is None
    assert version_of_run(repository, "nothing", name, run.figures) is None
