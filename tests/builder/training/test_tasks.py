"""Labels at their edges, from the files to the probabilities of a trained reranker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from builder.config import Config
from builder.data.synthetic import synthetic
from builder.errors import ConfigError
from builder.training.run import load, train

SETTINGS = """
tasks: {watch: true, any: seconds >= 0, first: seconds > 100}
training: {epochs: 1, batch: 256, negatives: 64, learning_rate: 0.01}
rerank: {epochs: 2, learning_rate: 0.01, candidates: 100}
"""


def test_constant_labels_are_learned_as_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`any` is always true; `first` only of each user's first interaction, which is never held out."""
    config = synthetic(tmp_path / "data", users=300, items=300, seed=5)
    events = tmp_path / "data" / "interactions.parquet"
    table = pq.read_table(events)
    table = table.sort_by([("user_id", "ascending"), ("time", "ascending")])
    first = np.diff(table["user_id"].to_numpy(), prepend=-1) != 0
    pq.write_table(table.append_column("seconds", pa.array(np.where(first, 101.0, 1.0))), events)
    config.write_text(config.read_text() + SETTINGS)
    run = load(train(Config.load(config), tmp_path / "run", False))
    said = capsys.readouterr().err
    assert "no candidate that a validation user took is positive for task 'first'" in said
    assert "for task 'any'" not in said
    assert run.reranker is not None
    held_out = run.dataset.test
    assert not held_out.labels[:, 2].any()
    assert held_out.labels[:, :2].all()
    query = run.queries(run.held_out())
    items = torch.arange(len(run.catalogue)).expand(len(query), -1)
    vectors = torch.from_numpy(np.array(run.item_vectors)).expand(len(query), -1, -1)
    history = torch.full((len(query), 1), -1)
    with torch.no_grad():
        chances = run.reranker(query, history, items, vectors, query @ vectors[0].T).sigmoid()
    watch, constant, never = chances.unbind(2)
    assert float(never.max()) < 0.001
    assert float(watch.max()) > 10 * float(never.max())
    order = [int(torch.corrcoef(torch.stack([watch[u], constant[u]]))[0, 1] * 100) for u in range(50)]
    assert np.median(order) > 90  # heads of their own, but of the same labels


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("{}", "tasks"),
        ("{like: rating}", "tasks: like: got 'rating', expected true, or a column compared with a number"),
        ("{'a b': true}", "tasks: got 'a b', expected a Python identifier"),
        ("{_like: true}", "tasks: got '_like', expected a Python identifier"),
        ("{class: true}", "tasks: got 'class', expected a Python identifier"),
        ("{like: true, watch: true}", "rerank is missing: without it tasks that share a vector have one score"),
    ],
)
def test_bad_tasks_are_found_when_the_file_is_read(tasks: str, message: str, tmp_path: Path) -> None:
    config = synthetic(tmp_path, users=20, items=30, seed=5)
    config.write_text(config.read_text() + f"tasks: {tasks}\n")
    with pytest.raises(ConfigError, match=message):
        Config.load(config)


@pytest.mark.parametrize("value", ["like + wach", "0.5 * score"])
def test_a_formula_of_an_unknown_task(value: str, tmp_path: Path) -> None:
    config = synthetic(tmp_path, users=20, items=30, seed=5)
    config.write_text(config.read_text() + f"tasks: {{like: true, watch: true}}\nrerank: {{}}\nvalue: {value}\n")
    with pytest.raises(ConfigError, match=r"value: column \d: unknown name '(wach|score)'; expected one of like"):
        Config.load(config)
