"""evaluation.json: what is kept, beside what, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from builder.errors import BuilderError
from builder.evaluation import stored
from builder.evaluation.stored import EVALUATION, StoredInterval, read_evaluation, store
from builder.evaluation.summary import Interval, Summary


def summary(mean: float, *, new: float = 0.5, **gain: Interval) -> Summary:
    def around(value: float) -> Interval:
        return Interval(value, value - 0.01, value + 0.01)

    nobody = Interval(np.nan, np.nan, np.nan)
    intervals = {"recall": around(mean), "recall_new": around(new) if new == new else nobody, "recall_tail": nobody}
    return Summary(intervals, 0.3, gain)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text('{"figures": {}, "data": 1}')
    return tmp_path


def test_what_is_stored_is_read(run: Path) -> None:
    notes = {"EASE": "left out: too large", "iALS": "factors 64"}
    path = store(run, {"exact": summary(0.2), "iALS": summary(0.1, new=np.nan)}, notes, users=7, k=20)
    assert path == run / EVALUATION
    found = read_evaluation(run)
    assert found is not None
    assert (found.users, found.k, list(found.systems)) == (7, 20, ["exact", "iALS"])
    recall = found.systems["exact"].intervals["recall"]
    assert recall is not None
    assert (recall.mean, recall.low, recall.high) == (0.2, 0.19, 0.21000000000000002)
    assert found.systems["iALS"].intervals["recall_new"] is None
    assert found.systems["iALS"].note == "factors 64"
    assert found.systems["exact"].coverage == 0.3
    assert found.left_out == {"EASE": "left out: too large"}
    assert found.systems["exact"].gain == {}


def test_gains_are_stored(run: Path) -> None:
    nothing = Interval(np.nan, np.nan, np.nan)
    store(run, {"reranked": summary(0.2, recall=Interval(0.1, 0.05, 0.15), mrr=nothing)}, {}, users=7, k=20)
    found = read_evaluation(run)
    assert found is not None
    gain = found.systems["reranked"].gain
    assert gain == {"recall": StoredInterval(mean=0.1, low=0.05, high=0.15), "mrr": None}


def test_a_file_from_before_there_were_gains(run: Path) -> None:
    path = store(run, {"exact": summary(0.2)}, {}, users=7, k=20)
    written = json.loads(path.read_text())
    del written["systems"]["exact"]["gain"]
    path.write_text(json.dumps(written))
    found = read_evaluation(run)
    assert found is not None
    assert found.systems["exact"].gain == {}


def test_calls_add_to_one_another(run: Path) -> None:
    store(run, {"exact": summary(0.2), "popularity": summary(0.1)}, {"EASE": "left out"}, users=7, k=20)
    store(run, {"exact": summary(0.3), "served": summary(0.25)}, {"served": "retrieval at here"}, users=7, k=20)
    found = read_evaluation(run)
    assert found is not None
    recalls = {name: system.intervals["recall"] for name, system in found.systems.items()}
    means = {name: interval.mean for name, interval in recalls.items() if interval is not None}
    assert means == {"exact": 0.3, "popularity": 0.1, "served": 0.25}
    assert found.left_out == {"EASE": "left out"}
    store(run, {"EASE": summary(0.4)}, {}, users=7, k=20)
    assert (read_evaluation(run) or found).left_out == {}


@pytest.mark.parametrize("change", ["k", "users", "training"])
def test_other_figures_start_anew(run: Path, change: str) -> None:
    store(run, {"exact": summary(0.2), "popularity": summary(0.1)}, {}, users=7, k=20)
    if change == "training":
        (run / "report.json").write_text('{"figures": {}, "data": 2}')
        assert read_evaluation(run) is None
    store(run, {"exact": summary(0.3)}, {}, users=8 if change == "users" else 7, k=10 if change == "k" else 20)
    found = read_evaluation(run)
    assert found is not None
    assert list(found.systems) == ["exact"]


def test_no_file_and_another_format(run: Path) -> None:
    assert read_evaluation(run) is None
    (run / EVALUATION).write_text('{"format": 99, "anything": 1}')
    assert read_evaluation(run) is None
    store(run, {"exact": summary(0.2)}, {}, users=7, k=20)
    assert json.loads((run / EVALUATION).read_text())["format"] == stored.FORMAT


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "systems": {"a": 3}}', "\ud800"])
def test_a_damaged_file_is_told(run: Path, content: str) -> None:
    (run / EVALUATION).write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(BuilderError, match=r"evaluation\.json: cannot be read: .*\n  Delete it"):
        read_evaluation(run)


def test_a_write_that_fails_leaves_the_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(run, {"exact": summary(0.2)}, {}, users=7, k=20)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store(run, {"exact": summary(0.9)}, {}, users=7, k=20)
    assert path.read_bytes() == before
