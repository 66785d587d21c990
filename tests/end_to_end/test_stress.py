"""The stresses of scripts/stress, each with few requests: what they find wrong ends them with a code other than 0."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]


def run(name: str, tmp_path: Path) -> Any:
    command = [ROOT / "scripts" / "stress" / name, "--quick", "--json", tmp_path / "report.json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    return json.loads((tmp_path / "report.json").read_text())


def test_random_filters_pass_what_the_interpreter_says(tmp_path: Path) -> None:
    report = run("congruence", tmp_path)
    assert (report["filters"], report["answers_compared"]) == (500, 1500)
    assert {"And", "Or", "Not", "AnyOf", "AllOf", "Range", "Unknown", "ItemIn", "refused"} <= report[
        "filters_with"
    ].keys()
    assert min(report["passing_none_some_all"]) > 0


def test_hostile_requests_are_refused_and_the_server_lives(tmp_path: Path) -> None:
    report = run("hostile", tmp_path)
    assert report["requests"] == 2000
    assert report["good_answers_compared"] >= 190
    assert len(report["outcomes"]) == report["kinds_of_attack"] + 1
