"""`builder evaluate` keeps in the run folder what it prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from builder.evaluation.stored import EVALUATION, read_evaluation
from tests.builder.artifacts import run
from tests.builder.report.runs import write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def trained(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_the_figures_kept_are_those_printed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", trained, "-k", 10, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    found = read_evaluation(trained)
    assert found is not None
    assert (found.k, found.users, list(found.systems)) == (10, printed["users"], ["exact"])
    kept = json.loads((trained / EVALUATION).read_text())["systems"]["exact"]
    assert {**kept["intervals"], "coverage": kept["coverage"]} == printed["exact"]
    assert run("evaluate", trained, "-k", 10) == 0
    captured = capsys.readouterr()
    assert f"{printed['exact']['recall']['mean']:.4f} ±" in captured.out
    assert EVALUATION not in captured.out


def test_a_folder_that_takes_no_file_is_a_warning(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (trained / EVALUATION).mkdir()
    assert run("evaluate", trained, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exact"]["recall"]["mean"] >= 0
    assert "warning: not kept for builder report: " in captured.err
