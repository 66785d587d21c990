"""A server that ends is started again, with its reason told and with waits that grow."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest

from builder.errors import BuilderError
from builder.serving import supervise as module
from builder.serving.server import StockServer
from builder.serving.supervise import supervise
from client import ModelUnavailable, RetrievalClient, Retry
from tests.builder.artifacts import exact, export_vectors

VECTORS = np.random.default_rng(4).normal(size=(60, 8)).astype(np.float32)


class Crashing:
    """Ends right after each start; every second start fails. `stopping` is set after so many starts."""

    url = "somewhere"

    def __init__(self, stopping: threading.Event, starts: int) -> None:
        self.stopping, self.left = stopping, starts

    def poll(self) -> int | None:
        return 7

    def failure(self) -> str:
        return "the log"

    def restart(self) -> None:
        self.left -= 1
        if not self.left:
            self.stopping.set()
            raise KeyboardInterrupt
        if self.left % 2:
            raise BuilderError("cannot start")


def told(starts: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    stopping, said = threading.Event(), list[str]()
    monkeypatch.setattr(stopping, "wait", lambda seconds: stopping.is_set())
    supervise(cast(Any, Crashing(stopping, starts)), stopping, said.append, restart=True)
    return said


def waits(said: list[str]) -> list[float]:
    return [float(found[1]) for text in said if (found := re.search(r"starting it again in (\S+) s", text))]


def test_waits_double_up_to_a_minute_and_each_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = told(12, monkeypatch)
    assert waits(said) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60]
    assert said[:3] == [
        "tritonserver ended by itself with code 7:\nthe log\nstarting it again in 0.1 s",
        "cannot start\nstarting it again in 0.2 s",
        "serving again on somewhere",
    ]


def test_a_server_that_ran_steadily_begins_with_the_first_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEADY", 0.0)
    assert waits(told(6, monkeypatch)) == [0.1, 0.2, 0.1, 0.2, 0.1, 0.2]


def test_without_restart_the_reason_is_raised() -> None:
    stopping = threading.Event()
    with pytest.raises(BuilderError, match="ended by itself with code 7:\nthe log"):
        supervise(cast(Any, Crashing(stopping, 1)), stopping, print, restart=False)


class Losing(Crashing):
    """Runs on; `seen`: the ended processes of models, look by look."""

    def __init__(self, stopping: threading.Event, seen: list[set[int]]) -> None:
        super().__init__(stopping, 1)
        self.seen = seen

    def poll(self) -> None:
        return None

    def dead_models(self) -> set[int]:
        if len(self.seen) == 1:
            self.stopping.set()
        return self.seen.pop(0)


@pytest.mark.parametrize(
    ("seen", "lost"),
    [
        ([set(), {4}, {4}, set()], [4]),
        ([{4}, set(), {5}, set()], []),
        ([{4}, {5}, {6}], []),
        ([{4, 7}, {7}, set()], [7]),
    ],
)
def test_a_server_that_lost_a_model_is_started_again(
    monkeypatch: pytest.MonkeyPatch, seen: list[set[int]], lost: list[int]
) -> None:
    """Once the process was seen twice: that of a model which is unloaded has ended a moment before it is gone."""
    monkeypatch.setattr(module, "_LOOK", 0.0)
    stopping, said = threading.Event(), list[str]()
    monkeypatch.setattr(stopping, "wait", lambda seconds: stopping.is_set())
    supervise(cast(Any, Losing(stopping, seen)), stopping, said.append, restart=True)
    assert said == [f"tritonserver has lost the process of a model, {pid}\nstarting it again in 0.1 s" for pid in lost]


@pytest.mark.server
def test_a_model_that_is_killed_is_there_again(tmp_path: Path) -> None:
    """The stock server itself says that it is ready, and fails every request, for good."""
    version = export_vectors(tmp_path, VECTORS)
    stopping, said = threading.Event(), list[str]()
    with StockServer(version.parent.parent, log=tmp_path / "log") as server:
        retry = Retry(attempts=1000, most=0.2)
        with RetrievalClient(server.url, timeout=60, retry=retry) as client:
            expected = client.retrieve(query=VECTORS[3], k=5).item_ids.tolist()
            assert server._process is not None
            stubs = psutil.Process(server._process.pid).children()
            (victim,) = [stub for stub in stubs if "retrieval_0_0" in stub.cmdline()]
            victim.kill()
            with pytest.raises(ModelUnavailable, match="not healthy"):
                RetrievalClient(server.url, timeout=20, retry=None).retrieve(query=VECTORS[3])
            assert server.dead_models() == {victim.pid}
            thread = threading.Thread(target=supervise, args=(server, stopping, said.append), kwargs={"restart": True})
            thread.start()
            try:
                assert client.retrieve(query=VECTORS[3], k=5).item_ids.tolist() == expected
            finally:
                stopping.set()
                thread.join()
        assert server.dead_models() == set()
    assert said == [
        f"tritonserver has lost the process of a model, {victim.pid}\nstarting it again in 0.1 s",
        f"serving again on {server.url}",
    ]


@pytest.mark.server
def test_a_server_that_cannot_start_again_is_tried_until_it_can(tmp_path: Path) -> None:
    version = export_vectors(tmp_path, VECTORS)
    model, state = version / "model.pt", tmp_path / "state.json"
    whole = model.read_bytes()
    stopping, said, failed, back = threading.Event(), list[str](), threading.Event(), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if "PytorchStreamReader failed" in text:
            model.write_bytes(whole)
            failed.set()
        if text.startswith("serving again"):
            back.set()

    with StockServer(version.parent.parent, log=tmp_path / "log", state=state) as server:
        first = json.loads(state.read_text())
        thread = threading.Thread(target=supervise, args=(server, stopping, say), kwargs={"restart": True})
        thread.start()
        try:
            model.write_bytes(whole[:1000])
            psutil.Process(first["pid"]).kill()
            assert failed.wait(60), said
            assert back.wait(60), said
        finally:
            stopping.set()
            thread.join()
        assert [text.splitlines()[0] for text in said] == [
            "tritonserver ended by itself with code -9:",
            "tritonserver exited with code 1:",
            f"serving again on {server.url}",
        ]
        second = json.loads(state.read_text())
        assert second == {**first, "pid": second["pid"]}
        with RetrievalClient(server.url, timeout=20) as client:
            assert client.retrieve(query=VECTORS[3], k=5).item_ids.tolist() == exact(VECTORS, VECTORS[3], 5)
    assert not state.exists()
