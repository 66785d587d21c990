"""The file that tells where a server is reached, and keys."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from builder.errors import BuilderError
from builder.serving.state import ServerState, checked_key, new_key, one_server, read_key, read_state, remove_state

STATE = ServerState("127.0.0.1:8001", None, "127.0.0.1:8002", os.getpid(), "k" * 20)


def test_it_is_read_as_it_was_written_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / ".server.json"
    previous = os.umask(0)
    try:
        STATE.write(path)
        STATE.write(path)  # over a file that is there
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_state(tmp_path) == STATE
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_server_that_wrote_it_removes_it(tmp_path: Path) -> None:
    path = tmp_path / ".server.json"
    STATE.write(path)
    remove_state(path, STATE.pid + 1)
    assert read_state(tmp_path) == STATE
    remove_state(path, STATE.pid)
    remove_state(path, STATE.pid)
    assert not path.exists()


def test_a_server_that_is_not_there_is_told_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / ".server.json"
    with pytest.raises(BuilderError, match=r"no server of this repository runs on this host\n  .*builder serve"):
        read_state(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(json.dumps({"url": "a:1", "http": None, "metrics": None, "pid": ended.pid, "admin_key": "k"}))
    with pytest.raises(BuilderError, match=f"process {ended.pid}, has ended"):
        read_state(tmp_path)
    far = json.dumps({"url": "a:1", "http": None, "metrics": None, "pid": 10**30, "admin_key": "k"})
    for text in ("", "[]", '{"url": 1}', "\xff", far):
        path.write_text(text)
        with pytest.raises(BuilderError, match=r"\.server\.json: cannot be read"):
            read_state(tmp_path)


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match=r"cannot write .*/none/x: No such file or directory"):
        STATE.write(tmp_path / "none" / "x")


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SILVERTRITON_ADMIN_KEY", raising=False)
    assert read_key(None) is None
    monkeypatch.setenv("SILVERTRITON_ADMIN_KEY", "e" * 16)
    assert read_key(None) == "e" * 16
    (tmp_path / "key").write_text("f" * 64 + "\n")
    assert read_key(tmp_path / "key") == "f" * 64
    with pytest.raises(BuilderError, match="none: cannot be read"):
        read_key(tmp_path / "none")


@pytest.mark.parametrize("key", ["", "short", "k" * 257, "k" * 16 + ",", "k" * 16 + "=", "k k" * 8, "ü" * 20])
def test_a_bad_key_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(BuilderError, match=f"admin key of here: got {len(key)} characters, expected 16 to") as caught:
        checked_key(key, "here")
    assert len(key) < 16 or key not in str(caught.value)


def test_new_keys_are_keys_and_differ() -> None:
    keys = {checked_key(new_key(), "new") for _ in range(100)}
    assert len(keys) == 100


def test_one_server_of_a_repository_at_a_time(tmp_path: Path) -> None:
    with one_server(tmp_path):
        with (
            pytest.raises(BuilderError, match=r"is served already\n  Stop that server, or serve a copy"),
            one_server(tmp_path),
        ):
            pass
        STATE.write(tmp_path / ".server.json")
        with pytest.raises(BuilderError, match=r"is served already, on 127\.0\.0\.1:8001"), one_server(tmp_path):
            pass
    with one_server(tmp_path):  # a state that is left locks nothing
        pass
    with one_server(tmp_path / "none"):  # the server says what is missing
        pass
