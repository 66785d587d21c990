"""What a run folder says is read with its faults named; tests/builder/cli/test_report.py reads whole folders."""

from __future__ import annotations

from typing import Any

import pytest

from builder.report.contents import Calibration, read_calibration

CALIBRATION = {"predicted": [0.1, None, 0.7], "observed": [0.2, None, 0.6], "count": [90, 0, 10], "ece": 0.1, "more": 1}


def test_bins_without_predictions_are_left_out() -> None:
    unread: dict[str, str] = {}
    found = read_calibration({"click": CALIBRATION}, unread)
    assert unread == {}
    assert found["click"].shares() == ([0.1, 0.7], [0.2, 0.6])
    assert found["click"].counts() == [90, 10]
    assert isinstance(found["click"], Calibration)


def test_a_run_without_tasks_has_none() -> None:
    unread: dict[str, str] = {}
    assert (read_calibration(None, unread), unread) == ({}, {})


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ([], "report.json, calibration: got list, expected one entry a task"),
        ({"click": 3}, "report.json, calibration.click: Input should be"),
        ({"click": {"predicted": [0.1]}}, "calibration.click: observed: Field required"),
        ({"click": {**CALIBRATION, "count": [1]}}, "predicted, observed and count differ in length"),
        ({"click": {**CALIBRATION, "count": [0, 0, 0]}}, "expected at least one prediction"),
        ({"click": {**CALIBRATION, "count": [1, 0, -1]}}, "none below 0"),
        ({"click": {**CALIBRATION, "predicted": [0.1, 0.5, 1.2]}}, "expected shares from 0 to 1"),
        ({"click": {**CALIBRATION, "observed": [None, 0.5, 0.2]}}, "expected shares from 0 to 1"),
        ({"click": {**CALIBRATION, "observed": [float("nan"), 0.5, 0.2]}}, "expected shares from 0 to 1"),
        ({"click": {**CALIBRATION, "ece": float("nan")}}, "calibration.click: ece: "),
    ],
)
def test_what_cannot_be_read_is_said(calibration: Any, said: str) -> None:
    unread: dict[str, str] = {}
    assert read_calibration(calibration, unread) == {}
    assert said in unread["calibration"]
