"""What `builder evaluate` measured, kept in the run folder as evaluation.json for `builder report`.

Written whole or not at all. The figures of several calls stand beside one another (exact and baselines today, served
tomorrow) as long as they are of the same training and as many results; otherwise the file starts anew.
"""

from __future__ import annotations

import datetime
import json
import zlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from builder.errors import BuilderError
from builder.evaluation.summary import Interval, Summary
from builder.training.checkpoint import write_text
from builder.training.run import REPORT

EVALUATION = "evaluation.json"
FORMAT = 1


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredInterval(_Section):
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float


class System(_Section):
    """One way to answer. `intervals`: by the names of `Measured.values`, None where there are no such users; `gain`:
    the same relative to exact search, of our own ways to answer; `note`: its setting or its server; `measured`: when,
    ISO 8601."""

    intervals: dict[str, StoredInterval | None]
    gain: dict[str, StoredInterval | None] = {}
    coverage: float
    note: str
    measured: str


class Evaluation(_Section):
    """`run`: CRC-32 of the report.json it was measured with; `users`: test users; `left_out`: systems, and why."""

    format: int
    run: int
    users: int
    k: int
    systems: dict[str, System]
    left_out: dict[str, str]


def store(run: Path, results: dict[str, Summary], notes: dict[str, str], *, users: int, k: int) -> Path:
    """Add `results` to what is known of `run` and return the file. A note on what is not in `results` says why not."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    measured = {name: _system(summary, notes.get(name, ""), now) for name, summary in results.items()}
    left_out = {name: note for name, note in notes.items() if name not in results}
    known = read_evaluation(run)
    current = Evaluation(format=FORMAT, run=_digest(run), users=users, k=k, systems={}, left_out={})
    if known is not None and known.model_copy(update={"systems": {}, "left_out": {}}) == current:
        measured = {**known.systems, **measured}
        left_out = {name: note for name, note in {**known.left_out, **left_out}.items() if name not in measured}
    whole = current.model_copy(update={"systems": measured, "left_out": left_out})
    path = run / EVALUATION
    write_text(whole.model_dump_json(indent=1) + "\n", path)
    return path


def read_evaluation(run: Path) -> Evaluation | None:
    """What is known of the run as it stands; None without a file, or for one of another training or format.

    Raises BuilderError for a file that is none of ours.
    """
    path = run / EVALUATION
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] != FORMAT:
            return None
        found = Evaluation.model_validate(raw)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BuilderError(
            f"cannot be read: {reason}", where=str(path), remedy="Delete it and measure again: builder evaluate"
        ) from error
    return found if found.run == _digest(run) else None


def _system(summary: Summary, note: str, now: str) -> System:
    intervals, gain = _stored(summary.intervals), _stored(summary.gain)
    return System(intervals=intervals, gain=gain, coverage=summary.coverage, note=note, measured=now)


def _stored(intervals: dict[str, Interval]) -> dict[str, StoredInterval | None]:
    return {
        name: StoredInterval(mean=i.mean, low=i.low, high=i.high) if i.mean == i.mean else None
        for name, i in intervals.items()
    }


def _digest(run: Path) -> int:
    return zlib.crc32((run / REPORT).read_bytes())
