"""Rules of the last selection from retrieval.yaml to results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from builder.config import Config, Diversity
from builder.data.synthetic import synthetic
from builder.errors import BuilderError
from builder.export.artifact import export
from builder.export.manifest import read_manifest, verify
from builder.export.sources import read_source
from builder.export.tune import tune
from builder.training.run import train
from client.hashing import UNKNOWN_KEY
from tests.builder.artifacts import ask, exact, export_config, keep_at_most, neutral, run, write_config, write_items

ITEMS, RESULTS, SEED = 300, 20, 3
DATA = """
data:
  items:
    path: items.parquet
    id: sku
    features:
      - {name: author, kind: category}
      - {name: genres, kind: tags}
      - {name: popularity, kind: number}
"""
RULES = {"author": 2, "genres": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(SEED)
    write_items(
        tmp_path,
        {
            "sku": np.arange(ITEMS),
            "author": [None if rng.random() < 0.1 else f"author {rng.integers(20)}" for _ in range(ITEMS)],
            "genres": [[g for g in ("drama", "war", "noir", "comedy") if rng.random() < 0.3] for _ in range(ITEMS)],
            "popularity": rng.normal(size=ITEMS),
        },
    )
    np.save(tmp_path / "vectors.npy", whole_numbers(rng, ITEMS))
    return tmp_path


def whole_numbers(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, 6] vectors that the index holds without rounding, so that results are those of exact search."""
    vectors = rng.integers(-127, 128, (count, 6)).astype(np.float32)
    vectors[:, 5] = 127
    return vectors


def write(folder: Path, diversity: str, *, index: str = "", more: str = "") -> Path:
    settings = f"index: {{results: {RESULTS}, clusters: 4{index}}}\ndiversity: {diversity}\n{more}"
    return write_config(folder, np.load(folder / "vectors.npy"), DATA + settings)


def plain_values(folder: Path) -> dict[int, dict[str, list[str]]]:
    return {
        item["sku"]: {"author": [item["author"]] if item["author"] else [], "genres": item["genres"]}
        for item in pq.read_table(folder / "items.parquet").to_pylist()
    }


def test_results_obey_the_rules_and_are_those_of_the_reference(folder: Path) -> None:
    config = write(folder, "{at_most: {author: 2, genres: 2}}", index=", probes: 4, code_dims: 6")
    version = export_config(config, folder / "repository")
    manifest = verify(version)
    assert manifest.diversity == Diversity(at_most=RULES)
    assert manifest.index.candidates == 80  # four times the results: the rules pass some over
    network = torch.jit.load(str(version / "model.pt"))
    assert sum(manifest.index.bytes.values()) == sum(buffer.nbytes for buffer in network.buffers()) - 4
    vectors, values = np.load(folder / "vectors.npy"), plain_values(folder)
    queries = whole_numbers(np.random.default_rng(1), 20)
    item_ids, _, _, counts, status, _ = ask(version, neutral(20, torch.from_numpy(queries)))
    assert status.sum() == 0
    fewer = 0
    for query, ids, count in zip(queries, item_ids.tolist(), counts[:, 0].tolist(), strict=True):
        expected = keep_at_most(exact(vectors, query, 80), values, RULES, RESULTS)
        assert ids == expected + [-1] * (RESULTS - len(expected)), f"seed {SEED}"
        assert count == len(expected)
        fewer += count < RESULTS
    assert 0 < fewer < 20
    source = read_source(config)
    every, mean = source.queries, manifest.index.mean_results
    counts = ask(version, neutral(len(every), every))[3]
    assert mean == pytest.approx(counts.double().mean().item(), abs=0.05)
    assert mean < RESULTS


def test_rules_apply_to_what_the_formula_orders(folder: Path) -> None:
    config = write(folder, "{at_most: {author: 1}}", index=f", candidates: {ITEMS}", more="value: popularity\n")
    version = export_config(config, folder / "repository")
    popularity = np.array(read_source(config).catalogue.columns[2].values)  # type: ignore[union-attr]
    ranked = np.argsort(-popularity, kind="stable").tolist()
    expected = keep_at_most(ranked, plain_values(folder), {"author": 1}, RESULTS)
    item_ids, scores, _, _, _, _ = ask(version, neutral(1, torch.ones(1, 6)))
    assert item_ids[0].tolist() == expected
    np.testing.assert_allclose(scores[0].numpy(), popularity[expected], rtol=1e-6)


def test_a_trained_run_keeps_its_rules(tmp_path: Path) -> None:
    path = synthetic(tmp_path, users=60, items=120, seed=2)
    settings = "training: {epochs: 1, batch: 128}\nindex: {results: 10}\ndiversity: {at_most: {category: 1}}\n"
    path.write_text(path.read_text() + settings)
    train(Config.load(path), tmp_path / "run", False)
    version = export(read_source(tmp_path / "run"), tmp_path / "repository")
    assert verify(version).diversity == Diversity(at_most={"category": 1})
    unknown = torch.full((1, 1), UNKNOWN_KEY)
    user = {"user_id": unknown, "age": torch.tensor([[30.0]]), "country": unknown, "history": torch.tensor([[-1]])}
    item_ids, _, _, counts, status, _ = ask(version, {**user, **neutral(1)})
    assert status.item() == 0
    items = {item["item_id"]: item["category"] for item in pq.read_table(tmp_path / "items.parquet").to_pylist()}
    found = [items[item] for item in item_ids[0, : counts.item()].tolist()]
    assert sorted(found) == sorted(set(items.values()))  # one of each of the eight


def test_candidates_that_are_given_stay(folder: Path) -> None:
    config = write(folder, "{mmr: 0.5}", index=", candidates: 50")
    assert read_manifest(export_config(config, folder / "repository")).index.candidates == 50


def test_tune_keeps_the_candidates_that_rules_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.export.calibrate._exact_rows", lambda search, queries: 0)
    config = write(folder, "{at_most: {author: 2}, mmr: 0.9}")
    first = export_config(config, folder / "repository")
    tuned = tune(read_source(config), folder / "repository", recall=0.9)
    assert tuned.version is not None
    manifest = verify(tuned.version)
    assert manifest.index.candidates == tuned.chosen.candidates == 80
    assert tuned.keeps_candidates
    assert manifest.index.mean_results == pytest.approx(read_manifest(first).index.mean_results, abs=1)
    assert manifest.diversity == read_manifest(first).diversity == Diversity(at_most={"author": 2}, mmr=0.9)
    inputs = neutral(1, torch.ones(1, 6))
    inputs["search"][0, 0] = 4  # all clusters
    for one, other in zip(ask(first, inputs), ask(tuned.version, inputs), strict=True):
        assert torch.equal(one, other)


def test_they_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(folder, "{at_most: {author: 2, genres: 1}, mmr: 0.75}")
    assert run("export", config, "--repository", folder / "repository") == 0
    left = read_manifest(folder / "repository" / "retrieval" / "1").index.mean_results
    assert left is not None
    assert f"warning: the rules of diversity leave {left:.1f} of {RESULTS} results" in capsys.readouterr().err
    assert run("inspect", "--repository", folder / "repository") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "at most 2 of one author, 1 of one genres; mmr 0.75" in shown
    assert f"{left:.1f} of {RESULTS} results pass on average" in shown
    assert run("tune", config, "--repository", folder / "repository", "--dry-run") == 0
    assert "candidates stay 80, as a reranker" in capsys.readouterr().out


def test_a_manifest_with_rules_that_cannot_be(folder: Path) -> None:
    version = export_config(write(folder, "{mmr: 0.5}"), folder / "repository")
    path = version / "manifest.json"
    path.write_text(path.read_text().replace('"mmr": 0.5', '"mmr": 5'))
    with pytest.raises(BuilderError, match=r"field diversity\.mmr: Input should be less than or equal to 1"):
        read_manifest(version)
