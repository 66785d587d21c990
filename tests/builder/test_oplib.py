"""Finding, compiling and caching the operator library."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from builder import nvcc, oplib
from builder.errors import OplibError


def script(folder: Path, body: str) -> str:
    """An executable shell script that plays the compiler."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(oplib.LIBRARY_VARIABLE, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(nvcc.TARGETS_VARIABLE, "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Plays g++: a version, and output files that hold the number of objects they were made of.
FAKE_COMPILER = """
if [ "$1" = --version ]; then echo "fake 1.0"; exit; fi
objects=0
for argument; do
  case "$argument" in *.o) objects=$((objects + 1));; esac
  output="$argument"
done
echo "$objects" > "$output"
"""


def test_the_library_is_compiled_once_and_says_so(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("CXX", script(tmp_path, f"echo run >> {log}\n{FAKE_COMPILER}"))
    library = oplib.library_path()
    assert library.name == "libsilvertriton_ops.so"
    assert library.parent.parent == empty_cache / "silvertriton"
    sources = len(list((Path(oplib.__file__).parent.parent / "kernels").rglob("*.cpp")))
    assert library.read_text() == f"{sources}\n"
    assert log.read_text().count("run") == sources + 2  # every source, the version, the link
    assert oplib.library_path() == library
    assert log.read_text().count("run") == sources + 3  # the version again, and nothing else
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    told = f"Compiling the operators for the CPU: once, later commands find them in {empty_cache / 'silvertriton'}\n"
    assert capsys.readouterr().err == told


def test_another_compiler_means_another_library(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", script(tmp_path, FAKE_COMPILER))
    first = oplib.library_path()
    monkeypatch.setenv("CXX", script(tmp_path, FAKE_COMPILER.replace("fake 1.0", "fake 2.0")))
    assert oplib.library_path() != first


def test_a_missing_compiler_names_the_remedy(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(OplibError, match=r"g\+\+ is not on PATH.*apt-get install g\+\+.*SILVERTRITON_OPS_LIBRARY"):
        oplib.library_path()


def test_a_compile_error_shows_what_the_compiler_said(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'if [ "$1" = --version ]; then echo fake; exit; fi\necho "error: no such planet" >&2\nexit 1'
    monkeypatch.setenv("CXX", script(tmp_path, body))
    with pytest.raises(OplibError, match="error: no such planet"):
        oplib.library_path()
    assert not list(empty_cache.rglob("*.so"))
    assert not list(empty_cache.rglob("build-*"))


def test_a_prebuilt_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prebuilt = tmp_path / "ops.so"
    monkeypatch.setenv(oplib.LIBRARY_VARIABLE, str(prebuilt))
    with pytest.raises(OplibError, match=r"SILVERTRITON_OPS_LIBRARY is .*ops\.so, which is no file"):
        oplib.library_path()
    prebuilt.touch()
    assert oplib.library_path() == prebuilt


def test_it_links_only_libtorch_cpu_and_finds_it() -> None:
    """Preloaded into a process without torch, the library must bring its dependencies along."""
    library = oplib.library_path()
    if readelf := shutil.which("readelf"):
        dynamic = subprocess.run([readelf, "-d", str(library)], capture_output=True, text=True, check=True).stdout
        needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
        assert [name for name in needed if "torch" in name or "c10" in name] == ["libtorch_cpu.so"]
        assert str(oplib.torch_library_folder()) in dynamic
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    subprocess.run(["/bin/true"], env={**environment, "LD_PRELOAD": str(library)}, check=True, capture_output=True)


@pytest.mark.slow
def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    code = "from builder import oplib, ops\nops.load()\nprint(oplib.library_path())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop(oplib.LIBRARY_VARIABLE, None)
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=280)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(list(tmp_path.rglob("*.so"))) == 1


@pytest.mark.slow
def test_an_installed_wheel_carries_the_sources(tmp_path: Path) -> None:
    root = Path(oplib.__file__).parent.parent
    checkout = tmp_path / "checkout"
    for part in ("builder", "client", "kernels"):
        shutil.copytree(root / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / part, checkout / part)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    result = subprocess.run([*pip, "--target", str(site), str(checkout)], capture_output=True, text=True, check=False)
    if result.returncode != 0 and "No module named pip" in result.stderr:
        pytest.skip("pip is not installed")
    assert result.returncode == 0, result.stderr
    code = "from builder import oplib\nprint(oplib.__file__, oplib.library_path())"
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop(oplib.LIBRARY_VARIABLE, None)
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert Path(output[0]).is_relative_to(site)
    assert Path(output[1]).is_relative_to(tmp_path / "cache")
    assert Path(output[1]).parent.name == oplib.library_path().parent.name or oplib.LIBRARY_VARIABLE in os.environ
