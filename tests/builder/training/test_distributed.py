"""Two processes on CPUs train what one process trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from builder.config import Config
from builder.data.synthetic import synthetic
from builder.training import checkpoint, distributed, run
from builder.training.distributed import Group

ROOT = Path(__file__).parents[3]
EPOCHS, BATCH = 3, 113
pytestmark = pytest.mark.slow


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes of `python -m ARGUMENTS`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module", autouse=True)
def _on_the_cpu() -> Iterator[None]:
    """Also where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch leaves one example for the last step of an epoch: the first process then has none."""
    config = synthetic(tmp_path_factory.mktemp("data"), users=150, items=300, seed=1)
    training = f"{{epochs: {EPOCHS}, batch: {BATCH}, negatives: 64, learning_rate: 0.01}}"
    config.write_text(f"{config.read_text()}training: {training}\n")
    return config


@pytest.fixture(scope="module")
def alone(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.train(Config.load(config), tmp_path_factory.mktemp("alone") / "run", False)


@pytest.fixture(scope="module")
def together(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, and beside it 0.json and 1.json (processes.py)."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun("tests.builder.training.processes", "train", folder, config, folder / "run", 10**6)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stderr.count("Epoch 1: ") == 1  # one of them speaks
    return folder


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / run.METRICS).read_text().splitlines()]


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_they_learn_what_one_process_learns(alone: Path, together: Path) -> None:
    for one, two in zip(log(alone), log(together / "run"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["recall"] == pytest.approx(one["recall"], abs=0.01)  # of 150 users, one may see near-ties swapped
        assert two["ndcg"] == pytest.approx(one["ndcg"], abs=0.01)
    vectors = [np.load(folder / run.VECTORS) for folder in (alone, together / "run")]
    np.testing.assert_allclose(*vectors, atol=2e-3)
    assert log(alone)[-1]["loss"] < log(alone)[0]["loss"] - 0.5
    figures = [run.load(folder).figures for folder in (alone, together / "run")]
    assert figures[1]["test_recall_at_20"] == pytest.approx(figures[0]["test_recall_at_20"], abs=0.01)


def test_each_example_is_computed_by_one_of_them(alone: Path, together: Path) -> None:
    examples = len(run.load(alone).dataset.train)
    assert examples % BATCH == 1
    steps = -(-examples // BATCH)
    drawn = [of["drawn"] for of in told(together)]
    assert len(drawn[0]) == len(drawn[1]) == EPOCHS * steps
    for first, second in zip(*drawn, strict=True):
        assert abs(len(first) - len(second)) <= 1
    for epoch in range(EPOCHS):
        of_epoch = slice(epoch * steps, (epoch + 1) * steps)
        computed = [row for of in drawn for rows in of[of_epoch] for row in rows]
        assert sorted(computed) == list(range(examples))


def test_only_the_first_writes(together: Path) -> None:
    first, second = (of["written"] for of in told(together))
    assert second == []
    assert not (together / "run-elsewhere").exists()
    assert {run.METRICS + ".partial", run.CHECKPOINT + ".partial", run.VECTORS + ".partial"} <= set(first)
    assert any(name.startswith(run.TENSORBOARD) for name in first)
    assert not list((together / "run").rglob("*.partial"))


def test_a_killed_run_resumes_to_the_same_result(config: Path, together: Path, tmp_path: Path) -> None:
    """It is killed inside the second epoch, and goes on: from the command line, alone, and where one host lacks it."""
    out = tmp_path / "run"
    killed = torchrun("tests.builder.training.processes", "train", tmp_path, config, out, 40)
    assert killed.returncode != 0
    state = checkpoint.restore(out / run.CHECKPOINT, torch.device("cpu"))["progress"]
    assert state["epoch"] == 1
    assert state["position"] > 0
    hosts = Path(shutil.copytree(out, tmp_path / "hosts"))
    single = run.train(Config.load(config), Path(shutil.copytree(out, tmp_path / "single")), True)  # no longer two
    assert [line["loss"] for line in log(single)] == pytest.approx(
        [line["loss"] for line in log(together / "run")], rel=1e-5
    )
    resumed = torchrun("builder", "train", config, "--out", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("export it with") == 1
    assert [{**line, "seconds": 0} for line in log(out)] == [{**line, "seconds": 0} for line in log(together / "run")]
    np.testing.assert_array_equal(np.load(out / run.VECTORS), np.load(together / "run" / run.VECTORS))
    done = torchrun("tests.builder.training.processes", "train", tmp_path, config, hosts, 10**6)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(hosts / run.VECTORS), np.load(together / "run" / run.VECTORS))
    assert not (tmp_path / "hosts-elsewhere").exists()


def test_what_they_tell_each_other(tmp_path: Path) -> None:
    done = torchrun("tests.builder.training.processes", "talk", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = told(tmp_path)
    for of in (first, second):
        assert of["device"] == "cpu"
        assert of["sums"] == [3.0, 3.0]
        assert of["from_first"] == 0
        assert of["refused"].startswith("torchrun: numbers differ from those of rank 0 in ranks 1\n")
    assert first["share"] == [[0, 0], [0, 0], [0, 3]]
    assert second["share"] == [[0, 0], [0, 1], [3, 7]]


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 2, "WORLD_SIZE": 3, "LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(distributed.BuilderError, match=r"3 processes on a host of 2 GPUs\n  Start one process a GPU"),
        distributed.processes(),
    ):
        pass


def test_alone_nothing_is_asked_of_others() -> None:
    group = Group(torch.device("cpu"))
    assert group.sums(1.0, 2.0) == [1.0, 2.0]
    assert group.from_first(lambda: 5) == 5
    assert group.share(9) == slice(0, 9)
    group.refuse_differences(3, "nothing")
    with distributed.processes() as found:
        assert (found.rank, found.size) == (0, 1)
