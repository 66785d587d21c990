"""All that a report shows, read from a run folder, its data and the version exported from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from builder.config import Config
from builder.errors import BuilderError
from builder.evaluation.stored import Evaluation, read_evaluation
from builder.report.artifact import Artifact, find_artifact
from builder.training.run import CONFIG, METRICS, REPORT, load


class _Read(BaseModel):
    """Written by the training, which may say more than is shown here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Epoch(_Read):
    """A line of metrics.jsonl; recall and NDCG at 20 of the validation users. Epoch 0 has no loss."""

    epoch: int
    loss: float | None = None
    recall: float
    ndcg: float


class Calibration(_Read):
    """A task's predicted probabilities in bins: their mean, the observed share of positives, how many there were.

    `predicted` and `observed` may be None or NaN where `count` is 0. `ece`: expected calibration error, mean distance
    of the two weighted by `count`.
    """

    predicted: tuple[float | None, ...]
    observed: tuple[float | None, ...]
    count: tuple[int, ...]
    ece: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> Calibration:
        if not len(self.predicted) == len(self.observed) == len(self.count):
            raise ValueError("predicted, observed and count differ in length")
        if any(count < 0 for count in self.count) or not sum(self.count):
            raise ValueError("count: expected at least one prediction, and none below 0")
        for predicted, observed in zip(*self.shares(), strict=True):
            if not (0 <= predicted <= 1 and 0 <= observed <= 1):
                raise ValueError("predicted and observed: expected shares from 0 to 1 wherever count is not 0")
        return self

    def shares(self) -> tuple[list[float], list[float]]:
        """Predicted and observed of the bins that are not empty."""
        kept = [i for i, count in enumerate(self.count) if count]
        return [_number(self.predicted[i]) for i in kept], [_number(self.observed[i]) for i in kept]

    def counts(self) -> list[int]:
        return [count for count in self.count if count]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


@dataclass(frozen=True)
class DataFacts:
    """`user_items` [U] interactions of each user to train on, `item_users` [N] of each item."""

    items: int
    users: int
    interactions: int
    validation_users: int
    test_users: int
    user_items: NDArray[np.int64]
    item_users: NDArray[np.int64]
    history: int


@dataclass(frozen=True)
class Contents:
    """Parts that are None are not there; `unread` says why where that is a fault: name of the part -> reason."""

    run: Path
    repository: Path
    model: str
    name: str
    figures: dict[str, float]
    epochs: tuple[Epoch, ...]
    data: DataFacts | None
    evaluation: Evaluation | None
    calibration: dict[str, Calibration]
    artifact: Artifact | None
    unread: dict[str, str]


def read_contents(run: Path, repository: Path, model: str) -> Contents:
    """Read what there is. Raises BuilderError: no finished run there, or one of its files or the version is damaged.

    Data files that are gone or have changed cost the parts that need them, not the report.
    """
    unread: dict[str, str] = {}
    data = None
    try:
        data = _data_facts(run)
    except BuilderError as error:
        if not (run / REPORT).exists() or not (run / CONFIG).exists():
            raise
        unread["data"] = str(error)
    report = _report(run / REPORT)
    figures, name = report["figures"], Config.load(run / CONFIG).name
    return Contents(
        run=run,
        repository=repository,
        model=model,
        name=name,
        figures=figures,
        epochs=_epochs(run / METRICS),
        data=data,
        evaluation=read_evaluation(run),
        calibration=read_calibration(report.get("calibration"), unread),
        artifact=find_artifact(repository, model, name, figures),
        unread=unread,
    )


def _data_facts(run: Path) -> DataFacts:
    trained = load(run)
    dataset = trained.dataset
    return DataFacts(
        items=len(dataset.catalogue),
        users=len(dataset.user_keys),
        interactions=len(dataset.train),
        validation_users=len(dataset.validation),
        test_users=len(dataset.test),
        user_items=np.diff(dataset.train.offsets),
        item_users=np.bincount(dataset.train.items, minlength=len(dataset.catalogue)),
        history=trained.history_length,
    )


def _report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BuilderError(f"is not JSON ({error})", where=str(path), remedy="Train again.") from error
    if not isinstance(report, dict) or not isinstance(report.get("figures"), dict):
        raise BuilderError("lacks figures", where=str(path), remedy="Train again.")
    return report


def _epochs(path: Path) -> tuple[Epoch, ...]:
    """The lines of metrics.jsonl; none where there is no such file."""
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(_epoch(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1))


def _epoch(line: str, where: str) -> Epoch:
    try:
        return Epoch.model_validate_json(line)
    except ValidationError as error:
        reason = _reason(error)
        raise BuilderError(reason, where=where, remedy="Train again; the file is damaged.") from error


def read_calibration(raw: Any, unread: dict[str, str]) -> dict[str, Calibration]:
    """The tasks that can be read; of the others `unread` says why not."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        unread["calibration"] = f"{REPORT}, calibration: got {type(raw).__name__}, expected one entry a task"
        return {}
    tried = {task: _task_calibration(value) for task, value in raw.items()}
    faults = [f"{REPORT}, calibration.{task}: {found}" for task, found in tried.items() if isinstance(found, str)]
    if faults:
        unread["calibration"] = "; ".join(faults)
    return {task: found for task, found in tried.items() if isinstance(found, Calibration)}


def _task_calibration(value: Any) -> Calibration | str:
    """What a task's entry says, or why it cannot be read."""
    try:
        return Calibration.model_validate(value)
    except ValidationError as error:
        return _reason(error)


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field}: {first['msg']}" if field else first["msg"]
