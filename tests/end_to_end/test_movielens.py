"""MovieLens 100K through every step a person takes; filters and recall are checked against the raw files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from builder.cli.main import cli
from builder.data.movielens import GENRES
from builder.errors import BuilderError
from builder.serving.server import StockServer
from builder.training.run import Requests, TrainedRun, load
from client import Condition, F, RetrievalClient

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SILVERTRITON_DATA", ROOT.parent / "shared" / "data"))
USERS = 150

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "ml-100k").is_dir(), reason=f"no MovieLens 100K in {DATA}; set SILVERTRITON_DATA"),
]


def builder(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a few epochs only: what is tested is that the served answers are the run's, not how good they are.

    With attention over histories; the quickstart below has their mean.
    """
    folder = tmp_path_factory.mktemp("movielens")
    builder("data", "movielens-100k", "--data", DATA, "--out", folder / "data")
    config = folder / "data" / "retrieval.yaml"
    text = config.read_text()
    assert text.count("training: {") == text.count("network: {") == 1
    text = text.replace("training: {", "training: {epochs: 3, ")
    config.write_text(text.replace("network: {", "network: {pooling: attention, "))
    builder("train", config, "--out", folder / "run")
    builder("export", folder / "run", "--repository", folder / "repository")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> TrainedRun:
    return load(folder / "run")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[StockServer]:
    with StockServer(folder / "repository", log=folder / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def films() -> dict[int, dict[str, Any]]:
    """Straight from the raw file, with none of our readers."""
    films: dict[int, dict[str, Any]] = {}
    for line in (DATA / "ml-100k" / "u.item").read_text(encoding="latin-1").splitlines()[1:]:
        fields = line.split("|")
        released = datetime.strptime(fields[2], "%d-%b-%Y").replace(tzinfo=timezone.utc) if fields[2] else None
        genres = {genre for genre, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"} - {"unknown"}
        films[int(fields[0])] = {"genres": genres, "year": released.year if released else None, "released": released}
    return films


def year(film: dict[str, Any]) -> int:
    return film["year"] if film["year"] is not None else -1


# Each filter beside what it means for a film of the raw file.
CASES: list[tuple[Condition, Any]] = [
    (F.genres.any_of("Drama", "War"), lambda i, f: bool(f["genres"] & {"Drama", "War"})),
    (F.genres.all_of("Action", "Sci-Fi"), lambda i, f: {"Action", "Sci-Fi"} <= f["genres"]),
    (F.year >= 1996, lambda i, f: year(f) >= 1996),
    (F.year.between(1940, 1959), lambda i, f: 1940 <= year(f) <= 1959),
    (
        F.released < "1990-06-15",
        lambda i, f: f["released"] is not None and f["released"].date().isoformat() < "1990-06-15",
    ),
    (
        F.genres.any_of("Drama", "War") & (F.year >= 1990) & ~F.title_id.is_in([286, 313, 50]),
        lambda i, f: bool(f["genres"] & {"Drama", "War"}) and year(f) >= 1990 and i not in (286, 313, 50),
    ),
    (
        (F.genres.any_of("Film-Noir") | (F.year < 1950)) & ~F.genres.any_of("Comedy"),
        lambda i, f: ("Film-Noir" in f["genres"] or 0 <= year(f) < 1950) and "Comedy" not in f["genres"],
    ),
    (F.year.is_unknown() | F.genres.is_unknown(), lambda i, f: f["year"] is None or not f["genres"]),
    (~(F.year >= 1930), lambda i, f: not year(f) >= 1930),
    (F.genres.any_of("No such genre"), lambda i, f: False),
]


def asking_users(run: TrainedRun) -> Requests:
    return run.held_out("test", sample=USERS)


@pytest.mark.parametrize(("condition", "passes"), CASES, ids=[str(case[0]) for case in CASES])
def test_filters_against_the_raw_file(
    server: StockServer, run: TrainedRun, films: dict[int, dict[str, Any]], condition: Condition, passes: Any
) -> None:
    asking = asking_users(run)
    scores = run.queries(asking).numpy() @ run.item_vectors.T
    allowed = np.array([passes(int(item), films[int(item)]) for item in run.catalogue.ids])
    k = 20
    missing = wanted = 0
    with RetrievalClient(server.url, timeout=20.0) as client:
        for row in range(len(asking)):
            history = asking.history[row]
            seen = asking.exclude[row]
            user_id = int(asking.features["user_id"][row, 0])
            users = {"user_id": user_id, "age": float(asking.features["age"][row, 0]), **raw_user(user_id)}
            result = client.retrieve(user=users, history=history[history >= 0], exclude=seen, filter=condition, k=k)
            for item in result.item_ids.tolist():
                assert passes(item, films[item]), f"{item} does not pass {condition}"
                assert item not in seen
            may_return = allowed & ~np.isin(run.catalogue.ids, seen)
            masked = np.where(may_return, scores[row], -np.inf)
            best = np.argsort(-masked, kind="stable")[: min(k, int(may_return.sum()))]
            assert result.count == len(best)
            floor = masked[best].min() if len(best) else 0.0
            found = {int(position) for position in run.catalogue.find(result.item_ids)}
            # Missing: passes and scores higher than the last exact result by more than rounding.
            missing += sum(1 for item in best if int(item) not in found and masked[item] > floor + 1e-3)
            wanted += len(best)
    assert missing <= 0.01 * wanted, f"{missing} of {wanted} missing under {condition}"


_RAW_USERS: dict[int, dict[str, str]] = {}


def raw_user(user_id: int) -> dict[str, str]:
    if not _RAW_USERS:
        for line in (DATA / "ml-100k" / "u.user").read_text().splitlines()[1:]:
            number, _, gender, occupation, _ = line.split("|")
            _RAW_USERS[int(number)] = {"gender": gender, "occupation": occupation}
    return _RAW_USERS[user_id]


def test_evaluate_served_equals_exact(server: StockServer, folder: Path) -> None:
    arguments = ("--served", server.url, "--repository", folder / "repository", "--json")
    report = json.loads(builder("evaluate", folder / "run", *arguments))
    assert report["users"] > 900
    assert report["exact"]["recall"]["mean"] > 0.05  # popularity alone gives about .08 here; chance gives .012
    for name in ("recall", "ndcg", "mrr", "recall_100", "ndcg_100"):
        assert report["served"][name]["mean"] == pytest.approx(report["exact"][name]["mean"], rel=0.005)
        assert report["index"][name] == report["served"][name]
        gain = report["served"][name]["mean"] / report["exact"][name]["mean"] - 1
        assert report["served"]["gain"][name]["mean"] == pytest.approx(gain, abs=1e-9)
    assert "reranked" not in report  # nothing orders anew


def test_evaluate_beside_baselines(folder: Path) -> None:
    report = json.loads(builder("evaluate", folder / "run", "--baselines", "-k", 10, "--json"))
    for name in ("exact", "popularity", "item-kNN", "iALS", "EASE"):
        recall = report[name]["recall"]
        assert 0 <= recall["low"] <= recall["mean"] <= recall["high"] <= 1, name
    assert report["popularity"]["coverage"] < 0.1 < report["iALS"]["coverage"]
    assert report["EASE"]["ndcg"]["mean"] > report["popularity"]["ndcg"]["mean"]
    assert report["popularity"]["recall_tail"]["mean"] < 0.01 < report["item-kNN"]["recall"]["mean"]
    assert set(report["notes"]) == {"index", "item-kNN", "iALS", "EASE"}
    assert "holds no version of this run" in report["notes"]["index"]
    shown = builder("evaluate", folder / "run", "-k", 10)
    row = next(line.split() for line in shown.splitlines() if line.startswith("exact"))
    assert [row[1], row[3]] == [f"{report['exact'][name]['mean']:.4f}" for name in ("recall", "ndcg")]


def test_unknown_user_and_empty_request_get_answers(server: StockServer, run: TrainedRun) -> None:
    with RetrievalClient(server.url, timeout=20.0) as client:
        nobody = client.retrieve(k=10)
        stranger = client.retrieve(user={"user_id": 10**9, "gender": "?"}, history=[50, 181], k=10)
    for result in (nobody, stranger):
        assert result.count == 10
        assert np.isfinite(result.scores).all()
    assert nobody.item_ids.tolist() != stranger.item_ids.tolist()
    counts = np.bincount(run.dataset.train.items, minlength=len(run.catalogue))
    assert counts[run.catalogue.find(nobody.item_ids)].min() > np.sort(counts)[-169]  # the most popular 10% of films


def test_evaluate_refuses_another_artifact(server: StockServer, folder: Path, tmp_path: Path) -> None:
    other = folder / "data" / "other.yaml"
    lines = (folder / "data" / "retrieval.yaml").read_text().replace("epochs: 3", "epochs: 1").splitlines()
    other.write_text("\n".join(line for line in lines if "name: age" not in line))
    builder("train", other, "--out", tmp_path / "run")
    with pytest.raises(BuilderError, match=r"takes the user features .*age.*, the run has"):
        builder("evaluate", tmp_path / "run", "--served", server.url)


def test_quickstart_prints_what_was_asked_for(tmp_path: Path) -> None:
    text = builder("quickstart", "--data", DATA, "--work-dir", tmp_path)
    assert "over gRPC" in text
    filtered = text.split("F.genres.any_of(")[1]
    assert "Drama" in filtered or "Comedy" in filtered
    assert "server stopped" in text
    assert (tmp_path / "model_repository" / "retrieval" / "1" / "model.pt").is_file()
