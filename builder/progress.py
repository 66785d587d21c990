"""Progress bars on a terminal, one line a step elsewhere, so that logs stay readable."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_spoken = True  # see `silent`


class Step:
    """Work in progress. `advance` counts units done; `note` is shown beside the bar and in the last line."""

    def __init__(self, bar: Progress | None, task: TaskID | None) -> None:
        self._bar = bar
        self._task = task
        self.noted = ""

    def advance(self, units: float = 1) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, units)

    def note(self, text: str) -> None:
        self.noted = text
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=text)


@contextmanager
def step(description: str, total: float | None = None, *, count: bool = True) -> Iterator[Step]:
    """Show one step of work; `total` in units of `advance` (None: unknown), `count`: show units, else percent.

    Without a terminal on stderr it prints one line when the step ends.
    """
    start = time.monotonic()
    if _spoken and sys.stderr.isatty():
        with _bar(count=count) as bar:
            yield Step(bar, bar.add_task(description, total=total, note=""))
        return
    quiet = Step(None, None)
    yield quiet
    if not _spoken:
        return
    note = f"  {quiet.noted}" if quiet.noted else ""
    print(f"{description}: {time.monotonic() - start:.1f} s{note}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line for the person who waits, on stderr."""
    if _spoken:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def silent(wanted: bool = True) -> Iterator[None]:
    """Within it steps and lines are not shown, if that is `wanted`: of several processes one speaks."""
    global _spoken
    before, _spoken = _spoken, _spoken and not wanted
    try:
        yield
    finally:
        _spoken = before


@contextmanager
def stages() -> Iterator[Callable[[str], Callable[[float], None]]]:
    """Consecutive stages in one display, for work that reports fractions.

    Gives a function: called with a description when a stage starts, it returns the function that takes the fraction
    done, 0 to 1. Without a terminal each stage prints one line when the next one starts or all end.
    """
    started: list[tuple[str, float]] = []

    def finish() -> None:
        if started:
            description, since = started.pop()
            print(f"{description}: {time.monotonic() - since:.1f} s", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():

        def quiet(description: str) -> Callable[[float], None]:
            finish()
            started.append((description, time.monotonic()))
            return lambda done: None

        yield quiet
        finish()
        return

    with _bar(count=False) as bar:

        def shown(description: str) -> Callable[[float], None]:
            for task in bar.tasks:
                bar.update(task.id, completed=1.0)
            current = bar.add_task(description, total=1.0, note="")
            return lambda done: bar.update(current, completed=done)

        yield shown
        for task in bar.tasks:
            bar.update(task.id, completed=1.0)


def _bar(*, count: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn() if count else TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
