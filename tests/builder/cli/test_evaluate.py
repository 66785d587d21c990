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
    assert printed["notes"] == found.left_out
    assert found.left_out["index"].startswith("left out: model_repository/retrieval holds no version of this run")
    assert run("evaluate", trained, "-k", 10) == 0
    captured = capsys.readouterr()
    assert f"{printed['exact']['recall']['mean']:.4f} ±" in captured.out
    assert "Recall@100" in captured.out
    assert "gain over exact" not in captured.out
    assert EVALUATION not in captured.out


def test_the_index_of_the_version_beside_exact_search(
    made: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = made.parent / "repository"
    assert run("evaluate", trained, "-k", 30, "--json", "--repository", repository) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["notes"] == {"index": f"{repository}/retrieval/1"}
    assert printed["exact"]["recall"]["mean"] > 0
    for name in ("recall", "ndcg", "mrr"):
        exact, index = printed["exact"][name]["mean"], printed["index"][name]["mean"]
        assert index == pytest.approx(exact, rel=0.1)
        assert printed["index"]["gain"][name]["mean"] == pytest.approx(index / exact - 1)
    assert "gain" not in printed["exact"]
    assert "reranked" not in printed
    found = read_evaluation(trained)
    assert found is not None
    assert list(found.systems) == ["exact", "index"]
    assert found.systems["index"].gain.keys() == found.systems["index"].intervals.keys()
    assert run("evaluate", trained, "-k", 30, "--repository", repository) == 0
    shown = capsys.readouterr().out.splitlines()
    heading = next(number for number, line in enumerate(shown) if line.startswith("gain over exact"))
    assert shown[heading + 1].split()[:2] == ["index", f"{printed['index']['gain']['recall']['mean']:+.2%}"]


def test_fewer_results_than_asked_for_are_no_row(made: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", trained, "-k", 150, "--json", "--repository", made.parent / "repository") == 0
    printed = json.loads(capsys.readouterr().out)
    assert "index" not in printed
    assert "results, fewer than -k 150" in printed["notes"]["index"]
    assert printed["exact"]["recall_100"] is None


def test_a_folder_that_takes_no_file_is_a_warning(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (trained / EVALUATION).mkdir()
    assert run("evaluate", trained, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exact"]["recall"]["mean"] >= 0
    assert "warning: not kept for builder report: " in captured.err
