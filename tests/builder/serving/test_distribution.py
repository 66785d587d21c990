"""The installed server is found, or what is missing is named with its remedy."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builder.errors import BuilderError
from builder.serving import distribution as module
from builder.serving.distribution import find_distribution


@pytest.mark.server
def test_the_installed_server_is_whole(tmp_path: Path) -> None:
    found = find_distribution()
    assert os.access(found.binary, os.X_OK)
    backend = found.write_backend_directory(tmp_path / "backends") / "python"
    names = {path.name for path in backend.iterdir()}
    assert {"libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub"} <= names
    assert all(path.is_symlink() and path.exists() for path in backend.iterdir())


@pytest.mark.server
def test_what_the_environment_has_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/some/where")
    monkeypatch.setenv("MINE", "kept")
    environment = find_distribution().environment()
    paths = environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert paths[-1] == "/some/where"
    assert paths[0].endswith("nvidia_pytriton.libs")
    assert environment["MINE"] == "kept"
    assert os.environ["LD_LIBRARY_PATH"] == "/some/where"


def test_another_platform_is_pointed_to_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    with pytest.raises(BuilderError, match=r"Linux x86-64 only, this is linux aarch64; .*docker compose"):
        find_distribution()


@pytest.mark.parametrize(
    ("version", "command"),
    [
        ((3, 11), r"pip install 'silvertriton\[server\]'"),
        ((3, 13), r"pip install --no-deps 'nvidia-pytriton>=0.7,<0.8'"),
    ],
)
def test_a_missing_wheel_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], command: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(BuilderError, match=f"the stock server is not installed; run: {command}"):
        find_distribution()


def test_a_broken_wheel_is_named_by_its_missing_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(BuilderError, match=rf"lacks {tmp_path}/tritonserver/bin/tritonserver; reinstall it"):
        find_distribution()


def test_a_python_without_its_shared_library_is_told_the_package(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match=r"libpython9.9.so.1.0 was not found.*apt-get install libpython9.9"):
        module._require_libpython("9.9", (tmp_path,))
    (tmp_path / "libpython9.9.so.1.0").write_text("")
    module._require_libpython("9.9", (tmp_path,))
