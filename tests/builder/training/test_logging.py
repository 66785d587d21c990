"""Figures for TensorBoard, read with its own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from builder.training.logging import RunLog


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: step and value of each scalar."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_what_is_written_is_shown(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    assert not (tmp_path / "log").exists()
    log.write("towers", 20, {"loss": 2.5})
    log.write("towers", 40, {"loss": 2.0, "recall": 0.25})
    log.write("reranker", 1, {"loss": 7.0})
    log.flush()
    assert read(tmp_path / "log" / "towers") == {"loss": [(20, 2.5), (40, 2.0)], "recall": [(40, 0.25)]}
    assert read(tmp_path / "log" / "reranker") == {"loss": [(1, 7.0)]}
    log.close()
    log.close()


def test_a_run_that_goes_on_replaces_what_was_written_after_its_checkpoint(tmp_path: Path) -> None:
    first = RunLog(tmp_path)
    for step in (1, 2, 3, 4):
        first.write("towers", step, {"loss": float(step)})
    first.close()
    again = RunLog(tmp_path)
    for step in (3, 4, 5):
        again.write("towers", step, {"loss": 10.0 * step})
    again.close()
    assert read(tmp_path / "towers") == {"loss": [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]}


def test_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = RunLog(None)
    log.write("towers", 1, {"loss": 1.0})
    log.flush()
    log.close()
    assert list(tmp_path.iterdir()) == []
