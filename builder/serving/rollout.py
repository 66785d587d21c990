"""Rollouts: which version of a model is served is changed while the server answers.

A promotion loads the version beside the served one, as a model of its own (see builder/export/served.py), and proves it
there with a request. Only then the served model's configuration names it and the server loads that: it keeps the old
version until the new one is ready, exchanges them at once, and lets requests that the old one has end. The ranking
model of the version is the last thing unloaded beside, so that clients find one of the snapshot that they know,
whichever of both models has changed already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from builder.errors import BuilderError
from builder.export.manifest import verify
from builder.export.repository import adopt, find_version, versions
from builder.export.served import (
    CONFIGS,
    Configured,
    canary_of,
    configure,
    configured,
    place_canary,
    remove_canary,
    restore,
    rollout_lock,
    saved,
)
from builder.serving.control import ModelControl
from client.schema import CANARY_SUFFIX, RANKING_SUFFIX

Say = Callable[[str], object]  # receives what is done next
_STAGED = 0.0  # the share of a version that is loaded beside the served one, for nobody


@dataclass(frozen=True)
class State:
    """What a repository says that the server serves of a model, as its canary and as its ranking model, if any."""

    served: Configured
    canary: Configured | None
    rank: Configured | None


def state(repository: Path, model: str) -> State:
    """Raises BuilderError where the model is not there or its configuration names no version."""
    served = configured(repository / model)
    if served is None:
        find_version(repository, model)  # says what there is
        raise BuilderError(
            "has no config.pbtxt", where=str(repository / model), remedy="Write it: builder promote VERSION --offline"
        )
    rank = configured(repository / (model + RANKING_SUFFIX))
    return State(served, configured(repository / canary_of(model)), rank)


def promote(repository: Path, model: str, number: int | None, control: ModelControl, say: Say = lambda _: None) -> int:
    """Serve a version, the newest if None, in place of the one that is served. Returns its number.

    A canary ends, by being served or by being unloaded. Promoting what is served already completes a promotion that was
    interrupted. Raises BuilderError where the version is damaged, cannot be loaded or does not answer: what was served
    is served further on then, and the repository says so.
    """
    with rollout_lock(repository):
        control.loaded()  # it can be reached, before the work of hashing
        pair = _checked_pair(repository, model, number, say)
        before = state(repository, model)
        number = int(pair[0].name)
        canary = before.canary
        proven = canary is not None and canary.version == number and canary.share != _STAGED
        if not proven:
            _end_canary(repository, model, control)
            if before.served.version != number:
                _begin_canary(repository, model, pair, _STAGED, control, say)
        if (beside := configured(repository / canary_of(model))) and beside.share == _STAGED:
            # Proven, and nobody is sent there: loading it anew needs no memory for three.
            _drop(repository, model, canary_of(model), control)
        with _nothing_left(repository, model, control, but=proven):
            _serve(repository, model, pair, control, say)
        _end_canary(repository, model, control)
        return number


def start_canary(
    repository: Path, model: str, number: int | None, share: float, control: ModelControl, say: Say = lambda _: None
) -> int:
    """Load a version beside the served one, for a share of the requests, 0 to 1. Returns its number.

    Another canary is unloaded first; for this version, if it is one already, the share changes. Raises BuilderError as
    `promote` does, and for the version that is served.
    """
    with rollout_lock(repository):
        control.loaded()
        pair = _checked_pair(repository, model, number, say)
        number = int(pair[0].name)
        before = state(repository, model)
        if before.served.version == number:
            raise BuilderError(f"version {number} of {model} is served already, to all", where=str(repository))
        if before.canary is not None and before.canary.version == number:
            home = repository / canary_of(model)
            say(f"Loading {home.name} anew")
            old = saved(home)
            try:
                configure(home, pair[0], share=share)
                control.load(home.name, number)
            except BaseException:
                restore(old)
                raise
        else:
            _end_canary(repository, model, control)
            _begin_canary(repository, model, pair, share, control, say)
        return number


def roll_back(repository: Path, model: str, control: ModelControl, say: Say = lambda _: None) -> tuple[int, int]:
    """End a canary, or else serve the version that was served before. Returns the version left and the one served.

    Raises BuilderError where none was served before or it is gone, and as `promote` does. It was proven when it was
    promoted, so it is loaded at once.
    """
    with rollout_lock(repository):
        before = state(repository, model)
        if before.canary is not None and before.canary.share != _STAGED:
            _end_canary(repository, model, control)
            return before.canary.version, before.served.version
        _end_canary(repository, model, control)
        if before.served.previous is None:
            raise BuilderError(
                f"no version was served before {before.served.version}",
                where=str(repository / model),
                remedy="Serve another one with: builder promote VERSION",
            )
        pair = _checked_pair(repository, model, before.served.previous, say)
        with _nothing_left(repository, model, control):
            if len(pair) > 1:
                _load_beside(repository, model + RANKING_SUFFIX, pair[1], None, control, say)
            _serve(repository, model, pair, control, say)
        _end_canary(repository, model, control)
        return before.served.version, before.served.previous


def choose(repository: Path, model: str, number: int | None) -> int:
    """Let the repository name a version, the newest if None, for the next start of a server. Returns its number."""
    with rollout_lock(repository):
        pair = _checked_pair(repository, model, number, lambda _: None)
        with contextlib.suppress(BuilderError):  # no configuration, or one that names none
            _forget_canary(repository, model)
        _configure(repository, model, pair)
        return int(pair[0].name)


def tidy(repository: Path) -> None:
    """Put a repository in order before a server starts.

    What an interrupted promotion left beside the served models is removed, a canary stays; configurations of earlier
    releases become those of their versions.
    """
    for path in repository.glob("*/config.pbtxt"):
        with contextlib.suppress(BuilderError, OSError):  # a model of others, a repository that is only read
            adopt(path.parent)
    beside = [home.name.removesuffix(RANKING_SUFFIX) for home in repository.glob("*/") if _is_beside(home.name)]
    if not beside:
        return
    with contextlib.suppress(BuilderError, OSError), rollout_lock(repository):  # or one that is only read
        for name in set(beside):
            with contextlib.suppress(BuilderError):  # one that cannot be read hinders no other
                canary = configured(repository / name)
                if canary is None or canary.share == _STAGED:
                    _forget_canary(repository, name.removesuffix(CANARY_SUFFIX))


def _checked_pair(repository: Path, model: str, number: int | None, say: Say) -> list[Path]:
    """The version and, if it has one, that of its ranking model, their files checked."""
    pair = [find_version(repository, model, number)]
    for name in (model, model + RANKING_SUFFIX):
        adopt(repository / name)
    say("Checking files")
    verify(pair[0])
    on_gpus = CONFIGS["python-gpu"]
    if (repository / model / on_gpus).exists() and not (pair[0] / on_gpus.name).exists():
        say(f"warning: version {pair[0].name} has no configuration for GPUs; a server on GPUs serves it on the CPU")
    rank = model + RANKING_SUFFIX
    if pair[0].name in [path.name for path in versions(repository, rank)]:
        pair.append(find_version(repository, rank, int(pair[0].name)))
        verify(pair[1])
    elif configured(repository / rank):
        say(f"warning: version {pair[0].name} has no ranking model; clients refuse that of another version")
    return pair


def _begin_canary(
    repository: Path, model: str, pair: list[Path], share: float, control: ModelControl, say: Say
) -> None:
    """Load both models beside: the ranking model first, so that it is there for whoever is sent to the other."""
    with _nothing_left(repository, model, control):
        for version in reversed(pair):
            _load_beside(repository, version.parent.name, version, share if version == pair[0] else None, control, say)


@contextlib.contextmanager
def _nothing_left(repository: Path, model: str, control: ModelControl, *, but: bool = False) -> Iterator[None]:
    """Unload what is beside where the work fails, `but` a canary that was there before."""
    try:
        yield
    except BaseException:
        if not but:
            with contextlib.suppress(BuilderError):  # the first error says more
                _end_canary(repository, model, control)
        raise


def _load_beside(
    repository: Path, of: str, version: Path, share: float | None, control: ModelControl, say: Say
) -> None:
    name = _beside(of)
    say(f"Loading version {version.name} of {of} beside")
    place_canary(repository, name, version, share)
    control.load(name, int(version.name))


def _serve(repository: Path, model: str, pair: list[Path], control: ModelControl, say: Say) -> None:
    """Let the served models be the versions of `pair`; where that fails, they are what they were."""
    before = {path: content for version in pair for path, content in saved(version.parent).items()}
    was = {name: numbers[0] for name, numbers in control.loaded().items()}
    try:
        _configure(repository, model, pair)
        for version in pair:
            say(f"Serving version {version.name} of {version.parent.name}")
            control.load(version.parent.name, int(version.name))
    except BaseException:
        restore(before)
        with contextlib.suppress(BuilderError):  # the first error says more
            for version in pair:
                if version.parent.name in was:
                    control.load(version.parent.name, was[version.parent.name])
        raise


def _configure(repository: Path, model: str, pair: list[Path]) -> None:
    before = None
    with contextlib.suppress(BuilderError):
        before = configured(repository / model)
    for version in pair:
        number, previous = int(version.name), None
        if before is not None:
            previous = before.previous if before.version == number else before.version
        configure(version.parent, version, previous=previous)


def _end_canary(repository: Path, model: str, control: ModelControl) -> None:
    """Unload what is beside; the ranking model last."""
    for name in _names_beside(model):
        _drop(repository, model, name, control)


def _drop(repository: Path, model: str, name: str, control: ModelControl) -> None:
    control.unload(name)  # first: what is not in the repository is not listed as loaded any more
    remove_canary(repository, name, model)


def _forget_canary(repository: Path, model: str) -> None:
    for name in _names_beside(model):
        remove_canary(repository, name, model)


def _names_beside(model: str) -> tuple[str, str]:
    return canary_of(model), _beside(model + RANKING_SUFFIX)


def _is_beside(name: str) -> bool:
    return name.removesuffix(RANKING_SUFFIX).endswith(CANARY_SUFFIX)


def _beside(name: str) -> str:
    """retrieval -> retrieval_canary, retrieval_rank -> retrieval_canary_rank."""
    base = name.removesuffix(RANKING_SUFFIX)
    return canary_of(base) + name[len(base) :]
