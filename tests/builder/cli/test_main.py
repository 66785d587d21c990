"""The command line as a process: help without torch, suggestions, exit codes, no tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from builder.cli import main as module
from builder.cli.main import COMMANDS
from builder.errors import BuilderError, OplibError
from client.errors import ConnectionFailed


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["builder", *arguments])
    try:
        module.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_help_lists_every_command_and_brings_no_torch() -> None:
    code = "import sys; sys.argv = ['builder', '--help']\nimport atexit\n"
    code += "atexit.register(lambda: print('torch' in sys.modules))\nfrom builder.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, summary in COMMANDS.items():
        assert name in result.stdout
        assert summary.split()[0] in result.stdout
    assert result.stdout.strip().endswith("False")


def test_an_unknown_command_gets_a_suggestion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "exprot") == 2
    assert "Did you mean 'export'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BuilderError("is wrong", where="file", remedy="Do this."), 1, "error: file: is wrong\n  Do this.\n"),
        (ConnectionFailed("nobody there"), 1, "error: nobody there\n"),
        (OplibError("no C++ compiler"), 1, "error: no C++ compiler\n"),
        (OSError(28, "No space left on device", "runs/a"), 1, "error: runs/a: No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.Abort(), 130, "interrupted\n"),
        (click.BadParameter("no such thing", param_hint="--user"), 2, "Invalid value for --user: no such thing"),
    ],
)
def test_errors_become_messages_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(module.cli, "callback", fail)
    assert run(monkeypatch, "inspect") == code
    assert said in capsys.readouterr().err


def test_what_nobody_expected_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module.cli, "callback", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run(monkeypatch, "inspect")


def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.eye(4))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": "no-such-compiler"}
    result = subprocess.run(
        [sys.executable, "-m", "builder", "export", str(tmp_path / "v.npy"), "--repository", str(tmp_path / "r")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "error: no C++ compiler: no-such-compiler is not on PATH" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "r").exists()
