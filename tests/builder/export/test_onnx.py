"""Networks as ONNX: what `onnx.reference` computes, the nodes by their slow references, is what is served."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from builder.errors import BuilderError
from builder.export.artifact import export
from builder.export.manifest import verify
from builder.export.onnx import write_onnx
from builder.export.onnx_nodes import DOMAIN
from builder.export.sources import read_source
from builder.export.torchscript import script
from builder.network.pipeline import OUTPUT_NAMES, input_names
from builder.network.ranking import RANKING_OUTPUTS, Ranking, ranking_names
from client.schema import Status
from tests.builder.artifacts import DIMS, TOWER_SECTIONS, Tower, ask, neutral, save_tower, write_config
from tests.builder.export.onnx_networks import IDS, REFERENCE_COLUMNS, make, requests
from tests.builder.export.onnx_reference import nodes

VARIANTS: dict[str, dict[str, Any]] = {
    "query": {"value": "watch * 2 - 0.1 * coalesce(price, 1)", "diversity": {"at_most": {"tags": 2}, "mmr": 0.75}},
    "mean, mlp, groups": {"tower": "mean", "rerank": "mlp", "grouped": True},
    "attention, graph": {"tower": "attention", "rerank": "graph", "diversity": {"at_most": {"colour": 3}, "mmr": None}},
    "mol": {"rerank": "mol", "value": "max(0.5 ** watch, buy)"},
    "groups": {"tower": "mean", "grouped": True, "columns": ()},
}


def same(expected: Any, got: Any, names: tuple[str, ...], seed: int) -> None:
    for name, one, other in zip(names, expected, got, strict=True):
        assert other.dtype == one.numpy().dtype, name
        if one.is_floating_point():
            np.testing.assert_allclose(other, one.numpy(), rtol=1e-5, atol=1e-5, err_msg=f"{name}, seed {seed}")
        else:
            np.testing.assert_array_equal(other, one.numpy(), err_msg=f"{name}, seed {seed}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_what_is_served(variant: str, tmp_path: Path) -> None:
    made = make(**VARIANTS[variant])
    made.network.search.max_filter_words = 12  # one of the four filters is longer
    path = tmp_path / "model.onnx"
    write_onnx(made.network, made.schema, path, {"schema": made.schema.to_json()})
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == list(input_names(made.schema))
    assert [value.name for value in model.graph.output] == list(OUTPUT_NAMES)
    columns = REFERENCE_COLUMNS if made.schema.item_features else []
    evaluator = ReferenceEvaluator(model, new_ops=nodes(columns))
    served = script(made.network, made.schema)
    statuses: set[int] = set()
    for seed, (rows, history, exclude) in enumerate([(9, 3, 5), (1, 1, 1), (6, 9, 2)]):
        inputs = requests(made, rows, seed, history=history, exclude=exclude)
        with np.errstate(all="ignore"), torch.inference_mode():  # some inputs are infinite
            got = evaluator.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            expected = served(**inputs)
        same(expected, got, OUTPUT_NAMES, seed)
        assert (expected[4] == 0).any() or rows == 1, f"seed {seed}"
        statuses.update(expected[4][:, 0].tolist())
    assert Status.FILTER_TOO_LONG in statuses or not made.schema.item_features


@pytest.mark.parametrize("variant", ["query", "mean, mlp, groups"])
def test_the_ranking_model_computes_what_is_served(variant: str, tmp_path: Path) -> None:
    made = make(**VARIANTS[variant])
    ranking = Ranking(made.network).eval()
    path = tmp_path / "model.onnx"
    write_onnx(ranking, made.schema, path, {})
    evaluator = ReferenceEvaluator(onnx.load(path), new_ops=nodes(REFERENCE_COLUMNS))
    served = script(ranking, made.schema)
    for seed, (rows, items) in enumerate([(5, 60), (1, 1)]):  # longer than a search's candidates
        asked = requests(made, rows, seed)
        rng = np.random.default_rng(seed)
        given = [rng.permutation(np.concatenate([IDS, [-1, 99_999]]))[:items] for _ in range(rows)]
        inputs = {**asked, "items": torch.from_numpy(np.stack(given))}
        inputs = {name: inputs[name] for name in ranking_names(made.schema)}
        with np.errstate(all="ignore"), torch.inference_mode():
            got = evaluator.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            same(served(**inputs), got, RANKING_OUTPUTS, seed)


def test_an_export_adds_it_to_the_version(tmp_path: Path) -> None:
    config = write_config(tmp_path, np.eye(8, dtype=np.float32), "index: {results: 3}\n")
    version = export(read_source(config), tmp_path / "repository", formats=["onnx"])
    manifest = verify(version)
    assert "model.onnx" in manifest.files
    assert "model.onnx" in verify(tmp_path / "repository" / "retrieval_rank" / "1").files
    model = onnx.load(version / "model.onnx")
    kept = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(kept["schema"]) == manifest.artifact_schema
    assert kept["fingerprint"] == str(manifest.fingerprint)
    assert (kept["operators"], kept["torch"]) == (str(manifest.operators), torch.__version__)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20, DOMAIN: manifest.operators}
    inputs = neutral(2, torch.eye(8)[[3, 5]])
    evaluator = ReferenceEvaluator(model, new_ops=nodes([]))
    same(ask(version, inputs), evaluator.run(None, {n: t.numpy() for n, t in inputs.items()}), OUTPUT_NAMES, 0)


def test_a_tower_in_torchscript_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    save_tower(Tower(), tmp_path / "tower.pt")
    config = write_config(
        tmp_path, np.eye(DIMS, dtype=np.float32), TOWER_SECTIONS, embeddings="path: vectors.npy, query: tower.pt"
    )
    with pytest.raises(BuilderError, match="a user tower in TorchScript cannot become ONNX"):
        export(read_source(config), tmp_path / "repository", formats=["onnx"])
    assert not (tmp_path / "repository").exists()


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    config = write_config(tmp_path, np.eye(8, dtype=np.float32))
    with pytest.raises(BuilderError, match=r"not installed: onnxscript\n  pip install 'silvertriton\[onnx\]'"):
        export(read_source(config), tmp_path / "repository", formats=["onnx"])


def test_what_takes_more_than_two_gigabytes_lies_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.export.onnx.LARGEST_FILE", 10_000)
    made = make()
    write_onnx(made.network, made.schema, tmp_path / "model.onnx", {})
    assert (tmp_path / "model.onnx.data").stat().st_size > made.network.search.vectors.nbytes
    evaluator = ReferenceEvaluator(str(tmp_path / "model.onnx"), new_ops=nodes(REFERENCE_COLUMNS))
    inputs = requests(made, 3, 0)
    got = evaluator.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    same(script(made.network, made.schema)(**inputs), got, OUTPUT_NAMES, 0)
