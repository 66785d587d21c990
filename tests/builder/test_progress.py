import re

import pytest

from builder import progress


def test_without_a_terminal_a_step_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.step("Reading", 10) as step:
        for _ in range(10):
            step.advance()
        step.note("10 rows")
    with progress.stages() as stage:
        stage("One")(0.5)
        stage("Two")(1.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [re.sub(r"\d+\.\d s", "T s", line) for line in captured.err.splitlines()]
    assert lines == ["Reading: T s  10 rows", "One: T s", "Two: T s"]


def test_bars_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress.step("Reading", 2) as step:
        step.advance(2)
        step.note("two rows")
    with progress.stages() as stage:
        stage("One")(0.5)
        stage("Two")(0.25)
    shown = capsys.readouterr().err
    for text in ("Reading", "2/2", "two rows", "One", "Two", "100%"):
        assert text in shown


def test_a_failing_step_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), progress.step("Reading"):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_of_several_processes_one_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        with progress.silent():
            progress.say("nothing")
            with progress.step("Silent", 2) as step:
                step.advance()
                step.note("nothing")
            with progress.silent(False):  # of no use within a silence
                progress.say("nothing")
        assert capsys.readouterr().err == ""
    with progress.silent(False):
        progress.say("something")
    assert capsys.readouterr().err == "something\n"
