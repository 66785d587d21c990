"""A snapshot's two models are written together, under one number, or neither of them is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from builder.errors import BuilderError
from builder.export import repository as module
from builder.export.artifact import Source, export
from builder.export.manifest import MODEL_FILE, Ranks, read_manifest, verify
from builder.export.repository import find_version
from builder.export.sources import read_source
from client.schema import Schema
from tests.builder.artifacts import (
    TOWER_SECTIONS,
    Tower,
    ask,
    ask_ranking,
    listing,
    neutral,
    run,
    save_tower,
    version_listing,
    write_config,
)

SEED = 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    np.save(folder / "vectors.npy", np.random.default_rng(SEED).normal(size=(70, 4)).astype(np.float32))
    return read_source(folder / "vectors.npy")


def config(path: Path) -> Any:
    read = model_config_pb2.ModelConfig()
    text_format.Parse(path.read_text(), read)
    return read


def test_both_say_which_snapshot_they_are_of(source: Source, tmp_path: Path) -> None:
    version = export(source, tmp_path, model="films", threads=2, instances=3)
    retrieval, ranking = read_manifest(version), verify(tmp_path / "films_rank" / "1")
    assert retrieval.ranks is None
    assert ranking.ranks == Ranks(model="films", version=1, sha256=retrieval.files[MODEL_FILE].sha256)
    assert retrieval.snapshot == ranking.snapshot == retrieval.files[MODEL_FILE].sha256
    assert ranking.files[MODEL_FILE] != retrieval.files[MODEL_FILE]
    for field in ("name", "created", "artifact_schema", "fingerprint", "recall", "value"):
        assert getattr(ranking, field) == getattr(retrieval, field), field
    network = torch.jit.load(str(tmp_path / "films_rank" / "1" / MODEL_FILE))
    assert sum(ranking.index.bytes.values()) == sum(tensor.nbytes for tensor in network.buffers())
    for path in ("config.pbtxt", "configs/pytorch.pbtxt"):
        one, other = config(tmp_path / "films" / path), config(tmp_path / "films_rank" / path)
        assert (one.name, other.name) == ("films", "films_rank")
        for name in ("schema", "fingerprint", "snapshot", "INTRA_OP_THREAD_COUNT"):
            assert one.parameters[name] == other.parameters[name], name
        assert one.parameters["snapshot"].string_value == retrieval.snapshot
        assert "ranks" not in one.parameters
        assert other.parameters["ranks"].string_value == "films"
        assert (one.backend, one.max_batch_size, one.instance_group) == (
            other.backend,
            other.max_batch_size,
            other.instance_group,
        )


def test_its_configuration_follows_the_wire_contract(source: Source, tmp_path: Path) -> None:
    export(source, tmp_path)
    read = config(tmp_path / "retrieval_rank" / "config.pbtxt")
    tensors = [(t.name, model_config_pb2.DataType.Name(t.data_type), list(t.dims)) for t in (*read.input, *read.output)]
    assert tensors == [
        ("query", "TYPE_FP32", [4]),
        ("items", "TYPE_INT64", [-1]),
        ("task_weights", "TYPE_FP32", [1]),
        ("scores", "TYPE_FP32", [-1]),
        ("task_scores", "TYPE_FP32", [-1, 1]),
        ("known", "TYPE_INT32", [-1]),
        ("status", "TYPE_INT32", [1]),
    ]
    assert Schema.from_json(read.parameters["schema"].string_value).query_dims == 4


def test_a_tower_and_its_history_rank_as_they_retrieve(tmp_path: Path) -> None:
    """A tower of one's own, a feature called as an output is, and a history that it reads."""
    vectors = np.random.default_rng(SEED).normal(size=(60, 8)).astype(np.float32)
    save_tower(Tower(), tmp_path / "tower.pt")
    path = write_config(tmp_path, vectors, TOWER_SECTIONS, embeddings="path: vectors.npy, query: tower.pt")
    version = export(read_source(path), tmp_path / "repository")
    user = {
        "status": torch.tensor([[4], [-(2**63)]]),
        "age": torch.tensor([[30.0], [float("nan")]]),
        "history": torch.tensor([[3, 25, -1], [-1, -1, -1]]),
    }
    ids, values, _, _, _, _ = ask(version, {**user, **neutral(2)})
    scores, _, known, status = ask_ranking(version, {**user, "items": ids, "task_weights": torch.full((2, 1), np.nan)})
    assert known.all()
    assert status.tolist() == [[0], [0]]
    assert torch.equal(scores, values)
    assert len(set(scores[0].tolist()) - set(scores[1].tolist())) == 10


def test_the_number_is_above_those_of_both(source: Source, tmp_path: Path) -> None:
    """Else the server would go on with the higher one of an earlier snapshot."""
    (tmp_path / "retrieval_rank" / "7").mkdir(parents=True)
    assert export(source, tmp_path).name == "8"
    assert verify(find_version(tmp_path, "retrieval_rank", 8)).ranks is not None


def test_without_the_ranking_model(source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    repository = tmp_path / "repository"
    arguments = ("export", tmp_path / "v.npy", "--repository", repository)
    assert run(*arguments, "--no-rank") == 0
    one = [name for name in version_listing(1) if not name.startswith("retrieval_rank")]
    assert listing(repository) == one
    assert run(*arguments) == 0
    assert sorted({*one, *version_listing(2)}) == listing(repository)
    capsys.readouterr()
    assert run(*arguments, "--no-rank") == 1
    message = capsys.readouterr().err
    assert "retrieval_rank would stay with items of an earlier version of retrieval" in message
    assert "Export both, or remove that folder first" in message
    assert sorted({*one, *version_listing(2)}) == listing(repository)


def test_names_of_ranking_models_are_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="model name 'a_rank': names that end in _rank are those of ranking models"):
        export(source, tmp_path, model="a_rank")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("step", ["_save", "hash_file", "_sync", "model_config"])
def test_a_failure_at_the_second_model_leaves_neither(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: int
) -> None:
    if before:
        export(source, tmp_path)
    there = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    real, calls = getattr(module, step), 0
    last = {"_save": 2, "hash_file": 6, "_sync": 2, "model_config": 4}[step]

    def fail(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == last:
            raise OSError("broken")
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(BuilderError, match=f"cannot write a version of retrieval into {tmp_path}: broken"):
        export(source, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == there
    assert listing(tmp_path) == (version_listing(1) if before else [])


def test_a_version_whose_twin_cannot_be_renamed_is_taken_back(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(source, tmp_path)
    rename = Path.rename
    renamed: list[str] = []

    def fail_for_retrieval(self: Path, target: Path) -> Path:
        if target.parent.name == "retrieval":
            raise OSError("broken")
        renamed.append(f"{target.parent.name}/{target.name}")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_retrieval)
    with pytest.raises(BuilderError, match="broken"):
        export(source, tmp_path)
    assert renamed == ["retrieval_rank/2"]
    assert listing(tmp_path) == version_listing(1)


def test_inspect_shows_what_it_ranks(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    export(source, tmp_path)
    assert run("inspect", "--repository", tmp_path, "--model", "retrieval_rank") == 0
    text = capsys.readouterr().out
    assert "version 1 of retrieval" in text
    assert read_manifest(tmp_path / "retrieval" / "1").snapshot in text
    assert run("inspect", "--repository", tmp_path, "--model", "retrieval_rank", "--item", 3) == 1
    assert "is of a ranking model, which holds no features; ask version 1 of retrieval" in capsys.readouterr().err
