"""Version directories in a Triton model repository, written whole or not at all.

REPOSITORY/MODEL/config.pbtxt              Python backend (the embedded server)
REPOSITORY/MODEL/configs/pytorch.pbtxt     PyTorch backend, chosen with --model-config-name=pytorch
REPOSITORY/MODEL/VERSION/{model.pt, model.py, libsilvertriton_ops.so, manifest.json}
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from builder.errors import BuilderError
from builder.export.config import model_config
from builder.export.manifest import CODE_FILE, LIBRARY_FILE, MANIFEST, MODEL_FILE, FileEntry, Manifest, hash_file
from builder.oplib import library_path
from client.schema import Schema

# Copied, never imported here: it needs the server's own Python module.
_SERVED_CODE = Path(__file__).parent.parent / "serving" / "triton_model.py"
_PARTIAL = ".partial-"
_FREE_SPACE_RESERVE = 64 << 20  # bytes left free beside what is written


def versions(repository: Path, model: str) -> list[Path]:
    """The version directories of a model, oldest first."""
    found = [path for path in (repository / model).glob("*") if path.is_dir() and re.fullmatch(r"[1-9]\d*", path.name)]
    return sorted(found, key=lambda path: int(path.name))


def find_version(repository: Path, model: str, version: int | None = None) -> Path:
    """A given or the newest version directory. Raises `BuilderError` listing what there is."""
    found = versions(repository, model)
    wanted = [path for path in found if version is None or int(path.name) == version]
    if wanted:
        return wanted[-1]
    there = ", ".join(path.name for path in found) or "none"
    what = f"version {version}" if version is not None else "any version"
    raise BuilderError(
        f"{repository / model} does not hold {what} (versions: {there}); export one with: builder export"
    )


def write_version(
    repository: Path,
    model: str,
    scripted: torch.jit.ScriptModule,
    schema: Schema,
    describe: Callable[[dict[str, FileEntry]], Manifest],
    *,
    threads: int = 1,
    instances: int = 1,
) -> Path:
    """Add the next version of a model to a repository and return its directory.

    `describe` receives the hashes of the files and returns the manifest. Everything is written under a temporary name
    and renamed when it is complete, so that a server or a crash never sees half a version. Raises `BuilderError` when
    there is not enough space or the directory cannot be written; nothing is left behind then.
    """
    check_target(repository, model)
    home = repository / model
    try:
        with _lock(home):
            _require_space(home, _artifact_bytes(scripted))
            for leftover in home.glob(f"{_PARTIAL}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=home))
            try:
                _save(scripted, partial / MODEL_FILE)
                shutil.copyfile(_SERVED_CODE, partial / CODE_FILE)
                shutil.copyfile(library_path(), partial / LIBRARY_FILE)
                files = {name: hash_file(partial / name) for name in (MODEL_FILE, CODE_FILE, LIBRARY_FILE)}
                (partial / MANIFEST).write_text(describe(files).to_json())
                partial.chmod(0o755)  # mkdtemp's 0700 would lock out a server that runs as another user
                _sync(partial)
                existing = versions(repository, model)
                version = home / str(int(existing[-1].name) + 1 if existing else 1)
                _write_configs(home, partial, model, schema, threads, instances)
                partial.rename(version)
                return version
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise BuilderError(f"cannot write a version of {model} into {repository}: {error}") from error


def check_target(repository: Path, model: str) -> None:
    """Raise `BuilderError` if no version can be written there, before an index is built for nothing."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", model):
        raise BuilderError(
            f"model name {model!r}: use letters, digits, '_' and '-' only, as it is a directory and part of URLs"
        )
    home = (repository / model).absolute()
    existing = next(path for path in (home, *home.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "is not writable" if existing.is_dir() else "is no directory"
        raise BuilderError(
            f"cannot write a version of {model} into {repository}: {existing} {reason}; choose another --repository"
        )


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Create a model's directory and let one export write into it at a time; another waits.

    The lock ends with the process. A directory in which nothing was written is removed again: a server would take it
    for a model that it cannot load.
    """
    descriptor = _locked(home)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            home.rmdir()
        os.close(descriptor)


def _locked(home: Path) -> int:
    while True:
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(home, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), home.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # whoever held the lock before removed the directory
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _save(scripted: torch.jit.ScriptModule, path: Path) -> None:
    """Save, the space claimed first: torch's writer aborts the whole process when a disk takes no more."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _artifact_bytes(scripted) + _FREE_SPACE_RESERVE)
    scripted.save(str(path))


def _write_configs(home: Path, partial: Path, model: str, schema: Schema, threads: int, instances: int) -> None:
    """Both configurations are complete, beside the new version's files, before the first one takes its place."""
    targets = {"python": home / "config.pbtxt", "pytorch": home / "configs" / "pytorch.pbtxt"}
    for backend, path in targets.items():
        text = model_config(schema, model=model, backend=backend, threads=threads, instances=instances)
        (partial / path.name).write_text(text)
    (home / "configs").mkdir(exist_ok=True)
    for path in targets.values():
        os.replace(partial / path.name, path)


def _artifact_bytes(scripted: torch.jit.ScriptModule) -> int:
    tensors = [*scripted.parameters(), *scripted.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _require_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed + _FREE_SPACE_RESERVE:
        raise BuilderError(
            f"{directory} has {free / 1e6:,.0f} MB free, the artifact needs "
            f"{(needed + _FREE_SPACE_RESERVE) / 1e6:,.0f} MB; free some space or choose another --repository"
        )


def _sync(directory: Path) -> None:
    """Flush the files to disk, so that the rename cannot outlive their content in a power cut."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
