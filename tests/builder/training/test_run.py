import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from builder import ops
from builder.config import Config
from builder.data.movielens import movielens_100k
from builder.data.synthetic import synthetic
from builder.errors import BuilderError
from builder.evaluation.exact import exact_search
from builder.evaluation.metrics import quality
from builder.network.history import AttentionPooling
from builder.network.towers import SPARSE_ROWS
from builder.training import checkpoint, run, trainer
from client.hashing import UNKNOWN_KEY
from tests.builder.training.test_logging import read as scalars

SETTINGS = {"training": {"epochs": 3, "batch": 256, "negatives": 64, "learning_rate": 0.01}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic(tmp_path_factory.mktemp("data"), users=150, items=300, seed=1)


def config(data: Path, **settings: dict[str, Any]) -> Config:
    raw = Config.load(data).model_dump()
    for section, values in {**SETTINGS, **settings}.items():
        raw[section] = {**raw[section], **values}
    return Config.model_validate(raw)


def same(one: Path, other: Path) -> None:
    np.testing.assert_array_equal(np.load(one / run.VECTORS), np.load(other / run.VECTORS))
    cpu = torch.device("cpu")
    towers, others = (checkpoint.restore(out / run.TOWERS, cpu) for out in (one, other))
    assert towers.keys() == others.keys()
    assert all(torch.equal(towers[name], others[name]) for name in towers)
    logs = [
        [{**json.loads(line), "seconds": 0} for line in (out / run.METRICS).read_text().splitlines()]
        for out in (one, other)
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.train(config(data), tmp_path_factory.mktemp("runs") / "one", False)


def test_run_folder(trained: Path, data: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == sorted(
        [run.CONFIG, run.CHECKPOINT, run.TOWERS, run.METRICS, run.VECTORS, run.REPORT, run.TENSORBOARD]
    )
    log = [json.loads(line) for line in (trained / run.METRICS).read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert log[-1]["loss"] < log[0]["loss"]
    loaded = run.load(trained)
    assert loaded.config == config(data)
    assert loaded.config.items.path == data.parent / "items.parquet"


def test_loaded_towers_give_the_reported_figures(trained: Path) -> None:
    loaded = run.load(trained)
    for part in ("test", "validation"):
        requests = loaded.held_out(part)
        queries = loaded.queries(requests)
        assert queries.shape == (len(requests), 32)
        ids = loaded.catalogue.ids
        seen = run.Lists(requests.exclude.offsets, loaded.catalogue.find(requests.exclude.values))
        found, _ = exact_search(queries, loaded.item_vectors, 20, exclude=seen)
        found_ids = np.where(found >= 0, ids[found], -1)
        measured = quality(found_ids, requests.targets)
        assert measured.recall == pytest.approx(loaded.figures[f"{part}_recall_at_20"])
        assert measured.ndcg == pytest.approx(loaded.figures[f"{part}_ndcg_at_20"])
    assert loaded.figures["best_epoch"] <= loaded.figures["epochs"] == 3


def test_requests_are_what_the_files_say(trained: Path) -> None:
    loaded = run.load(trained)
    requests = loaded.held_out("test")
    assert list(requests.features) == ["user_id", "age", "country"] == [f.name for f in loaded.user_features]
    assert requests.features["user_id"].dtype == np.int64
    assert requests.features["age"].dtype == np.float32
    assert requests.history.shape == (len(requests), loaded.history_length)
    dataset = loaded.dataset
    ids = dataset.catalogue.ids
    for row in range(len(requests)):
        history = requests.history[row][requests.history[row] >= 0]
        assert history.tolist() == ids[dataset.test.history[row]][-loaded.history_length :].tolist()
        assert requests.exclude[row].tolist() == ids[dataset.test.seen[row]].tolist()
        assert requests.targets[row].tolist() == ids[dataset.test.targets[row]].tolist()
    sample = loaded.held_out("test", sample=7, seed=3)
    assert len(sample) == 7
    at = np.searchsorted(requests.features["user_id"][:, 0], sample.features["user_id"][:, 0])
    np.testing.assert_array_equal(requests.history[at], sample.history)


def test_the_same_seed_gives_the_same_run(trained: Path, data: Path, tmp_path: Path) -> None:
    same(trained, run.train(config(data), tmp_path / "again", False))


def kill(settings: Config, out: Path, checkpoints: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, with a checkpoint after every step, and end it after so many."""
    saves = 0
    save = checkpoint.save

    def killing_save(state: dict[str, Any], path: Path) -> None:
        nonlocal saves
        save(state, path)
        saves += path.name == run.CHECKPOINT
        if saves >= checkpoints:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_S", 0.0)
        patch.setattr(run, "save", killing_save)
        with pytest.raises(KeyboardInterrupt):
            run.train(settings, out, False)


@pytest.mark.parametrize("checkpoints", [2, 6, 11])
def test_a_killed_run_resumes_to_the_same_result(
    checkpoints: int, trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed at some checkpoints, between epochs and inside."""
    kill(config(data), tmp_path / "killed", checkpoints, monkeypatch)
    with pytest.raises(BuilderError, match="the run is not finished"):
        run.load(tmp_path / "killed")
    same(trained, run.train(config(data), tmp_path / "killed", True))


def shown(out: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of the towers, but for the seconds."""
    return {name: found for name, found in scalars(out / run.TENSORBOARD / "towers").items() if name != "epoch/seconds"}


def test_tensorboard_shows_a_killed_run_as_if_it_had_not_been(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LOG_STEPS", 2)
    whole = run.train(config(data), tmp_path / "whole", False)
    kill(config(data), tmp_path / "killed", 16, monkeypatch)
    run.train(config(data), tmp_path / "killed", True)
    found = shown(whole)
    log = [json.loads(line) for line in (trained / run.METRICS).read_text().splitlines()]
    steps = -(-len(run.load(trained).dataset.train) // SETTINGS["training"]["batch"])
    for name in ("loss", "recall", "ndcg"):
        expected = [(line["epoch"] * steps, pytest.approx(line[name], rel=1e-5)) for line in log]
        assert found[f"epoch/{name}"] == expected
    assert [step for step, _ in found["loss"]] == list(range(2, 3 * steps + 1, 2))
    assert np.mean([value for _, value in found["loss"][-4:]]) < found["loss"][0][1]
    assert shown(tmp_path / "killed") == found


def test_resuming_a_finished_run_changes_nothing(trained: Path, data: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in trained.rglob("*") if path.is_file() and path.name != run.REPORT}

    before = contents()
    run.train(config(data), trained, True)
    assert contents() == before


def test_a_finished_run_that_goes_on_is_not_finished(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when it has found better towers: those are not the towers of the item vectors that are there."""
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    longer = config(data, training={**SETTINGS["training"], "epochs": 30, "patience": 30})
    save = checkpoint.save

    def killing_save(state: dict[str, Any], path: Path) -> None:
        save(state, path)
        if path.name == run.TOWERS:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "save", killing_save)
        with pytest.raises(KeyboardInterrupt):
            run.train(longer, out, True)
    with pytest.raises(BuilderError, match=r"the run is not finished\n  Finish it with: .* --resume"):
        run.load(out)
    run.train(longer, out, True)
    assert run.load(out).figures["epochs"] == 30


def test_refusals(trained: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match=r"a run stands there already\n  Go on with --resume"):
        run.train(config(data), trained, False)
    with pytest.raises(BuilderError, match="other settings under network"):
        run.train(config(data, network={"dims": 16}), trained, True)
    with pytest.raises(BuilderError, match="other settings under training"):
        run.train(config(data, training={**SETTINGS["training"], "batch": 8}), trained, True)
    with pytest.raises(BuilderError, match="no run there"):
        run.load(tmp_path)


def test_changed_data_is_noticed(tmp_path: Path) -> None:
    data = synthetic(tmp_path / "data", users=60, items=120, seed=1)
    settings = config(data, training={"epochs": 1, "batch": 512})
    out = run.train(settings, tmp_path / "run", False)
    synthetic(tmp_path / "data", users=60, items=120, seed=2)
    with pytest.raises(BuilderError, match="the data has changed since the training"):
        run.load(out)
    with pytest.raises(BuilderError, match="the data has changed since"):
        run.train(settings, out, True)


@pytest.fixture(scope="module")
def attentive(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = config(data, network={"pooling": "attention", "blocks": 2}, training={"epochs": 2, "batch": 256})
    return run.train(settings, tmp_path_factory.mktemp("runs") / "attention", False)


def test_attention_is_trained_and_loaded(attentive: Path) -> None:
    loaded = run.load(attentive)
    assert isinstance(loaded.user_tower.pooling, AttentionPooling)
    log = [json.loads(line) for line in (attentive / run.METRICS).read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    requests = loaded.held_out()
    queries = loaded.queries(requests)
    turned = dataclasses.replace(requests, history=np.flip(requests.history, 1).copy())
    assert float((queries - loaded.queries(turned)).abs().max()) > 0.01
    cut = dataclasses.replace(requests, history=requests.history[:, -5:])
    padded = dataclasses.replace(requests, history=np.pad(cut.history, [(0, 0), (3, 0)], constant_values=-1))
    torch.testing.assert_close(loaded.queries(padded), loaded.queries(cut), rtol=0, atol=1e-6)


def test_attention_is_drawn_the_same_when_resumed(
    attentive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout too."""
    settings = run.load(attentive).config
    kill(settings, tmp_path / "killed", 5, monkeypatch)
    torch.manual_seed(99)
    same(attentive, run.train(settings, tmp_path / "killed", True))


def empty_request(loaded: run.TrainedRun) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What a client sends that knows nothing of the user."""
    features = [
        torch.full((1, 1), UNKNOWN_KEY if feature.kind == "category" else math.nan) for feature in loaded.user_features
    ]
    return features, torch.full((1, 8), -1)


def popular_and_found(loaded: run.TrainedRun) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training interactions of each item, and all items in the order that an empty request gets from the scripted
    tower."""
    ops.load()
    query = torch.jit.script(loaded.user_tower)(*empty_request(loaded)).detach().numpy()
    popularity = np.bincount(loaded.dataset.train.items, minlength=len(loaded.catalogue))
    return popularity, np.argsort(-(query @ loaded.item_vectors.T)[0])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_an_empty_request_gets_popular_items(pooling: str, tmp_path: Path) -> None:
    data = synthetic(tmp_path / "data", users=600, items=1_000, seed=1)
    settings = config(data, network={"pooling": pooling, "history": 10})
    popularity, found = popular_and_found(run.load(run.train(settings, tmp_path / "run", False)))
    assert popularity[found[:10]].min() > np.sort(popularity)[-101]


@pytest.mark.parametrize("network", [{"history": 0}, {"user_id": False}, {"user_id": False, "history": 0}], ids=str)
def test_any_inputs(network: dict[str, Any], data: Path, tmp_path: Path) -> None:
    settings = config(data, network=network, training={"epochs": 1, "batch": 512, "negatives": 0})
    loaded = run.load(run.train(settings, tmp_path / "run", False))
    requests = loaded.held_out()
    assert torch.isfinite(loaded.queries(requests)).all()
    assert requests.history.shape[1] == max(1, settings.network.history)
    if not settings.network.history:
        assert (requests.history == -1).all()


def test_sparse_tables(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.network.towers.SPARSE_ROWS", 200)
    assert SPARSE_ROWS > 200
    out = run.train(config(data), tmp_path / "sparse", False)
    log = [json.loads(line) for line in (out / run.METRICS).read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    resumed = run.train(config(data, training={**SETTINGS["training"], "epochs": 4}), out, True)
    assert len((resumed / run.METRICS).read_text().splitlines()) == 4


def test_a_loss_that_is_no_number_stops(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match=r"epoch 1: the loss is nan\n  Lower training.learning_rate"):
        run.train(config(data, training={"learning_rate": 1e38, "temperature": 1e-30}), tmp_path / "run", False)


def test_early_stopping(data: Path, tmp_path: Path) -> None:
    out = run.train(config(data, training={"epochs": 40, "patience": 1, "batch": 512}), tmp_path / "run", False)
    recalls = [json.loads(line)["recall"] for line in (out / run.METRICS).read_text().splitlines()]
    assert len(recalls) < 40
    assert recalls[-1] <= recalls[-2] == max(recalls)
    assert run.load(out).figures["validation_recall_at_20"] == max(recalls)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_movielens_is_learned(pooling: str, real_data: Path, tmp_path: Path) -> None:
    settings = config(movielens_100k(real_data, tmp_path / "data"), network={"pooling": pooling}, training={})
    loaded = run.load(run.train(settings, tmp_path / "run", False))
    popularity = np.bincount(loaded.dataset.train.items, minlength=len(loaded.catalogue)).astype(np.float32)
    test = loaded.dataset.test
    popular, _ = exact_search(np.ones((len(test), 1)), popularity[:, None], 20, exclude=test.seen)
    baseline = quality(popular, test.targets)
    assert loaded.figures["test_recall_at_20"] > 0.22 > 1.5 * baseline.recall
    counts, order = popular_and_found(loaded)
    assert counts[order[:10]].min() > np.sort(counts)[-169]
    # Of what the 100 most popular films could cover; .64 if users are not hidden whole.
    assert counts[order[:100]].sum() > 0.85 * np.sort(counts)[-100:].sum()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (run.VECTORS, b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"),
        (run.VECTORS, b"\x93NUMPY\x01\x00\x08\x00{'descr:"),  # NumPy's tokenizer gives up
        (run.REPORT, b'{"figures": {'),
        (run.TOWERS, b"PK\x03\x04 cut short"),
    ],
)
def test_a_damaged_run_is_told(trained: Path, tmp_path: Path, name: str, content: bytes) -> None:
    damaged = shutil.copytree(trained, tmp_path / "run")
    (damaged / name).write_bytes(content)
    with pytest.raises(BuilderError, match=r"run.*damaged|cannot be read") as error:
        run.load(damaged)
    assert str(damaged) in str(error.value)


def test_without_validation_users_every_epoch_counts(data: Path, tmp_path: Path) -> None:
    """Two interactions a user: leave-last-out keeps them all in training."""
    settings = config(data)
    table = pq.read_table(data.parent / "interactions.parquet")
    ordered = table.sort_by([("user_id", "ascending"), ("time", "ascending")])
    users = ordered.column("user_id").to_numpy()
    place = np.arange(len(users)) - np.searchsorted(users, users)
    pq.write_table(ordered.filter(pa.array(place < 2)), tmp_path / "few.parquet")
    raw = settings.model_dump()
    raw["data"]["interactions"]["path"] = tmp_path / "few.parquet"
    raw["training"] = {**raw["training"], "epochs": 5, "patience": 1}
    out = run.train(Config.model_validate(raw), tmp_path / "run", False)
    assert run.load(out).figures["best_epoch"] == 5.0
