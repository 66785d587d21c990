"""The embedded stock server starts, fails with a reason, stops, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import tritonclient.grpc as triton
from google.protobuf import text_format

from builder.errors import BuilderError
from builder.export.config import read_config
from builder.serving.control import ModelControl
from builder.serving.rollout import choose, promote, roll_back
from builder.serving.server import StockServer, _choose_ports
from client import RetrievalClient
from tests.builder.artifacts import (
    TOWER_SECTIONS,
    Tower,
    exact,
    export_config,
    export_vectors,
    save_tower,
    write_config,
)

VECTORS = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_vectors(tmp_path_factory.mktemp("exported"), VECTORS).parent.parent


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files; at the end nothing is in it, and no shared memory is left."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
    assert [name for name in os.listdir("/dev/shm") if name.startswith(tuple(_STARTED))] == []


_STARTED = ["no such prefix"]  # names of scratch folders, which shared memory is named after


def family(server: StockServer) -> list[psutil.Process]:
    assert server._process is not None
    assert server._scratch is not None
    _STARTED.append(server._scratch.name)
    assert [name for name in os.listdir("/dev/shm") if name.startswith(server._scratch.name)]
    process = psutil.Process(server._process.pid)
    return [process, *process.children(recursive=True)]


def all_end(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=10)[1]


def first_id(url: str, vector: np.ndarray = VECTORS[3]) -> int:
    with RetrievalClient(url, timeout=10.0) as client:
        return int(client.retrieve(query=vector, k=1).item_ids[0])


@pytest.mark.server
def test_two_servers_side_by_side_and_none_left(repository: Path, tmp_path: Path, scratch: Path) -> None:
    turned = export_vectors(tmp_path, VECTORS[::-1].copy()).parent.parent
    with StockServer(repository, log=tmp_path / "a" / "a.log") as one, StockServer(turned) as two:
        assert len({one.grpc_port, one.http_port, one.metrics_port, two.grpc_port, two.http_port}) == 5
        processes = family(one) + family(two)
        assert any("python_backend_stub" in process.name() for process in processes)
        for _ in range(3):
            assert first_id(one.url) == exact(VECTORS, VECTORS[3], 1)[0]
            assert first_id(two.url) == 119 - exact(VECTORS, VECTORS[3], 1)[0]
        assert one.poll() is None
    assert all_end(processes)
    assert "Started GRPCInferenceService" in (tmp_path / "a" / "a.log").read_text()
    assert (one.poll(), two.poll()) == (None, None)
    one.stop()  # again does nothing


@pytest.mark.server
def test_a_tower_of_ones_own_is_served_and_equals_brute_force(tmp_path: Path) -> None:
    save_tower(Tower(), tmp_path / "tower.pt")
    config = write_config(tmp_path, VECTORS, TOWER_SECTIONS, embeddings="path: vectors.npy, query: tower.pt")
    export_config(config, tmp_path / "repository")
    seed = 2
    rng = np.random.default_rng(seed)
    with (
        StockServer(tmp_path / "repository") as server,
        RetrievalClient(server.url, timeout=10.0) as client,
    ):
        for _ in range(20):
            status, age = int(rng.integers(0, 100)), float(rng.uniform(10, 90))
            history = rng.integers(0, 120, size=int(rng.integers(0, 9))).tolist()
            result = client.retrieve(user={"status": status, "age": age}, history=history, k=10)
            newest = torch.tensor([history[-4:] or [-1]])
            query = Tower()(newest, torch.tensor([[status]]), torch.tensor([[age]], dtype=torch.float32))[0].numpy()
            wanted = exact(VECTORS, query, 10)
            scores = VECTORS.astype(np.float64) @ query.astype(np.float64)
            assert len(set(result.item_ids.tolist()) & set(wanted)) >= 9, f"seed {seed}: {status, age, history}"
            np.testing.assert_allclose(result.scores, scores[result.item_ids], rtol=5e-3, atol=5e-3)
        unknown = client.retrieve(k=10)  # neither features nor history
        assert unknown.count == 10


@pytest.mark.server
def test_a_killed_server_leaves_no_process_and_no_shared_memory(repository: Path, scratch: Path) -> None:
    server = StockServer(repository)
    server.start()
    processes = family(server)
    assert len(processes) > 1
    os.kill(processes[0].pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.poll() == -signal.SIGKILL
    server.stop()
    assert all_end(processes)


def test_gpus_want_a_configuration_of_every_model(repository: Path, tmp_path: Path, scratch: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    for model in ("retrieval", "retrieval_rank"):
        (copy / model / "configs" / "python-gpu.pbtxt").unlink(missing_ok=True)
    shutil.copyfile(copy / "retrieval" / "config.pbtxt", copy / "retrieval" / "configs" / "python-gpu.pbtxt")
    told = rf"{copy}/retrieval_rank: .*no configuration for GPUs \(no configs/python-gpu.pbtxt\)(.|\n)*nvcc"
    with pytest.raises(BuilderError, match=told):
        StockServer(copy, log=tmp_path / "log", gpu=True).start()
    assert not (tmp_path / "log").exists()


def with_gpu_configuration(version: Path, threads: int) -> None:
    """One that says KIND_CPU, as the server loads no other where there is no GPU, and is known by its threads."""
    for home in (version, version.parents[1] / "retrieval_rank" / version.name):
        config = read_config(home / "config.pbtxt")
        config.parameters["INTRA_OP_THREAD_COUNT"].string_value = str(threads)
        (home / "python-gpu.pbtxt").write_text(text_format.MessageToString(config))


def threads_of(server: StockServer) -> list[str]:
    with triton.InferenceServerClient(server.url) as raw:
        configs = [raw.get_model_config(model).config for model in ("retrieval", "retrieval_rank")]
    return [config.parameters["INTRA_OP_THREAD_COUNT"].string_value for config in configs]


@pytest.mark.slow
@pytest.mark.server
def test_a_server_on_gpus_takes_the_configurations_for_them_of_every_version(tmp_path: Path, scratch: Path) -> None:
    versions = [export_vectors(tmp_path, vectors) for vectors in (VECTORS, VECTORS[::-1].copy())]
    repository = tmp_path / "repository"
    for version, threads in zip(versions, (2, 3), strict=True):
        with_gpu_configuration(version, threads)
    choose(repository, "retrieval", 1)
    said: list[str] = []
    with StockServer(repository, log=tmp_path / "log", gpu=True) as server:
        assert "--allow-gpu-metrics=true" in family(server)[0].cmdline()
        assert threads_of(server) == ["2", "2"]
        with ModelControl(server.url, server.admin_headers) as control:
            promote(repository, "retrieval", 2, control, said.append)
            assert threads_of(server) == ["3", "3"]
            assert not [line for line in said if "warning" in line]
            for home in (versions[0], repository / "retrieval_rank" / "1"):
                (home / "python-gpu.pbtxt").unlink()
            roll_back(repository, "retrieval", control, said.append)
        assert [line for line in said if "warning" in line] == [
            "warning: version 1 has no configuration for GPUs; a server on GPUs serves it on the CPU"
        ]
        assert threads_of(server) == ["1", "1"]
        assert first_id(server.url) == exact(VECTORS, VECTORS[3], 1)[0]
    with StockServer(repository, log=tmp_path / "log") as server:
        assert "--allow-gpu-metrics=false" in family(server)[0].cmdline()


@pytest.mark.server
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_server_says_so(repository: Path, tmp_path: Path, scratch: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    for model in ("retrieval", "retrieval_rank"):
        text = (copy / model / "config.pbtxt").read_text().replace("KIND_CPU", "KIND_GPU")
        (copy / model / "configs" / "python-gpu.pbtxt").write_text(text)
    with pytest.raises(BuilderError, match="retrieval has kind KIND_GPU but no GPUs are available"):
        StockServer(copy, log=tmp_path / "log", gpu=True).start()


@pytest.mark.server
@pytest.mark.parametrize("only", ["grpc", "http"])
def test_protocols_can_be_switched_off(repository: Path, tmp_path: Path, scratch: Path, only: str) -> None:
    ports = {name: 0 if name == f"{only}_port" else None for name in ("grpc_port", "http_port", "metrics_port")}
    state = tmp_path / "state.json"
    with StockServer(repository, log=tmp_path / "log", state=state, **ports) as server:
        (serving, *_) = family(server)
        listening = [at.laddr for at in serving.net_connections() if at.status == "LISTEN"]
        assert {f"{at.ip.removeprefix('::ffff:')}:{at.port}" for at in listening} == {server.url}
        told = json.loads(state.read_text())
        assert told.pop("pid") == serving.pid
        other = {"grpc": "http", "http": "url"}[only]
        assert told == {
            {"grpc": "url", "http": "http"}[only]: server.url, other: None, "metrics": None,
            "admin_key": server.admin_key,
        }  # fmt: skip
        if only == "grpc":
            assert first_id(server.url) == exact(VECTORS, VECTORS[3], 1)[0]
    assert not state.exists()


def test_something_must_be_left_to_ask(repository: Path) -> None:
    with pytest.raises(BuilderError, match="neither gRPC nor HTTP is on"):
        StockServer(repository, grpc_port=None, http_port=None)


@pytest.mark.server
def test_the_reason_of_an_early_exit_is_shown(repository: Path, tmp_path: Path, scratch: Path) -> None:
    damaged = Path(shutil.copytree(repository, tmp_path / "repository"))
    model = damaged / "retrieval" / "1" / "model.pt"
    model.write_bytes(model.read_bytes()[:1000])
    log = tmp_path / "server.log"
    with pytest.raises(BuilderError, match="tritonserver exited with code 1") as caught:
        StockServer(damaged, log=log).start()
    assert "PytorchStreamReader failed" in str(caught.value)
    assert str(log) in str(caught.value)
    assert log.is_file()


@pytest.mark.server
def test_the_first_version_of_another_model_is_no_hindrance(repository: Path, tmp_path: Path, scratch: Path) -> None:
    """While it is written, or where its export was killed."""
    here = Path(shutil.copytree(repository, tmp_path / "repository"))
    shutil.copytree(here / "retrieval" / "1", here / "shop" / ".partial-1")
    with StockServer(here, log=tmp_path / "log") as server:
        family(server)
        assert first_id(server.url) == exact(VECTORS, VECTORS[3], 1)[0]
        with ModelControl(server.url, server.admin_headers) as control:
            served = {"retrieval": [1], "retrieval_rank": [1]}
            assert control.loaded() == served
            (here / "shop" / ".partial-1").rename(here / "shop" / "1")
            assert choose(here, "shop", 1) == 1
            control.load("shop", 1)
            assert control.loaded() == {**served, "shop": [1]}


@pytest.mark.server
def test_waiting_can_be_cancelled_and_ends(repository: Path, tmp_path: Path, scratch: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        StockServer(repository, log=tmp_path / "log", cancelled=lambda: True).start()
    with pytest.raises(BuilderError, match="was not ready after 0 s"):
        StockServer(repository, log=tmp_path / "log", ready_timeout=0.05).start()


@pytest.mark.server
def test_the_log_of_a_failed_start_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "repository" / "m").mkdir(parents=True)
    (tmp_path / "repository" / "m" / "config.pbtxt").write_text("not a configuration")
    server = StockServer(tmp_path / "repository")
    with pytest.raises(BuilderError, match="tritonserver exited"):
        server.start()
    assert server.log is not None
    assert server.log.is_file()
    assert [path.name for path in server.log.parent.iterdir()] == ["server.log"]


@pytest.mark.server
def test_a_log_that_cannot_be_written_is_named(repository: Path, tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuilderError, match=r"cannot write the server's log .*/file/a.log: .*--log"):
        StockServer(repository, log=tmp_path / "file" / "a.log").start()


@pytest.mark.server
def test_the_proxy_of_the_environment_is_not_asked(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with StockServer(repository, log=tmp_path / "log", ready_timeout=30):
        pass


@pytest.mark.server
@pytest.mark.parametrize("missing", [True, False])
def test_a_repository_without_a_model_is_refused(tmp_path: Path, missing: bool) -> None:
    if not missing:
        (tmp_path / "repository" / "folder").mkdir(parents=True)
    with pytest.raises(BuilderError, match=r"/repository holds no model .*builder export ... --repository"):
        StockServer(tmp_path / "repository").start()


@pytest.mark.parametrize(("position", "purpose"), [(0, "gRPC"), (1, "HTTP"), (2, "metrics")])
def test_a_port_in_use_is_named_with_its_option(position: int, purpose: str) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        wanted = [0, 0, 0]
        wanted[position] = busy.getsockname()[1]
        message = f":{wanted[position]} for {purpose}: Address already in use; .*--{purpose.lower()}-port"
        with pytest.raises(BuilderError, match=message):
            _choose_ports("127.0.0.1", (wanted[0], wanted[1], wanted[2]))


def test_ports_are_chosen_apart_and_given_ones_kept() -> None:
    assert _choose_ports("127.0.0.1", (None, None, None)) == (None, None, None)
    for _ in range(20):
        assert len(set(_choose_ports("127.0.0.1", (0, 0, 0)))) == 3
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert _choose_ports("127.0.0.1", (0, port, 0))[1] == port
    with pytest.raises(BuilderError, match=f":{port} for HTTP: Address already in use"):
        _choose_ports("127.0.0.1", (port, port, 0))
    with pytest.raises(BuilderError, match=r"cannot listen on nowhere\.invalid:0 for gRPC"):
        _choose_ports("nowhere.invalid", (0, 0, 0))
