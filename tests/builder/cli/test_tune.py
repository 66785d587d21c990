"""`builder tune` from a terminal's view."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from builder.export import calibrate
from builder.export.manifest import read_manifest
from tests.builder.artifacts import listing, run, version_listing, write_config


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and its version 1, of 3 threads and 2 instances."""
    folder = tmp_path_factory.mktemp("exported")
    vectors = np.random.default_rng(4).normal(size=(2000, 12)).astype(np.float32)
    config = write_config(folder, vectors, "index: {results: 10, clusters: 40, recall: 0.8}\n")
    assert run("export", config, "--repository", folder / "repository", "--threads", 3, "--instances", 2) == 0
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to write into. Catalogues as small as this would be scanned whole."""
    monkeypatch.setattr(calibrate, "_exact_rows", lambda search, queries: 0)
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_the_next_version_and_its_recall_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = folder / "repository"
    assert run("tune", folder / "retrieval.yaml", "--repository", repository, "--recall", 0.95) == 0
    captured = capsys.readouterr()
    recall, index = (getattr(read_manifest(repository / "retrieval" / "2"), name) for name in ("recall", "index"))
    assert recall.target == 0.95
    last = captured.out.splitlines()[-1]
    assert last == (
        f"{repository}/retrieval/2: recall@10 {recall.measured:.4f} (target 0.95) over 1000 queries (item vectors)"
    )
    chosen = [line.split() for line in captured.out.splitlines() if line.rstrip().endswith("chosen")]
    shown = [f"{index.reach[0]:.3f}", str(index.candidates), f"{index.mean_probes:.1f}", f"{recall.measured:.4f}"]
    assert [line[:4] for line in chosen] == [shown]
    for stage in ("Searching exactly: ", "Measuring settings: ", "Writing the next version: "):
        assert stage in captured.err
    assert "warning" not in captured.err
    assert listing(repository) == version_listing(1, 2)
    text = (repository / "retrieval" / "config.pbtxt").read_text()
    assert 'INTRA_OP_THREAD_COUNT"\n  value {\n    string_value: "3"' in text
    assert "instance_group {\n  count: 2\n" in text


def test_json_tells_the_whole_curve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = folder / "repository"
    assert run("tune", folder / "retrieval.yaml", "--repository", repository, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    manifest = read_manifest(repository / "retrieval" / "2")
    assert report["version"] == f"{repository}/retrieval/2"
    assert report["recall"] == manifest.recall.model_dump()
    assert report["recall"]["target"] == 0.8  # the version's own
    assert report["chosen"] in report["curve"]
    chosen, index = report["chosen"], manifest.index
    assert (chosen["reach"], chosen["candidates"]) == (index.reach[0], index.candidates)
    assert len(report["curve"]) > 3
    assert {name for point in report["curve"] for name in point} == {
        "reach",
        "candidates",
        "probes",
        "recall",
        "milliseconds",
    }


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    arguments = ("tune", folder / "retrieval.yaml", "--repository", folder / "repository", "--recall", 0.9)
    assert run(*arguments, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("nothing written: recall@10 0.9")
    assert run(*arguments, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["version"] is None
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == there


def test_a_target_out_of_reach_is_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "retrieval.yaml"
    config.write_text(config.read_text().replace("results: 10", "results: 10, code_dims: 1, max_candidates: 20"))
    assert run("export", config, "--repository", folder / "coarse", "--json") == 0
    capsys.readouterr()
    assert run("tune", config, "--repository", folder / "coarse", "--recall", 0.9, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["chosen"]["candidates"] == 20
    assert report["recall"]["measured"] < 0.9
    assert "warning: below the target of 0.9, whatever is probed; export again with more " in captured.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--recall", "0"), 2, "0.0 is not in the range 0<x<1"),
        (("--recall", "1"), 2, "1.0 is not in the range 0<x<1"),
        (("--recall", "nan"), 1, "recall: got nan, expected a share above 0 and below 1"),
        (("--model", "films"), 1, "does not hold any version (versions: none)"),
        (("--repository", "elsewhere"), 1, "elsewhere is no directory; give the model repository with --repository"),
    ],
)
def test_what_is_asked_wrongly_is_said_and_nothing_written(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    there = listing(folder)
    assert run("tune", "retrieval.yaml", "--repository", "repository", *options) == code
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert listing(folder) == there


def test_another_source_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(folder / "other.npy", np.random.default_rng(5).normal(size=(2000, 12)).astype(np.float32))
    assert run("tune", folder / "other.npy", "--repository", folder / "repository") == 1
    captured = capsys.readouterr()
    assert "error: other: holds other items or vectors than " in captured.err
    assert "Give what that version was exported from, or export this first: builder export" in captured.err
    assert captured.out == ""
    assert listing(folder / "repository") == version_listing(1)
