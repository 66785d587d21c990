"""`builder serve` and `builder query` as processes: signals, ports, answers and refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from builder.cli.main import main
from client import RetrievalClient
from tests.builder.artifacts import exact, export_config, write_config, write_items

pytestmark = pytest.mark.server

SEED = 3
KEY = "an-administrators-key"
VECTORS = np.random.default_rng(SEED).normal(size=(100, 6)).astype(np.float32)
YEARS = np.arange(1950, 2050)


@dataclass
class Serving:
    """A running `builder serve` and everything it started."""

    process: subprocess.Popen[str]
    address: str
    folder: Path

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=40)
        return self.process.returncode, output


def serve(folder: Path, *options: str) -> subprocess.Popen[str]:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "builder", "serve", "--repository", str(folder / "repository"), *options],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def start(folder: Path, *options: str) -> Serving:
    process = serve(folder, "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", *options)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"serving .* on (\S+) \(gRPC\), log in (\S+);", line):
            assert found[2] == str(folder / "repository" / ".server.log")
            return Serving(process, found[1], folder)
    raise AssertionError("".join(lines))


def key_file(folder: Path) -> Path:
    path = folder / "key"
    path.write_text(KEY + "\n")
    return path


def make(folder: Path) -> Path:
    write_items(folder, {"item_id": np.arange(100), "year": YEARS})
    features = "[{name: year, kind: number, filter: true}]"
    data = f"data: {{items: {{path: items.parquet, id: item_id, features: {features}}}}}\nindex: {{results: 20}}\n"
    export_config(write_config(folder, VECTORS, data), folder / "repository")
    np.save(folder / "query.npy", VECTORS[5])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[Serving]:
    found = start(folder, "--admin-key-file", str(key_file(folder)), "--", "--id=tested")
    yield found
    if found.process.poll() is None:
        found.stop(signal.SIGTERM)


def query(serving: Serving, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "builder", "query", "--address", serving.address, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_options_and_key_reach_the_server(serving: Serving) -> None:
    with triton.InferenceServerClient(serving.address) as raw:
        assert raw.get_server_metadata().name == "tested"
        with pytest.raises(triton.InferenceServerException, match="protocol is restricted"):
            raw.get_model_repository_index()
        index = raw.get_model_repository_index(headers={"triton-grpc-protocol-admin-key": KEY})
    assert {model.name for model in index.models} == {"retrieval", "retrieval_rank"}
    told = json.loads((serving.folder / "repository" / ".server.json").read_text())
    assert (told["url"], told["admin_key"]) == (serving.address, KEY)
    assert KEY not in " ".join(psutil.Process(serving.process.pid).cmdline())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--trace-rate", "5"), 2, "--trace-rate goes with --trace URL"),
        (("--http-port", "70000"), 2, "70000"),
        (("--grpc-port", "off", "--http-port", "off"), 1, "neither gRPC nor HTTP is on"),
        (("--admin-key-file", "none"), 1, "none: cannot be read"),
        (("--gpu",), 1, "no configuration for GPUs"),
        (
            ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--", "--no-such-option"),
            1,
            "no-such-option",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(
    folder: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    ignored = shutil.ignore_patterns(".server.*", "*-gpu.pbtxt")
    shutil.copytree(folder / "repository", tmp_path / "repository", ignore=ignored)
    process = serve(tmp_path, *options)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in output) == (code, False), output
    assert message in output
    assert not (tmp_path / "repository" / ".server.json").exists()


def test_answers_as_json_and_as_a_table(serving: Serving) -> None:
    vector = serving.folder / "query.npy"
    result = query(serving, "--query", vector, "-k", 5, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert [hit["item_id"] for hit in answer["hits"]] == exact(VECTORS, VECTORS[5], 5)
    assert answer["stats"]["rows_passing"] == 100
    assert answer["latency_ms"] > 0
    condition = "(1960 <= F.year < 1970) | F.year.is_unknown()"
    result = query(serving, "--query", vector, "--filter", condition, "--exclude", "12,13", "-k", 20, "--json")
    assert sorted(hit["item_id"] for hit in json.loads(result.stdout)["hits"]) == [10, 11, *range(14, 20)]
    table = query(serving, "--query", vector, "-k", 3).stdout
    assert "3 results in " in table
    assert all(str(item) in table for item in exact(VECTORS, VECTORS[5], 3))


def test_ranks_given_items(serving: Serving) -> None:
    vector, given = serving.folder / "query.npy", [7, 99, 5, 3, 100, 8]
    listed = ",".join(map(str, given))
    result = query(serving, "--query", vector, "--rank", listed, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    best = [item for item in exact(VECTORS, VECTORS[5], 100) if item in given]
    assert [hit["item_id"] for hit in answer["hits"]] == best
    assert answer["unknown"] == [100]
    scores = [hit["score"] for hit in answer["hits"]]
    np.testing.assert_allclose(scores, VECTORS[best] @ VECTORS[5], rtol=2e-3, atol=2e-3)
    shown = query(serving, "--query", vector, "--rank", listed, "-k", 2).stdout
    assert "2 items ranked in " in shown
    assert "; unknown: 100" in shown
    assert [line.split()[1] for line in shown.splitlines()[1:3]] == [str(item) for item in best[:2]]


WRONG = [
    (("--rank", "1,x"), 2, "--rank: got '1,x', expected item ids with commas between"),
    (("--rank", "1", "--probes", "3"), 2, "--rank searches nothing: leave out --filter, --exclude, --probes"),
    (("--filter", "F.yaer > 1"), 1, "unknown filter feature 'yaer'; did you mean 'year'?"),
    (("--filter", "F.year >"), 1, "filter: cannot be read at character"),
    (("--filter", "__import__('os')"), 1, "filter: "),
    (("-k", 21), 1, "k: got 21"),
    (("-k", 0), 2, "-k"),
    (("--probes", 999), 1, "probes"),
    (("--exclude", "1,x"), 2, "--exclude: got '1,x', expected item ids with commas between"),
    (("--user", "age=3"), 1, "this artifact has no user tower and takes only query"),
    (("--user", "age"), 2, "--user: got 'age', expected NAME=VALUE"),
    (("--history", "1,2"), 1, "this artifact has no user tower"),
    (("--model", "films"), 1, "films"),
    (("--timeout", "0"), 1, "timeout: got 0.0"),
]


def test_what_a_query_gets_wrong_is_said_without_a_traceback(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = serving.folder / "query.npy"
    empty, text, short = (serving.folder / name for name in ("empty.npy", "text.npy", "short.npy"))
    empty.write_bytes(b"")
    text.write_text("1 2 3")
    np.save(short, np.ones(5, np.float32))
    files = [
        (("--query", empty), 2, f"{empty} is no .npy array"),
        (("--query", text), 2, f"{text} is no .npy array"),
        (("--query", serving.folder / "none.npy"), 2, "none.npy is no .npy array"),
        (("--query", short), 1, "query: "),
        ((), 1, "query"),
    ]
    for arguments, code, message in [((*("--query", vector), *more), c, m) for more, c, m in WRONG] + files:
        monkeypatch.setattr(
            sys, "argv", ["builder", "query", "--address", serving.address, *(str(word) for word in arguments)]
        )
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert (end.value.code, captured.out) == (code, ""), arguments
        assert message in " ".join(captured.err.split()), (arguments, captured.err)


def test_a_port_in_use_is_named(serving: Serving, folder: Path, tmp_path: Path) -> None:
    port = serving.address.split(":")[1]
    shutil.copytree(folder / "repository", tmp_path / "repository")
    other = serve(tmp_path, "--grpc-port", port, "--http-port", "0", "--metrics-port", "0")
    output, _ = other.communicate(timeout=30)
    assert other.returncode == 1
    assert f"error: cannot listen on 127.0.0.1:{port} for gRPC: Address already in use" in output
    assert "--grpc-port" in output
    assert "Traceback" not in output


def test_a_second_server_of_a_repository_is_refused_and_touches_nothing(serving: Serving, folder: Path) -> None:
    files = [folder / "repository" / name for name in (".server.json", ".server.log")]
    before = [file.read_bytes() for file in files]
    other = serve(folder, "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    output, _ = other.communicate(timeout=30)
    assert other.returncode == 1
    assert f"error: {folder / 'repository'}: is served already, on {serving.address}\n" in output
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(folder: Path, serving: Serving, tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM ends the server of the tests above, SIGINT one of its own."""
    if number == signal.SIGINT:
        shutil.copytree(folder / "repository", tmp_path / "repository")
        found = start(tmp_path)
    else:
        found = serving
    family = found.family()
    assert any("python_backend_stub" in process.name() for process in family)
    scratch = [path.name for path in (found.folder / "scratch").iterdir()]
    assert len(scratch) == 1
    assert [name for name in os.listdir("/dev/shm") if name.startswith(scratch[0])]
    code, output = found.stop(number)
    assert (code, output) == (0, "stopped\n")
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert list((found.folder / "scratch").iterdir()) == []
    assert [name for name in os.listdir("/dev/shm") if name.startswith(scratch[0])] == []


def test_a_signal_while_loading_stops_everything(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "repository", tmp_path / "repository")
    process = serve(tmp_path, "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    deadline = time.monotonic() + 30
    family: list[psutil.Process] = []
    while not family and time.monotonic() < deadline:
        time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 130, output
    assert output.endswith("interrupted\n")
    assert "Traceback" not in output
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert list((tmp_path / "scratch").iterdir()) == []


def shared_memory(prefix: str) -> dict[str, int]:
    """Regions by name, with their inodes: a region made anew under the same name has another."""
    return {entry.name: entry.inode() for entry in os.scandir("/dev/shm") if entry.name.startswith(prefix)}


def test_a_server_that_dies_is_back_on_the_same_ports(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "repository", tmp_path / "repository")
    found = start(tmp_path)
    path = tmp_path / "repository" / ".server.json"
    before = json.loads(path.read_text())
    (scratch,) = (tmp_path / "scratch").iterdir()
    regions = shared_memory(scratch.name)
    assert regions
    family = found.family()
    next(process for process in family if process.name() == "tritonserver").kill()
    assert found.process.stdout is not None
    lines = []
    for line in found.process.stdout:
        lines.append(line)
        if line.startswith("serving again on"):
            break
    output = "".join(lines)
    assert "tritonserver ended by itself with code -9" in output
    assert "starting it again in 0.1 s" in output
    assert f"(whole log: {tmp_path / 'repository' / '.server.log'})" in output
    assert lines[-1] == f"serving again on {found.address}\n"
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert not regions.items() & shared_memory(scratch.name).items()
    after = json.loads(path.read_text())
    assert after == {**before, "pid": after["pid"]}
    assert after["pid"] not in (before["pid"], found.process.pid)
    assert psutil.Process(after["pid"]).name() == "tritonserver"
    with RetrievalClient(found.address, timeout=20) as client:
        assert client.retrieve(query=VECTORS[5], k=5).item_ids.tolist() == exact(VECTORS, VECTORS[5], 5)
    log = (tmp_path / "repository" / ".server.log").read_text()
    assert log.count("Started GRPCInferenceService") == 2  # the first server's is kept
    family = found.family()
    assert found.stop(signal.SIGTERM) == (0, "stopped\n")
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert [name for name in os.listdir("/dev/shm") if name.startswith(scratch.name)] == []
    assert not path.exists()


def test_without_restart_a_server_that_dies_ends_the_command_with_its_reason(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "repository", tmp_path / "repository")
    found = start(tmp_path, "--no-restart")
    family = found.family()
    server = next(process for process in family if process.name() == "tritonserver")
    server.kill()
    output, _ = found.process.communicate(timeout=30)
    assert found.process.returncode == 1
    assert "error: tritonserver ended by itself with code -9" in output
    assert str(tmp_path / "repository" / ".server.log") in output
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "repository" / ".server.json").exists()


def test_a_damaged_model_that_was_not_verified_is_reported_by_the_server(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "repository", tmp_path / "repository")
    (tmp_path / "repository" / "retrieval" / "1" / "model.pt").write_bytes(b"nothing")
    process = serve(tmp_path, "--no-verify", "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: tritonserver exited with code 1" in output
    assert "PytorchStreamReader failed" in output
    assert "Traceback" not in output
    assert list((tmp_path / "scratch").iterdir()) == []


def test_no_model_and_no_server_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for arguments, message in [
        (("serve", "--repository", tmp_path), f"{tmp_path} holds no model"),
        (("serve", "--repository", tmp_path / "none"), f"{tmp_path / 'none'} holds no model"),
        (("query", "--address", f"127.0.0.1:{port}"), f"127.0.0.1:{port}"),
    ]:
        monkeypatch.setattr(sys, "argv", ["builder", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert (end.value.code, captured.out) == (1, "")
        assert captured.err.splitlines()[-1].startswith("error: ")
        assert message in captured.err
    assert list(tmp_path.iterdir()) == []
