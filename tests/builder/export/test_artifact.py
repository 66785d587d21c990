"""Catalogues at the edges of what can be exported: each is served exactly, or refused with a reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from builder.config import Config, Embeddings, IndexConfig
from builder.errors import BuilderError
from builder.export import artifact
from builder.export.artifact import export
from builder.export.manifest import read_manifest
from builder.export.sources import from_embeddings
from client import F, Status, compile_filter
from client.schema import Feature
from tests.builder.artifacts import (
    ask,
    exact,
    export_config,
    export_vectors,
    listing,
    neutral,
    write_config,
    write_items,
)


def answers(version: Path, queries: np.ndarray) -> list[list[int]]:
    item_ids, _, _, count, status, _ = ask(version, neutral(len(queries), torch.from_numpy(queries)))
    assert status.sum() == 0
    return [ids[:n].tolist() for ids, n in zip(item_ids, count[:, 0].tolist(), strict=True)]


def test_one_item(tmp_path: Path) -> None:
    version = export_vectors(tmp_path, np.array([[3.0, -4.0]], np.float32), "index: {results: 5}")
    item_ids, scores, _, count, _, stats = ask(version, neutral(1, torch.tensor([[1.0, 1.0]])))
    assert item_ids.tolist() == [[0, -1, -1, -1, -1]]
    assert scores[0, 0].item() == pytest.approx(-1.0, abs=1e-2)
    assert torch.isneginf(scores[0, 1:]).all()
    assert (count.tolist(), stats.tolist()) == ([[1]], [[1, 1, 1, 1]])
    manifest = read_manifest(version)
    assert (manifest.index.clusters, manifest.recall.at, manifest.recall.measured) == (1, 1, 1.0)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_equal_vectors_come_in_the_order_of_their_ids(tmp_path: Path, value: float) -> None:
    version = export_vectors(tmp_path, np.full((200, 6), value, np.float32), "index: {results: 5, clusters: 4}")
    assert answers(version, np.ones((2, 6), np.float32)) == [[0, 1, 2, 3, 4]] * 2
    assert read_manifest(version).recall.measured == 1.0


@pytest.mark.parametrize("dims", [1, 130])
def test_few_and_many_dims(tmp_path: Path, dims: int) -> None:
    seed = dims
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(150, dims)).astype(np.float32)
    queries = rng.normal(size=(10, dims)).astype(np.float32)
    version = export_vectors(tmp_path, vectors, "index: {results: 5, clusters: 2, probes: 2}")
    for query, found in zip(queries, answers(version, queries), strict=True):
        assert found == exact(vectors, query, 5), f"seed {seed}"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_magnitudes(tmp_path: Path, scale: float) -> None:
    seed = 7
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(150, 8)).astype(np.float32)
    queries = rng.normal(size=(10, 8)).astype(np.float32)
    version = export_vectors(tmp_path, vectors * np.float32(scale), "index: {results: 5, clusters: 2}")
    for query, found in zip(queries, answers(version, queries), strict=True):
        wanted = exact(vectors, query, 5)
        assert len(set(found) & set(wanted)) >= 4, f"seed {seed}"
    assert read_manifest(version).recall.measured >= 0.99


def test_ids_up_to_the_largest(tmp_path: Path) -> None:
    ids = np.array([2**63 - 1, 0, 2**62, 2**53 + 1, 5], np.int64)
    vectors = np.arange(1, 6, dtype=np.float32)[:, None]
    write_items(tmp_path, {"sku": ids})
    config = write_config(tmp_path, vectors, "data: {items: {path: items.parquet, id: sku}}\nindex: {results: 5}\n")
    version = export(from_embeddings(Config.load(config)), tmp_path / "repository")
    assert answers(version, np.ones((1, 1), np.float32)) == [[5, 2**53 + 1, 2**62, 0, 2**63 - 1]]
    inputs = neutral(1, torch.ones(1, 1))
    inputs["exclude"] = torch.tensor([[2**63 - 1, 2**53, 0, -1]])
    assert ask(version, inputs)[0].tolist() == [[5, 2**53 + 1, 2**62, -1, -1]]


def test_fewer_items_than_results_are_padded(tmp_path: Path) -> None:
    vectors = np.eye(3, dtype=np.float32)
    version = export_vectors(tmp_path, vectors, "index: {results: 100}")
    item_ids, _, _, count, _, _ = ask(version, neutral(1, torch.tensor([[1.0, 0.5, 0.2]])))
    assert item_ids[0, :4].tolist() == [0, 1, 2, -1]
    assert (item_ids.shape, count.tolist()) == ((1, 100), [[3]])


def test_more_clusters_than_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match=r"index.clusters: got 5, expected at most the number of items, 4\n.*auto"):
        export_vectors(tmp_path, np.eye(4, dtype=np.float32), "index: {clusters: 5}")
    assert listing(tmp_path / "repository") == []


def test_vectors_longer_than_the_operators_take_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifact.MAX_DIMS == 133_144  # docs/operators.md, scan
    monkeypatch.setattr(artifact, "MAX_DIMS", 3)
    with pytest.raises(BuilderError, match="test: vectors have 4 dims, expected at most 3"):
        export_vectors(tmp_path, np.eye(4, dtype=np.float32))
    assert listing(tmp_path / "repository") == []


def test_user_features_need_ascii_names(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    source = from_embeddings(Config(name="t", embeddings=Embeddings(path=tmp_path / "v.npy"), index=IndexConfig()))
    object.__setattr__(source, "user_features", (Feature("größe", "number"),))
    with pytest.raises(BuilderError, match="user feature 'größe': TorchScript takes ASCII names only"):
        export(source, tmp_path / "repository")


def test_the_manifest_counts_what_was_built(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 10)).astype(np.float32)
    version = export_vectors(tmp_path, vectors, "index: {results: 7, clusters: 5, candidates: 20, max_candidates: 90}")
    manifest = read_manifest(version)
    index, schema = manifest.index, manifest.read_schema()
    assert (index.items, index.dims, index.clusters, index.candidates) == (500, 10, 5, 20)
    assert index.cluster_items[0] <= index.cluster_items[1] <= index.cluster_items[2] <= 500
    assert (schema.max_results, schema.max_candidates, schema.clusters, schema.query_dims) == (7, 90, 5, 10)
    network = torch.jit.load(str(version / "model.pt"))
    stored = sum(buffer.nbytes for buffer in network.buffers())
    assert sum(index.bytes.values()) == stored - 4  # the weight of the one task
    assert index.probes == network.search.probes


def devices_of(network: torch.jit.ScriptModule) -> set[str]:
    """Devices that stand in the code of a network as constants."""
    return set(re.findall(r'Device = prim::Constant\[value="(\w+)', str(network.inlined_graph)))


def test_no_device_is_baked_in(tmp_path: Path) -> None:
    traced = torch.jit.trace(lambda given: given + torch.zeros(2), torch.zeros(2))
    assert devices_of(traced) == {"cpu"}
    version = export_vectors(tmp_path, np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32))
    assert devices_of(torch.jit.load(str(version / "model.pt"))) == set()


def test_item_features_in_other_scripts(tmp_path: Path) -> None:
    """Item features, unlike user features, may have any name: they never become an argument."""
    write_items(tmp_path, {"sku": [3, 1], "größe": [1.5, None]})
    data = "data: {items: {path: items.parquet, id: sku, features: [{name: größe, kind: number, filter: true}]}}\n"
    config = write_config(tmp_path, np.eye(2, dtype=np.float32), data)
    version = export(from_embeddings(Config.load(config)), tmp_path / "repository")
    assert read_manifest(version).read_schema().item_features[0].name == "größe"
    assert answers(version, np.array([[1, 0]], np.float32)) == [[3, 1]]


def test_a_filter_of_too_many_words_is_its_rows_own_fault(tmp_path: Path) -> None:
    write_items(tmp_path, {"sku": np.arange(20), "shop": np.arange(20) % 5})
    text = "data: {items: {path: items.parquet, id: sku, features: [{name: shop, kind: category, filter: true}]}}\n"
    config = write_config(
        tmp_path, np.eye(20, 4, dtype=np.float32), f"{text}index: {{results: 5, max_filter_words: 10}}"
    )
    version = export_config(config, tmp_path / "repository")
    manifest = read_manifest(version)
    assert (manifest.contract.max_filter_words, manifest.contract.items) == (10, 20)
    schema = manifest.read_schema()
    longest, longer = (compile_filter(F.shop.is_in(range(n)), schema) for n in (7, 8))
    assert (len(longest), len(longer)) == (10, 11)
    programs = np.zeros((7, 16), np.int64)
    programs[[0, 2, 3, 4, 5], :11] = longer
    programs[1, :10] = longest
    programs[3, 0] = 0  # of another schema
    programs[4, 2] = 99  # no opcode
    programs[6, 1] = 2**63 - 1
    inputs = {**neutral(7, torch.ones(7, 4)), "filter": torch.from_numpy(programs)}
    inputs["exclude"][2] = -5
    inputs["task_weights"][5] = float("inf")
    _, _, _, count, status, stats = ask(version, inputs)
    assert status[:, 0].tolist() == [
        Status.FILTER_TOO_LONG,
        Status.OK,
        Status.EXCLUDE,  # the smallest code
        Status.FILTER_FINGERPRINT,
        Status.FILTER_MALFORMED,
        Status.TASK_WEIGHTS,
        Status.FILTER_FINGERPRINT,
    ]
    assert count[:, 0].tolist() == [0, 5, 0, 0, 0, 0, 0]
    assert stats[0].tolist() == [0] * 4
    narrow = {name: tensor[:2] for name, tensor in inputs.items()} | {
        "filter": torch.from_numpy(programs[:2, :10].copy())
    }
    assert ask(version, narrow)[4][:, 0].tolist() == [Status.FILTER_MALFORMED, Status.OK]  # the first is cut off
    configurations = [path.read_text() for path in (version.parent / "configs").glob("*.pbtxt")]
    assert configurations
    for text in configurations:
        assert 'key: "max_filter_words"\n  value {\n    string_value: "10"' in text
