"""Which version a model serves: it stands in the model's configuration, which is that version's own.

REPOSITORY/MODEL/VERSION/{config.pbtxt, pytorch.pbtxt, ...}       written with the version, never changed
REPOSITORY/MODEL/{config.pbtxt, configs/pytorch.pbtxt, ...}       the served version's, and its number
REPOSITORY/MODEL_canary/{VERSION -> ../MODEL/VERSION, ...}        a canary: a second version, as a model of its own

A model of its own because all loaded versions of one Triton model share one configuration, and versions differ in it:
their schema, inputs and outputs stand there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from builder.errors import BuilderError
from builder.export.config import CONFIGURATIONS, read_config
from client.schema import CANARY_SUFFIX, SHARE_PARAMETER

CONFIGS = {
    name: Path("config.pbtxt") if name == "python" else Path("configs", f"{name}.pbtxt") for name in CONFIGURATIONS
}
"""Where each stands below a model; in a version's folder the file alone. A server falls back on config.pbtxt."""
_LOCK = ".rollout.lock"
_PARTIAL = ".rollout-"  # begins the names of folders that are being written or removed
_PREVIOUS = "previous"  # parameter: the version that was served before


@dataclass(frozen=True)
class Configured:
    """What a model's configuration says. `share`: of the requests, for a canary; else None."""

    version: int
    previous: int | None
    share: float | None


def configured(home: Path) -> Configured | None:
    """What the model in this folder serves; None where there is none.

    Raises BuilderError for a configuration that cannot be read or names no version.
    """
    path = home / CONFIGS["python"]
    if not path.exists():
        return None
    config = read_config(path)
    named = list(config.version_policy.specific.versions)
    if len(named) != 1:
        raise BuilderError(
            f"names {len(named)} versions, expected one in version_policy",
            where=str(path),
            remedy="Name the version to serve with: builder promote VERSION --offline",
        )
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    previous, share = parameters.get(_PREVIOUS), parameters.get(SHARE_PARAMETER)
    try:
        return Configured(named[0], int(previous) if previous else None, float(share) if share else None)
    except ValueError as error:
        raise BuilderError(
            f"says what no rollout writes: {error}",
            where=str(path),
            remedy="Write it anew with: builder promote VERSION --offline",
        ) from error


def configure(home: Path, version: Path, *, previous: int | None = None, share: float | None = None) -> None:
    """Let the model in `home` serve a version: its configurations are replaced, each at once.

    `home` may be another model's than the version's. Raises BuilderError for a version without configurations.
    """
    if not (version / CONFIGS["python"].name).exists():
        raise BuilderError(
            "has no configuration of its own: it was exported before versions had one",
            where=str(version),
            remedy="Export it again, as a new version.",
        )
    for path in CONFIGS.values():
        if not (version / path.name).exists():  # it has none of that name
            (home / path).unlink(missing_ok=True)
            continue
        config = read_config(version / path.name)
        config.name = home.name
        config.version_policy.specific.versions.append(int(version.name))
        if previous is not None:
            config.parameters[_PREVIOUS].string_value = str(previous)
        if share is not None:
            config.parameters[SHARE_PARAMETER].string_value = repr(share)
        (home / path).parent.mkdir(exist_ok=True)
        replace_file(home / path, text_format.MessageToString(config, as_utf8=True).encode())


def saved(home: Path) -> dict[Path, bytes | None]:
    """The configurations of a model as they are, for `restore`."""
    return {home / path: (home / path).read_bytes() if (home / path).exists() else None for path in CONFIGS.values()}


def restore(configurations: dict[Path, bytes | None]) -> None:
    """Put back what `saved` returned."""
    for path, content in configurations.items():
        if content is None:
            path.unlink(missing_ok=True)
        else:
            replace_file(path, content)


def canary_of(model: str) -> str:
    """The model as which a canary of `model` is served. Its ranking model has the usual suffix after that."""
    return model + CANARY_SUFFIX


def place_canary(repository: Path, name: str, version: Path, share: float | None) -> Path:
    """Put a version of a model, already written, under another model's name; the folder appears whole."""
    with _aside(version.parent) as partial:
        home = partial / name
        home.mkdir()
        (home / version.name).symlink_to(Path("..", version.parent.name, version.name))
        configure(home, version, share=share)
        return home.rename(repository / name)


def remove_canary(repository: Path, name: str, model: str) -> None:
    """Remove that folder, if it is there; no server that starts meanwhile finds half of it."""
    with _aside(repository / model) as partial, contextlib.suppress(FileNotFoundError):
        (repository / name).rename(partial / name)


@contextlib.contextmanager
def _aside(home: Path) -> Iterator[Path]:
    """A folder that is removed at the end. In a model's: a server would take one beside it for a model."""
    for leftover in home.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def rollout_lock(repository: Path) -> Iterator[None]:
    """One rollout in a repository at a time; the lock ends with the process. Raises BuilderError if it is taken."""
    if not repository.is_dir():
        raise BuilderError(f"{repository} is no directory; give the model repository with --repository")
    with (repository / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BuilderError(
                "another promotion or rollback is under way",
                where=str(repository),
                remedy="Wait until it ends; `builder versions` shows what is served.",
            ) from error
        yield


def replace_file(path: Path, content: bytes) -> None:
    """Write a file to the disk under another name and rename it: whoever reads it finds the old or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
