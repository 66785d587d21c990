"""A value formula from retrieval.yaml to the order of results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builder.config import Config
from builder.errors import ConfigError
from builder.export.manifest import read_manifest
from builder.export.sources import read_source
from builder.export.tune import tune
from tests.builder.artifacts import ask, export_config, neutral, run, write_config, write_items

ITEMS, RESULTS = 200, 20
FEATURES = (
    "{name: colour, kind: category}",
    "{name: added, kind: date, filter: true}",
    "{name: größe, kind: number}",
    "{name: popularity, kind: number}",
)
DATA = f"data: {{items: {{path: items.parquet, id: sku, features: [{', '.join(FEATURES)}]}}}}\n"
INDEX = f"index: {{results: {RESULTS}, clusters: 4}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    popularity = [None if i % 5 == 0 else float(i % 7) for i in range(ITEMS)]
    write_items(
        tmp_path,
        {
            "sku": np.arange(ITEMS) * 3,
            "colour": ["red", None] * (ITEMS // 2),
            "added": np.arange(ITEMS).astype("datetime64[D]"),
            "größe": rng.normal(size=ITEMS),
            "popularity": popularity,
        },
    )
    np.save(tmp_path / "vectors.npy", rng.normal(size=(ITEMS, 6)).astype(np.float32))
    return tmp_path


def write(folder: Path, formula: str) -> Path:
    vectors = np.load(folder / "vectors.npy")
    return write_config(folder, vectors, f'{DATA}{INDEX}value: "{formula}"\n')


def results(version: Path, query: np.ndarray, weight: float = np.nan) -> tuple[list[int], list[float], list[float]]:
    """Positions of items, their values and the scores of the one task."""
    inputs = neutral(1, torch.from_numpy(query[None]))
    inputs["task_weights"][:] = weight
    item_ids, scores, task_scores, count, status, _ = ask(version, inputs)
    assert (int(count), int(status)) == (RESULTS, 0)
    return (item_ids[0] // 3).tolist(), scores[0].tolist(), task_scores[0, :, 0].tolist()


def test_the_formula_orders_what_the_search_finds(folder: Path) -> None:
    formula = "score + 2 * log(1 + coalesce(popularity, 0)) - größe"
    version = export_config(write(folder, formula), folder / "repository")
    manifest = read_manifest(version)
    assert manifest.value == formula
    assert manifest.index.candidates == 80  # four times the results: the formula chooses among them
    vectors, query = np.load(folder / "vectors.npy"), np.random.default_rng(1).normal(size=6).astype(np.float32)
    popularity = np.array([0 if i % 5 == 0 else i % 7 for i in range(ITEMS)])
    size = np.random.default_rng(0).normal(size=ITEMS)
    inner = vectors.astype(np.float64) @ query
    found = np.argsort(-inner)[:80]
    for weight, used in ((np.nan, 1.0), (0.1, 0.1), (-3.0, -3.0)):
        value = used * inner + 2 * np.log1p(popularity) - size
        expected = found[np.argsort(-value[found])][:RESULTS]
        positions, values, scores = results(version, query, weight)
        assert positions == expected.tolist()
        np.testing.assert_allclose(values, value[expected], atol=5e-3)
        np.testing.assert_allclose(scores, inner[expected], atol=5e-3)


def test_an_item_whose_value_is_unknown_comes_last(folder: Path) -> None:
    version = export_config(write(folder, "score * popularity / popularity"), folder / "repository")
    positions, values, _ = results(version, np.ones(6, np.float32))
    unknown = [i % 5 == 0 or i % 7 == 0 for i in positions]  # 0 / 0 is not known either
    assert unknown == sorted(unknown)
    assert np.isfinite(values[: unknown.count(False)]).all()


@pytest.mark.parametrize("formula", ["log(-1 - abs(score))", "1 / (score - score)", "-exp(abs(score) + 1e4)"])
def test_a_formula_that_tells_nothing_apart_orders_by_id(folder: Path, formula: str) -> None:
    """Not a number for any, or infinite for all: results are as many as ever, by ascending id."""
    version = export_config(write(folder, formula), folder / "repository")
    query = np.ones(6, np.float32)
    positions, values, _ = results(version, query)
    assert not np.isfinite(values).any()
    found = np.argsort(-(np.load(folder / "vectors.npy").astype(np.float64) @ query))[:80]
    assert positions == sorted(found.tolist())[:RESULTS]


def test_dates_are_seconds(folder: Path) -> None:
    version = export_config(write(folder, "added / 86400"), folder / "repository")
    positions, values, _ = results(version, np.ones(6, np.float32))
    assert values == positions == sorted(positions, reverse=True)


def test_it_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = export_config(write(folder, "score * 2"), folder / "repository")
    assert run("inspect", "--repository", version.parents[1]) == 0
    assert "score * 2" in capsys.readouterr().out
    assert run("inspect", "--repository", version.parents[1], "--item", 3) == 0
    shown = capsys.readouterr().out
    assert "1970-01-02" in shown
    assert "popularity" in shown


def test_tune_keeps_the_candidates_that_a_formula_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.export.calibrate._exact_rows", lambda search, queries: 0)
    config = write(folder, "score + popularity")
    export_config(config, folder / "repository")
    tuned = tune(read_source(config), folder / "repository", recall=0.9)
    assert tuned.version is not None
    assert read_manifest(tuned.version).index.candidates == tuned.chosen.candidates == 80
    assert read_manifest(tuned.version).value == "score + popularity"


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("score + lik", "value: column 9: unknown name 'lik'; expected one of added, größe, popularity, score"),
        ("score + colour", "value: column 9: unknown name 'colour'"),
        ("2", "value: '2' names no task and no item feature"),
        ("score +", "value: 'score +' is no formula"),
    ],
)
def test_bad_formulas_are_found_when_the_file_is_read(folder: Path, formula: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("+", "\\+")):
        Config.load(write(folder, formula))


def test_a_number_that_is_named_like_a_task(folder: Path) -> None:
    path = write(folder, "score")
    path.write_text(path.read_text().replace("name: popularity", "name: score, column: popularity"))
    with pytest.raises(ConfigError, match="value: 'score' is a task and an item feature; rename the feature"):
        Config.load(path)
