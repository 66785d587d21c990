"""The network in operators of ONNX alone: onnxruntime answers as the served network does that searches everything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from builder.errors import BuilderError
from builder.export.artifact import export
from builder.export.config import PLAIN_BATCH
from builder.export.manifest import verify
from builder.export.onnx import write_onnx
from builder.export.served import configure
from builder.export.sources import read_source
from builder.export.tensorrt import require_tensorrt, write_plan
from builder.export.torchscript import script
from builder.network.pipeline import OUTPUT_NAMES, input_names
from builder.network.ranking import RANKING_OUTPUTS
from tests.builder.artifacts import ask, ask_ranking, configs, listing, neutral, write_config
from tests.builder.export.onnx_networks import ITEMS, Made, make, requests
from tests.builder.export.test_onnx import same

VARIANTS: dict[str, dict[str, Any]] = {
    "query": {"value": "0.5 ** watch - 0.1 * price"},  # not a number where the price is unknown
    "mean, mlp, groups": {"tower": "mean", "rerank": "mlp", "grouped": True},
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Path]:
    made = make(**VARIANTS[request.param], candidates=ITEMS + 10)
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    write_onnx(made.network, made.schema, path, {}, plain=True)
    return made, path


def test_it_computes_what_a_search_of_everything_finds(written: tuple[Made, Path]) -> None:
    made, path = written
    model = onnx.load(path)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert [value.name for value in model.graph.input] == list(input_names(made.schema))
    session = onnxruntime.InferenceSession(str(path))
    served = script(made.network, made.schema)
    for seed, (rows, history, exclude) in enumerate([(9, 3, 5), (1, 1, 1), (8, 9, 2)]):
        inputs = requests(made, rows, seed, history=history, exclude=exclude)
        good = (inputs["search"] >= 0).all(1)
        inputs["search"][good] = torch.tensor([4, ITEMS], dtype=torch.int32)  # all clusters, all items
        got = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.inference_mode():
            expected = served(**inputs)
        same(expected[:5], got[:5], OUTPUT_NAMES[:5], seed)
        passing = expected[5][:, 1].numpy()
        well = got[4][:, 0] == 0
        of_all = np.stack([np.full_like(passing, 4), passing, passing, np.ones_like(passing)], 1)
        np.testing.assert_array_equal(got[5], of_all * well[:, None], f"seed {seed}")


def test_tensorrt_reads_it_and_builds_an_engine(written: tuple[Made, Path], tmp_path: Path) -> None:
    """TensorRT-RTX has TensorRT's parser and builds without a GPU; what it builds runs on RTX GPUs only."""
    tensorrt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    write_plan(written[1], tmp_path / "model.plan", tensorrt)
    assert (tmp_path / "model.plan").stat().st_size > written[0].network.search.vectors.nbytes


def test_what_tensorrt_does_not_take_is_told(tmp_path: Path) -> None:
    tensorrt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    made = make()
    write_onnx(made.network, made.schema, tmp_path / "model.onnx", {})  # with nodes of our own
    with pytest.raises(BuilderError, match=r"TensorRT does not read the network: .*ResolveWeights"):
        write_plan(tmp_path / "model.onnx", tmp_path / "model.plan", tensorrt)
    assert listing(tmp_path) == ["model.onnx"]


def test_tensorrt_is_asked_for_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it fails
    with pytest.raises(BuilderError, match=r"TensorRT is not installed\n  Run it where .* docker run --rm --gpus all"):
        require_tensorrt()
    config = write_config(tmp_path, np.eye(8, dtype=np.float32))
    with pytest.raises(BuilderError, match=r"^--format tensorrt: TensorRT is not installed"):
        export(read_source(config), tmp_path / "repository", formats=["tensorrt"])
    assert not (tmp_path / "repository").exists()


def test_an_older_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "10.8.0.43"

    monkeypatch.setattr("builder.export.tensorrt.importlib.import_module", lambda name: Old)
    with pytest.raises(BuilderError, match=r"got TensorRT 10\.8\.0\.43, expected 10\.9 or newer"):
        require_tensorrt()


def test_an_export_adds_it_and_how_to_serve_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    config = write_config(tmp_path, vectors, "index: {results: 50, max_candidates: 60}\n")
    version = export(read_source(config), tmp_path / "repository", formats=["onnx-plain"])
    assert "plain.onnx" in verify(version).files
    text = (version.parent / "configs" / "onnxruntime.pbtxt").read_text()
    assert 'default_model_filename: "plain.onnx"' in text
    assert f"max_batch_size: {PLAIN_BATCH}\n" in text
    session = onnxruntime.InferenceSession(str(version / "plain.onnx"))
    inputs = neutral(3, torch.from_numpy(vectors[[3, 5, 7]]))  # more results and candidates than items
    same(
        ask(version, inputs)[:5], session.run(None, {n: t.numpy() for n, t in inputs.items()})[:5], OUTPUT_NAMES[:5], 0
    )
    ranking = onnxruntime.InferenceSession(str(tmp_path / "repository" / "retrieval_rank" / "1" / "plain.onnx"))
    inputs = {
        "query": inputs["query"],
        "items": torch.tensor([[39, 2, -1, 77]] * 3),
        "task_weights": torch.full((3, 1), 2.0),
    }
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    same(ask_ranking(version, inputs), ranking.run(None, given), RANKING_OUTPUTS, 0)
    second = export(read_source(config), tmp_path / "repository")
    assert listing(version.parent / "configs") == configs("onnxruntime.pbtxt")  # version 1 is served
    configure(version.parent, second)
    assert listing(version.parent / "configs") == configs()  # version 2 has nothing for onnxruntime


def test_a_plan_becomes_part_of_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorRT would write it, by TensorRT-RTX, which builds without a GPU."""
    tensorrt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    monkeypatch.setattr("builder.export.tensorrt.require_tensorrt", lambda: tensorrt)
    config = write_config(tmp_path, np.eye(8, dtype=np.float32), "index: {results: 3}\n")
    version = export(read_source(config), tmp_path / "repository", rank=False, formats=["tensorrt-plain"])
    files = {"libsilvertriton_ops.so", "model.plan", "model.pt", "model.py"}
    assert set(verify(version).files) == files
    assert set(listing(version)) == files | {"manifest.json", "config.pbtxt", *configs("tensorrt.pbtxt")}
    assert listing(version.parent / "configs") == configs("tensorrt.pbtxt")


def test_rules_of_diversity_are_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, np.eye(8, dtype=np.float32), "diversity: {mmr: 0.5}\nindex: {results: 3}\n")
    with pytest.raises(BuilderError, match=r"^diversity: rules of diversity cannot be written in operators of ONNX"):
        export(read_source(config), tmp_path / "repository", formats=["onnx-plain"])
