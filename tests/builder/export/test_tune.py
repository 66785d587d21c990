"""The next version has the defaults that a recall asks for, finds what it says it finds, and is otherwise the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builder.data.vectors import Vectors
from builder.errors import BuilderError
from builder.export import calibrate as calibrate_module
from builder.export.artifact import Source, export
from builder.export.calibrate import CANDIDATES, candidates_for
from builder.export.config import configured_processes
from builder.export.manifest import OPERATORS, read_manifest, verify
from builder.export.sources import read_source
from builder.export.tune import Tuned, tune
from tests.builder.artifacts import (
    TOWER_SECTIONS,
    Tower,
    ask,
    ask_ranking,
    listing,
    neutral,
    save_tower,
    version_listing,
    write_config,
    write_items,
)

SEED, ITEMS, DIMS, QUERIES, RESULTS = 12, 6000, 16, 150, 20


@pytest.fixture(scope="module", autouse=True)
def probing() -> Iterator[None]:
    """Catalogues as small as these would be scanned whole, because that costs less than choosing clusters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate_module, "_exact_rows", lambda search, queries: 0)
        # What it chooses candidates by, without the machine's mood.
        patch.setattr(calibrate_module, "median_milliseconds", lambda search, queries: float(search.candidates))
        yield


@dataclass(frozen=True)
class Shop:
    """A folder with a version 1 of recall .9: `vectors` [N, D], `ids` [N], held-out `queries` [Q, D]."""

    folder: Path
    vectors: np.ndarray
    ids: np.ndarray
    queries: np.ndarray

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def source(self) -> Source:
        return read_source(self.folder / "retrieval.yaml")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Ids are neither sorted nor dense, and an item feature can be filtered by."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(60, DIMS))

    def near(count: int) -> np.ndarray:
        return (centres[rng.integers(0, 60, size=count)] + 1.5 * rng.normal(size=(count, DIMS))).astype(np.float32)

    vectors, queries = near(ITEMS), near(QUERIES)
    ids = rng.permutation(10 * ITEMS)[:ITEMS].astype(np.int64)
    write_items(folder, {"sku": ids, "colour": [None if i % 7 == 0 else f"colour {i % 5}" for i in range(ITEMS)]})
    features = "[{name: colour, kind: category, filter: true}]"
    data = f"data: {{items: {{path: items.parquet, id: sku, features: {features}}}}}\n"
    index = f"index: {{clusters: 80, recall: 0.9, results: {RESULTS}}}\n"
    np.save(folder / "queries.npy", queries)
    write_config(folder, vectors, data + index, embeddings="path: vectors.npy, samples: queries.npy")
    shop = Shop(folder, vectors, ids, queries)
    export(shop.source, shop.repository, threads=2, instances=3)
    return shop


@pytest.fixture(scope="module")
def tuned(shop: Shop) -> list[Tuned]:
    """Version 2, of the version's own target, and versions 3 and 4."""
    return [tune(shop.source, shop.repository, recall=recall) for recall in (None, 0.7, 0.99)]


def written(tuned: Tuned) -> Path:
    assert tuned.version is not None
    return tuned.version


def served_recall(version: Path, shop: Shop, reach: float = 0.0, candidates: int = 0) -> float:
    """Share of the exact top in float64 among what the whole network of a version returns, with that more reach."""
    inputs = neutral(QUERIES, torch.from_numpy(shop.queries))
    inputs["search"][:, 1] = candidates
    network = torch.jit.load(str(version / "model.pt"))
    network.search.reach = network.search.reach + reach
    item_ids = network(**inputs)[0].numpy()
    scores = shop.queries.astype(np.float64) @ shop.vectors.astype(np.float64).T
    exact = shop.ids[np.argsort(-scores, axis=1)[:, :RESULTS]]
    return sum(len(np.intersect1d(a, b)) for a, b in zip(item_ids, exact, strict=True)) / exact.size


def test_the_network_has_the_defaults_and_the_recall_that_are_reported(shop: Shop, tuned: list[Tuned]) -> None:
    for found, target in zip(tuned, (0.9, 0.7, 0.99), strict=True):
        version = written(found)
        manifest = verify(version)
        search = torch.jit.load(str(version / "model.pt")).search
        chosen = found.chosen
        assert (search.probes, search.candidates) == (0, chosen.candidates)
        index = manifest.index
        assert (index.reach[0], index.mean_probes, index.candidates) == (
            chosen.reach,
            chosen.probes,
            chosen.candidates,
        )
        assert search.exact_rows == manifest.index.exact_rows
        np.testing.assert_allclose(search.reach.numpy(), manifest.index.reach, atol=1e-3)
        assert manifest.recall == found.recall
        assert (found.recall.at, found.recall.target, found.recall.queries) == (RESULTS, target, QUERIES)
        assert found.recall.source == "queries.npy"
        assert found.recall.measured >= target
        assert served_recall(version, shop) == pytest.approx(found.recall.measured, abs=0.005)  # near-ties may swap
        stats = ask(version, neutral(QUERIES, torch.from_numpy(shop.queries)))[5]
        assert float(stats[:, 0].float().mean()) == pytest.approx(chosen.probes, abs=0.1)


def test_a_higher_target_takes_more_reach(tuned: list[Tuned]) -> None:
    by_target = sorted(tuned, key=lambda found: found.recall.target)
    reach = [found.chosen.reach for found in by_target]
    assert reach[0] < reach[1] < reach[2]
    probes = [found.chosen.probes for found in by_target]
    assert 1 <= probes[0] < probes[1] < probes[2] < 80
    measured = [found.recall.measured for found in by_target]
    assert measured == sorted(measured)


def test_the_versions_own_target_gives_the_defaults_of_the_export(shop: Shop, tuned: list[Tuned]) -> None:
    first = read_manifest(shop.repository / "retrieval" / "1")
    again = read_manifest(written(tuned[0]))
    assert again.recall == first.recall
    assert again.index == first.index


def test_everything_but_the_defaults_is_equal(shop: Shop, tuned: list[Tuned]) -> None:
    home = shop.repository / "retrieval"
    before, after = (torch.jit.load(str(home / name / "model.pt")) for name in ("1", "4"))
    assert written(tuned[2]) == home / "4"
    stored = dict(before.named_buffers())
    assert [name for name, _ in after.named_buffers()] == list(stored)
    for name, tensor in after.named_buffers():
        assert name == "search.reach" or torch.equal(tensor, stored[name]), name
    first, last = (json.loads((home / name / "manifest.json").read_text()) for name in ("1", "4"))
    for name in ("mean_probes", "candidates", "exact_rows", "reach"):
        del first["index"][name], last["index"][name]
    assert {name for name in first if first[name] != last[name]} <= {"created", "files", "recall", "curve", "index"}
    assert first["index"]["bytes"].pop("reach") > 0
    assert last["index"]["bytes"].pop("reach") == after.search.reach.nbytes
    assert first["index"] == last["index"]
    inputs = neutral(QUERIES, torch.from_numpy(shop.queries))
    inputs["search"][:] = torch.tensor([80, 40], dtype=torch.int32)  # what asks for settings gets the same answers
    for one, other in zip(ask(home / "1", inputs), ask(home / "4", inputs), strict=True):
        assert torch.equal(one, other)


def test_the_version_before_and_what_is_served_stay(shop: Shop) -> None:
    kept = {path: path.read_bytes() for path in shop.repository.rglob("*") if path.is_file()}
    found = tune(shop.source, shop.repository, recall=0.8)
    try:
        number = int(written(found).name)
        for model in ("retrieval", "retrieval_rank"):
            for config in ("config.pbtxt", "pytorch.pbtxt"):
                assert configured_processes(shop.repository / model / str(number) / config) == (2, 3)
        for path, content in kept.items():
            assert path.read_bytes() == content, path
        assert listing(shop.repository) == version_listing(*range(1, number + 1))
    finally:
        for model in ("retrieval", "retrieval_rank"):
            shutil.rmtree(shop.repository / model / written(found).name)


def test_the_ranking_model_goes_along(shop: Shop, tuned: list[Tuned]) -> None:
    number = written(tuned[2]).name
    first, last = (read_manifest(shop.repository / "retrieval_rank" / name) for name in ("1", number))
    assert last.ranks is not None
    assert (last.ranks.model, last.ranks.version) == ("retrieval", int(number))
    assert last.snapshot == read_manifest(written(tuned[2])).snapshot != first.snapshot
    queries = torch.from_numpy(shop.queries)
    inputs = {"query": queries, "items": torch.arange(50).repeat(QUERIES, 1), "task_weights": torch.ones(QUERIES, 1)}
    before = ask_ranking(shop.repository / "retrieval" / "1", inputs)
    for one, other in zip(before, ask_ranking(written(tuned[2]), inputs), strict=True):
        assert torch.equal(one, other)


def test_a_ranking_model_of_another_snapshot_is_refused(shop: Shop, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    first = export(shop.source, repository)
    shutil.rmtree(first)
    np.save(tmp_path / "others.npy", np.eye(30, dtype=np.float32))
    export(read_source(tmp_path / "others.npy"), tmp_path / "others")
    shutil.copytree(tmp_path / "others" / "retrieval" / "1", first)
    with pytest.raises(BuilderError, match=r"retrieval_rank/1: is of another snapshot than .*\n  Export both again"):
        tune(read_source(tmp_path / "others.npy"), repository)
    shutil.rmtree(repository / "retrieval_rank" / "1")
    (repository / "retrieval_rank" / "2").mkdir()
    with pytest.raises(BuilderError, match=r"retrieval_rank does not hold version 1 \(versions: 2\); .*builder export"):
        tune(read_source(tmp_path / "others.npy"), repository)


def test_the_curve_is_what_the_network_finds_at_each_setting(shop: Shop, tuned: list[Tuned]) -> None:
    found = tuned[0]
    settings = [(point.reach, point.candidates) for point in found.curve]
    assert settings == sorted(set(settings))
    assert found.chosen in found.curve
    chosen = found.chosen
    assert {candidates for reach, candidates in settings if reach == chosen.reach} == {
        candidates_for(factor, RESULTS, 1024) for factor in CANDIDATES
    } | {chosen.candidates}
    by_reach = [point for point in found.curve if point.candidates == chosen.candidates]
    assert by_reach[0].reach < chosen.reach < by_reach[-1].reach
    assert by_reach[0].probes < chosen.probes < by_reach[-1].probes <= 80
    for point in found.curve:
        assert 0 < point.milliseconds < 1000
    for one, other in pairwise(by_reach):
        assert one.recall <= other.recall + 0.005
    version = written(found)
    for point in (by_reach[0], chosen, by_reach[-1]):
        measured = served_recall(version, shop, reach=point.reach - chosen.reach, candidates=point.candidates)
        assert point.recall == pytest.approx(measured, abs=0.005), point


def test_the_version_keeps_its_curve(shop: Shop, tuned: list[Tuned]) -> None:
    for found in tuned:
        curve = read_manifest(written(found)).curve
        assert curve is not None
        assert curve.points == found.curve
        assert curve.machine
    assert read_manifest(shop.repository / "retrieval" / "1").curve is None


def test_a_manifest_without_a_curve_is_read(shop: Shop, tuned: list[Tuned], tmp_path: Path) -> None:
    """As those written before there were curves."""
    raw = json.loads((written(tuned[0]) / "manifest.json").read_text())
    assert raw.pop("curve")
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    assert read_manifest(tmp_path).curve is None


def test_a_trial_writes_nothing_and_chooses_the_same(shop: Shop, tuned: list[Tuned]) -> None:
    there = {path: path.stat().st_mtime_ns for path in shop.folder.rglob("*")}
    trial = tune(shop.source, shop.repository, recall=0.99, write=False)
    assert trial.version is None
    assert trial.recall == tuned[2].recall
    assert (trial.chosen.reach, trial.chosen.candidates) == (tuned[2].chosen.reach, tuned[2].chosen.candidates)
    assert {path: path.stat().st_mtime_ns for path in shop.folder.rglob("*")} == there


def other_id(shop: Shop) -> Source:
    source = shop.source
    ids = source.catalogue.ids.copy()
    ids[ITEMS // 2] = 10 * ITEMS
    return replace(source, catalogue=replace(source.catalogue, ids=ids))


def other_vector(shop: Shop) -> Source:
    vectors = shop.vectors.copy()
    vectors[ITEMS - 1, 3] += 0.05
    return replace(shop.source, vectors=Vectors(vectors))


def other_order(shop: Shop) -> Source:
    return replace(shop.source, vectors=Vectors(shop.vectors, np.roll(np.arange(ITEMS), 1)))


def other_dims(shop: Shop) -> Source:
    return replace(shop.source, vectors=Vectors(shop.vectors[:, :-1].copy()))


def fewer(shop: Shop) -> Source:
    source = shop.source
    return replace(
        source,
        catalogue=replace(source.catalogue, ids=source.catalogue.ids[:-1]),
        vectors=Vectors(shop.vectors[:-1].copy()),
    )


@pytest.mark.parametrize("change", [other_id, other_vector, other_order, other_dims, fewer])
def test_a_source_that_the_version_is_not_of_is_refused(shop: Shop, change: Any) -> None:
    there = listing(shop.repository)
    with pytest.raises(BuilderError, match=r"^test: holds other items or vectors than .*/retrieval/\d+\n  .*export"):
        tune(change(shop), shop.repository, recall=0.9)
    assert listing(shop.repository) == there


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30])
def test_vectors_of_any_magnitude_are_recognised(tmp_path: Path, scale: float) -> None:
    vectors = np.random.default_rng(SEED).normal(size=(100, 4)).astype(np.float32)
    vectors[0] = 0
    vectors[1:] *= np.float32(scale)
    write_config(tmp_path, vectors, "index: {results: 5, clusters: 2}")
    source = read_source(tmp_path / "retrieval.yaml")
    export(source, tmp_path / "repository")
    assert tune(source, tmp_path / "repository", write=False).recall.queries == 100


def test_what_cannot_be_tuned_is_refused_before_any_work(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="nowhere is no directory; give the model repository with --repository"):
        tune(shop.source, tmp_path / "nowhere")
    with pytest.raises(BuilderError, match=r"does not hold any version \(versions: none\); .*builder export"):
        tune(shop.source, tmp_path)
    for recall in (0.0, 1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(BuilderError, match=f"^recall: got {recall}, expected a share above 0 and below 1"):
            tune(shop.source, shop.repository, recall=recall)
    with pytest.raises(BuilderError, match="letters, digits, '_' and '-' only"):
        tune(shop.source, shop.repository, model="a/b")
    np.save(tmp_path / "few.npy", np.eye(4, dtype=np.float32))
    source = read_source(tmp_path / "few.npy")
    version = export(source, tmp_path / "repository")
    manifest = version / "manifest.json"
    written = manifest.read_text()
    manifest.write_text(written.replace(f'"operators": {OPERATORS}', '"operators": 1'))
    has = f"this builder has {OPERATORS}"
    with pytest.raises(BuilderError, match=rf"/1: is for operators 1, {has}\n  .*builder export"):
        tune(source, tmp_path / "repository")
    manifest.write_text(written)
    config = version / "config.pbtxt"
    text = config.read_text()
    config.write_text("not a configuration")
    with pytest.raises(BuilderError, match=r"/config.pbtxt: cannot be read: .*\n  Export the model again"):
        tune(source, tmp_path / "repository")
    config.write_text(text)
    model = version / "model.pt"
    content = bytearray(model.read_bytes())
    content[1000] ^= 1
    model.write_bytes(content)
    with pytest.raises(BuilderError, match="does not have the SHA-256"):
        tune(source, tmp_path / "repository")
    assert listing(tmp_path / "repository") == version_listing(1)


def test_a_tower_and_its_history_are_kept(tmp_path: Path) -> None:
    vectors = np.random.default_rng(SEED).normal(size=(300, 8)).astype(np.float32)
    save_tower(Tower(), tmp_path / "tower.pt")
    write_config(tmp_path, vectors, TOWER_SECTIONS, embeddings="path: vectors.npy, query: tower.pt")
    source = read_source(tmp_path / "retrieval.yaml")
    first = export(source, tmp_path / "repository")
    second = tune(source, tmp_path / "repository", recall=0.5).version
    assert second is not None
    user = {
        "history": torch.tensor([[3, 250, -1]]),
        "status": torch.tensor([[4]]),
        "age": torch.tensor([[30.0]]),
        **neutral(1),
    }
    user["search"][:] = torch.tensor([[4, 50]])
    for one, other in zip(ask(first, user), ask(second, user), strict=True):
        assert torch.equal(one, other)
