"""`builder report` from a terminal's view, and its page as a parser sees it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.data.lists import Lists
from builder.evaluation.stored import EVALUATION, store
from builder.evaluation.summary import measure, summarise
from builder.export.manifest import read_manifest
from builder.report.svg import NAMESPACE
from builder.training import run as run_folder
from tests.builder.artifacts import listing, run
from tests.builder.report.html import Page
from tests.builder.report.runs import ITEMS, MAKERS, USERS, WORDS, columns, write_run

SECTIONS = ["training", "quality", "tradeoff", "clusters", "filters", "data", "calibration", "weight"]
CALIBRATION = {
    "predicted": [0.1, None, 0.7],
    "observed": [0.2, None, 0.6],
    "count": [90, 0, 10],
    "ece": 0.1,
    "more": "is fine",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and version 1 without, version 2 with a curve."""
    folder = write_run(tmp_path_factory.mktemp("shop")).parent
    assert run("tune", folder / "run", "--repository", folder / "repository", "--recall", 0.8) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change, as current folder; the run's retrieval.yaml names the data of the original."""
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    monkeypatch.chdir(copy)
    return copy


def report(*options: object) -> Page:
    assert run("report", "run", "--repository", "repository", *options) == 0
    return Page(Path("run/report.html").read_text(encoding="utf-8"))


def add_evaluation(folder: Path) -> dict[str, Any]:
    """Made-up answers of two systems, and the file's own words."""
    rng = np.random.default_rng(0)
    targets = Lists(np.arange(USERS + 1), rng.integers(0, ITEMS, USERS))
    seen = Lists(np.zeros(USERS + 1, np.int64), np.empty(0, np.int64))
    answers = {name: rng.integers(0, ITEMS, (USERS, 100)) for name in ("exact", "iALS", "reranked")}
    measured = {name: measure(found, targets, seen, np.arange(ITEMS), 20) for name, found in answers.items()}
    results = {
        name: summarise(part, measured["exact"] if name == "reranked" else None) for name, part in measured.items()
    }
    notes = {"iALS": "<b>factors</b> 64", "EASE": "left out: <i>large</i>"}
    store(folder / "run", results, notes, users=USERS, k=20)
    return dict(json.loads((folder / "run" / EVALUATION).read_text()))


def add_calibration(folder: Path, calibration: Any) -> None:
    path = folder / "run" / run_folder.REPORT
    path.write_text(json.dumps({**json.loads(path.read_text()), "calibration": calibration}))


def test_a_page_with_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_calibration(folder, {"click": CALIBRATION, "<b>buy</b>": {**CALIBRATION, "ece": 0.25}})
    evaluation = add_evaluation(folder)
    page = report()
    captured = capsys.readouterr()
    assert captured.out.startswith("run/report.html: run and repository/retrieval/2, ")
    assert "without" not in captured.out
    assert list(page.text) == ["", *SECTIONS]
    assert "Add it" not in page.source

    log = [json.loads(line) for line in (folder / "run" / run_folder.METRICS).read_text().splitlines()]
    figures = json.loads((folder / "run" / run_folder.REPORT).read_text())["figures"]
    manifest = read_manifest(folder / "repository" / "retrieval" / "2")
    held = sum(manifest.index.bytes.values())
    for shown in (
        "shop",
        f"{figures['test_recall_at_20']:.4f}",
        f"{figures['test_ndcg_at_20']:.4f}",
        f"{manifest.recall.measured:.4f}",
        f"{held / 1000:.1f} kB" if held < 99_950 else f"{held / 1000:.0f} kB",
        f"{held / ITEMS:.1f} bytes an item",
        f"{ITEMS:,}",
        f"{USERS:,}",
    ):
        assert shown in page.text[""], shown
    assert page.facts[""]["version"] == "repository/retrieval/2"
    assert page.facts[""]["written by"] == f"silvertriton {manifest.silvertriton}, torch {manifest.torch}"

    assert page.titles["training"] == ["Loss", "Validation Recall@20", "Validation NDCG@20"]
    best = log[int(figures["best_epoch"]) - 1]
    assert f"Recall@20 {best['recall']:.4f}, NDCG@20 {best['ndcg']:.4f}" in page.text["training"]
    labels = [chart.get("aria-label") or "" for chart in page.charts]
    assert labels[0] == (
        f"Loss by epoch, from {log[0]['loss']:.4g} to {log[-1]['loss']:.4g}; best epoch {figures['best_epoch']:.0f}"
    )

    rows = {row[0]: row[1:] for row in page.tables["quality"][0][1:]}
    for name, system in evaluation["systems"].items():
        for cell, interval in zip(rows[name], system["intervals"].values(), strict=False):
            means = [interval[part] for part in ("mean", "low", "high")]
            assert [float(word) for word in re.findall(r"[\d.]+", cell)] == pytest.approx(means, abs=5e-5)
        assert rows[name][7] == f"{system['coverage']:.1%}"
    assert list(rows) == ["exact", "reranked", "iALS"]  # ours first
    assert rows["iALS"][8] == "<b>factors</b> 64"
    assert "left out: <i>large</i>" in page.text["quality"]
    assert "reranked is what that version answers" in page.text["quality"]
    assert "served is" not in page.text["quality"]
    assert len(page.titles["quality"]) == 8
    titles, gains = page.tables["quality"][1]
    assert titles[1:] == page.tables["quality"][0][0][1:-2]
    assert gains[0] == "reranked"
    for cell, gain in zip(gains[1:], evaluation["systems"]["reranked"]["gain"].values(), strict=True):
        percents = [100 * gain[part] for part in ("mean", "low", "high")]
        assert [float(word) for word in re.findall(r"[-+][\d.]+", cell)] == pytest.approx(percents, abs=5e-3)

    assert manifest.curve is not None
    shown_points = [[float(cell) for cell in row[:5]] for row in page.tables["tradeoff"][0][1:]]
    points = [[p.reach, p.candidates, p.probes, p.recall, p.milliseconds] for p in manifest.curve.points]
    np.testing.assert_allclose(shown_points, points, atol=6e-4)
    default = [row for row in page.tables["tradeoff"][0] if row[-1] == "default"]
    assert [float(default[0][0]), int(default[0][1])] == [manifest.index.reach[0], manifest.index.candidates]
    assert manifest.curve.machine in page.text["tradeoff"]

    fewest, median, most = manifest.index.cluster_items
    assert page.facts["clusters"]["items in a cluster"].startswith(f"{fewest} to {most}, median {median}, ")
    assert page.facts["clusters"]["clusters"] == str(manifest.index.clusters)
    assert page.facts["data"]["interactions to train on"] == f"{len(run_folder.load(folder / 'run').dataset.train):,}"

    assert page.titles["calibration"] == ["click", "<b>buy</b>"]
    assert "error 0.1; 100 predictions in 2 bins" in page.text["calibration"]
    assert "error 0.25; 100 predictions in 2 bins" in page.text["calibration"]

    groups, files = page.tables["weight"]
    assert {row[0]: int(row[1].replace(",", "")) for row in groups[1:]} == {**manifest.index.bytes, "all": held}
    shown_files = {row[0]: (int(row[1].replace(",", "")), row[2]) for row in files[1:]}
    assert shown_files == {name: (entry.bytes, entry.sha256) for name, entry in manifest.files.items()}


def test_filters_by_value(folder: Path) -> None:
    page = report()
    values: list[Any] = columns()["maker"]
    makers = page.tables["filters"][0]
    by_name = {maker if len(maker) <= 60 else maker[:57] + "...": values.count(maker) for maker in MAKERS if maker}
    assert {row[0]: int(row[1]) for row in makers[1:]} == by_name
    for name, items, passes, _ in makers[1:]:
        assert float(passes.rstrip("%")) == pytest.approx(100 * int(items) / ITEMS, abs=0.051), name
    words = [row[0] for row in page.tables["filters"][1][1:]]
    assert len(words) == 8
    assert WORDS[0] in words
    known = {word for one in columns()["words"] for word in one}  # type: ignore[attr-defined]
    assert f"and {len(known) - 8} more" in page.text["filters"]
    released = sorted(str(day) for day in columns()["released"])
    assert f"least {released[0]}" in " ".join(page.text["filters"].split())
    # Of fewer than 200 known prices, half a percent is not one.
    titles = ["Items that pass, by value"] * 2 + ["Items by value", "Items by value, the middle 99%"]
    assert page.titles["filters"] == titles


def test_nothing_from_the_data_becomes_markup(folder: Path) -> None:
    """Every value that tries to is in the page as text; tags and attributes are those of the template."""
    add_calibration(folder, {'"><script>alert(2)</script>': CALIBRATION, "$\\frac{": CALIBRATION})
    add_evaluation(folder)
    page = report()
    assert MAKERS[0] in page.text["filters"]
    assert MAKERS[2] in page.text["filters"]
    assert WORDS[0] in page.text["filters"]
    assert '"><script>alert(2)</script>' in page.titles["calibration"]
    assert not page.tags & {
        "script",
        "img",
        "i b",
        "iframe",
        "object",
        "link",
        "base",
        "form",
        "image",
        "foreignobject",
    }
    assert {name for name, _ in page.attributes if name.startswith("on")} == set()
    assert {name for name, _ in page.attributes if name in ("src", "srcset", "action", "data")} == set()
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "xlink:href"))


def test_nothing_is_loaded(folder: Path) -> None:
    page = report()
    assert set(re.findall(r"https?://[^\s\"'<>]+", page.source)) == {NAMESPACE}
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", page.source))
    assert "@import" not in page.source
    assert "//" not in page.source.replace(NAMESPACE, "")
    assert len(page.source.encode()) < 1_000_000
    charts = page.charts
    assert len(charts) > 8
    ids = [element.get("id") for chart in charts for element in chart.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for chart in charts:
        assert chart.tag == f"{{{NAMESPACE}}}svg"
        assert chart.get("viewBox")
        assert chart.get("aria-label")
        assert list(chart.iter(f"{{{NAMESPACE}}}text")), "text stays text"


def test_what_is_missing_names_its_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "repository" / "retrieval" / "2")
    page = report()
    said = capsys.readouterr().out
    for section, command in {
        "quality": "builder evaluate run --baselines --repository repository --model retrieval",
        "tradeoff": "builder tune run --repository repository --model retrieval",
        "calibration": "builder train retrieval.yaml",
    }.items():
        assert command in page.text[section]
        assert page.tables[section] == page.titles[section] == []
        assert f"Add it: {command}\n" in said
    for section in ("training", "clusters", "filters", "data", "weight"):
        assert page.titles[section] or page.tables[section]
        assert "Add it" not in page.text[section]


def test_no_version_at_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", "run", "--repository", "no where", "--out", "elsewhere.html") == 0
    page = Page(Path("elsewhere.html").read_text(encoding="utf-8"))
    assert "elsewhere.html: run and no version" in capsys.readouterr().out
    for section in ("tradeoff", "clusters", "filters", "weight"):
        assert "no where/retrieval holds no version that was exported from this run." in page.text[section]
        assert "builder export run --repository 'no where' --model retrieval" in page.text[section]
    assert not (folder / "run" / "report.html").exists()


def test_the_version_of_another_run_is_not_taken(folder: Path) -> None:
    manifest = folder / "repository" / "retrieval" / "2" / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["training"]["seconds"] += 1
    manifest.write_text(json.dumps(raw))
    assert report().facts[""]["version"] == "repository/retrieval/1"


def test_data_that_is_gone_costs_its_sections_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "run" / run_folder.CONFIG
    path.write_text(path.read_text().replace("items.parquet", "gone.parquet"))
    page = report()
    assert "gone.parquet" in page.text["data"]
    assert "cannot be read" in page.text["data"]
    assert page.titles["training"]
    assert page.titles["filters"]
    assert "Users" not in page.text[""]


@pytest.mark.parametrize("tasks", [{"click": CALIBRATION, "buy": 3}, {"buy": 3}])
def test_a_calibration_that_cannot_be_read_is_said(folder: Path, tasks: dict[str, Any]) -> None:
    add_calibration(folder, tasks)
    page = report()
    assert page.titles["calibration"] == [task for task in tasks if task == "click"]
    assert "report.json, calibration.buy: Input should be" in page.text["calibration"]


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_spectral_start(folder: Path, epochs: int) -> None:
    """Epoch 0 has no loss."""
    log = [{"epoch": n, "loss": 3.0 - n, "recall": 0.25 - n / 100, "ndcg": 0.1} for n in range(epochs + 1)]
    del log[0]["loss"]
    (folder / "run" / run_folder.METRICS).write_text("".join(json.dumps(line) + "\n" for line in log))
    path = folder / "run" / run_folder.REPORT
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "figures": {**written["figures"], "best_epoch": 0.0}}))
    page = report()
    validation = ["Validation Recall@20", "Validation NDCG@20"]
    assert page.titles["training"] == (["Loss", *validation] if epochs else validation)
    said = f"{epochs} epochs. The spectral start answered the validation users best and was kept: Recall@20 0.2500"
    assert said in page.text["training"]


def damage(folder: Path, name: str, content: str) -> None:
    (folder / "run" / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (run_folder.METRICS, '{"epoch": 1}\n', "metrics.jsonl, line 1: recall: Field required"),
        (run_folder.METRICS, "\n", "metrics.jsonl, line 1: Invalid JSON"),
        (run_folder.REPORT, "{", "report.json: is not JSON"),
        (run_folder.REPORT, "{}", "report.json: lacks figures"),
        (EVALUATION, "{", "evaluation.json: cannot be read"),
    ],
)
def test_damage_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    damage(folder, name, content)
    before = listing(folder)
    assert run("report", "run", "--repository", "repository") == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert listing(folder) == before


def test_what_is_no_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", "nothing") == 1
    assert "error: nothing: no run there\n  Train one with builder train." in capsys.readouterr().err
    (folder / "run" / run_folder.REPORT).unlink()
    assert run("report", "run") == 1
    assert "error: run: the run is not finished" in capsys.readouterr().err
    assert run("report", "run", "--out", folder) == 2
    assert "is a directory" in capsys.readouterr().err


def test_an_old_page_is_replaced_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = report().source
    assert report().source.split("<footer>")[0] == first.split("<footer>")[0]
    assert not [name for name in listing(folder) if name.endswith(".partial")]
    assert run("report", "run", "--repository", "repository", "--out", "no/such/report.html") == 1
    assert "No such file or directory" in capsys.readouterr().err
