"""Version directories in a Triton model repository, written whole or not at all.

REPOSITORY/MODEL/VERSION/{model.pt, model.py, libsilvertriton_ops.so, manifest.json}
REPOSITORY/MODEL/VERSION/{config.pbtxt, pytorch.pbtxt}      its configurations; where it holds plain.onnx or model.plan,
                                           onnxruntime.pbtxt and tensorrt.pbtxt too; where its operators run on GPUs,
                                           python-gpu.pbtxt and pytorch-gpu.pbtxt
REPOSITORY/MODEL/config.pbtxt              of the version that is served: Python backend (the embedded server)
REPOSITORY/MODEL/configs/pytorch.pbtxt     the same: PyTorch backend, chosen with --model-config-name=pytorch; and so on
REPOSITORY/MODEL_rank/...                  the ranking model of the same snapshot, under the same version number
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from builder import ops
from builder.errors import BuilderError
from builder.export.config import CONFIGURATIONS, model_config, read_config
from builder.export.manifest import (
    CODE_FILE,
    LIBRARY_FILE,
    MANIFEST,
    MODEL_FILE,
    FileEntry,
    Manifest,
    Ranks,
    hash_file,
    read_manifest,
)
from builder.export.served import CONFIGS, configure, replace_file
from builder.oplib import library_path
from client.schema import CANARY_SUFFIX, RANKING_SUFFIX, Schema

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
    if not repository.is_dir():
        raise BuilderError(f"{repository} is no directory; give the model repository with --repository")
    found = versions(repository, model)
    wanted = [path for path in found if version is None or int(path.name) == version]
    if wanted:
        return wanted[-1]
    there = ", ".join(path.name for path in found) or "none"
    what = f"version {version}" if version is not None else "any version"
    raise BuilderError(
        f"{repository / model} does not hold {what} (versions: {there}); export one with: builder export"
    )


def version_of_run(repository: Path, model: str, name: str, figures: dict[str, float]) -> Path | None:
    """The newest version of a model that was exported from the run with this name and these figures, if there is one.

    Raises BuilderError for a version that is damaged.
    """
    for version in reversed(versions(repository, model)):
        manifest = read_manifest(version)
        trained = manifest.training
        if manifest.name == name and trained and all(figures.get(key) == value for key, value in trained.items()):
            return version
    return None


def write_version(
    repository: Path,
    model: str,
    scripted: torch.jit.ScriptModule,
    schema: Schema,
    describe: Callable[[dict[str, FileEntry]], Manifest],
    *,
    ranking: torch.jit.ScriptModule | None = None,
    write_more: Callable[[Path, bool], None] = lambda folder, of_ranking: None,
    threads: int = 1,
    instances: int = 1,
) -> Path:
    """Add the next version of a model to a repository and return its directory. Only the first one is served by that.

    `describe` receives the hashes of the files and returns the manifest. `ranking` becomes the version of that number
    of the ranking model. `write_more` adds files to a version's folder, to that of the ranking model if True.
    Everything is written under temporary names and renamed when it is complete, so that a server or a crash never sees
    half a version; the ranking model's is renamed first. Raises `BuilderError` when there is not enough space or a
    directory cannot be written; nothing is left behind then.
    """
    check_target(repository, model, ranked=ranking is not None)
    ops.load()
    on_gpus = bool(ops.cuda_targets())
    networks = {model: scripted} if ranking is None else {model: scripted, model + RANKING_SUFFIX: ranking}
    homes = [repository / name for name in networks]
    try:
        with contextlib.ExitStack() as stack:
            for home in homes:
                stack.enter_context(_lock(home))
                for leftover in home.glob(f"{_PARTIAL}*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                adopt(home)
            _require_space(homes[0], sum(map(_artifact_bytes, networks.values())))
            taken = [int(path.name) for name in networks for path in versions(repository, name)]
            number = max(taken, default=0) + 1
            written: list[tuple[Path, Path]] = []
            for (name, network), home in zip(networks.items(), homes, strict=True):
                partial = stack.enter_context(_partial(home))
                _write_files(network, partial)
                write_more(partial, name != model)
                files = {path.name: hash_file(path) for path in sorted(partial.iterdir())}
                if name == model:
                    manifest, ranks = describe(files), None
                else:
                    ranks = Ranks(model=model, version=number, sha256=manifest.snapshot)
                    manifest = _of_ranking(manifest, ranks, files, network)
                (partial / MANIFEST).write_text(manifest.to_json())
                partial.chmod(0o755)  # mkdtemp's 0700 would lock out a server that runs as another user
                for title, config in CONFIGS.items():
                    found = CONFIGURATIONS[title]
                    if found.file not in files or (found.needs_cuda and not on_gpus):
                        continue
                    text = model_config(
                        schema, manifest.contract, model=name, configuration=title, threads=threads,
                        instances=instances, snapshot=manifest.snapshot, ranks=None if ranks is None else model,
                    )  # fmt: skip
                    (partial / config.name).write_text(text)
                _sync(partial)
                written.append((partial, home / str(number)))
            _publish(written[::-1])
            return homes[0] / str(number)
    except OSError as error:
        raise BuilderError(f"cannot write a version of {model} into {repository}: {error}") from error


def adopt(home: Path) -> None:
    """Give configurations that name no version to the version that they are of, as that one's own.

    A model had such ones, of its newest version, before versions carried their own. Raises `BuilderError` where they
    are of no version that is there.
    """
    config = home / CONFIGS["python"]
    if not config.exists() or (read := read_config(config)).HasField("version_policy"):
        return
    newest = find_version(home.parent, home.name)
    if (newest / config.name).exists():
        return  # the policy was taken out since; `configured` says so
    if read_manifest(newest).snapshot != read.parameters["snapshot"].string_value:
        raise BuilderError(
            f"is not of version {newest.name}, the newest, and names no other",
            where=str(config),
            remedy="Export again, into an empty repository.",
        )
    for path in reversed(CONFIGS.values()):  # config.pbtxt last: it says that they are there
        if (home / path).exists():
            replace_file(newest / path.name, (home / path).read_bytes())
    configure(home, newest)


def check_target(repository: Path, model: str, *, ranked: bool = False) -> None:
    """Raise `BuilderError` if no version can be written there, before an index is built for nothing.

    `ranked`: whether a version of the ranking model is written too.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", model):
        raise BuilderError(
            f"model name {model!r}: use letters, digits, '_' and '-' only, as it is a directory and part of URLs"
        )
    for suffix, of in ((RANKING_SUFFIX, "ranking models"), (CANARY_SUFFIX, "canaries")):
        if model.endswith(suffix):
            raise BuilderError(f"model name {model!r}: names that end in {suffix} are those of {of}")
    rank = model + RANKING_SUFFIX
    if not ranked and versions(repository, rank):
        raise BuilderError(
            f"{repository / rank} would stay with items of an earlier version of {model}",
            remedy="Export both, or remove that folder first.",
        )
    for home in [(repository / name).absolute() for name in ([model, rank] if ranked else [model])]:
        existing = next(path for path in (home, *home.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            reason = "is not writable" if existing.is_dir() else "is no directory"
            raise BuilderError(
                f"cannot write a version of {model} into {repository}: {existing} {reason}; choose another --repository"
            )


@contextlib.contextmanager
def _partial(home: Path) -> Iterator[Path]:
    """A folder to write a version in; removed at the end, unless it was renamed."""
    folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(network: torch.jit.ScriptModule, folder: Path) -> None:
    _save(network, folder / MODEL_FILE)
    shutil.copyfile(_SERVED_CODE, folder / CODE_FILE)
    shutil.copyfile(library_path(), folder / LIBRARY_FILE)


def _of_ranking(
    manifest: Manifest, ranks: Ranks, files: dict[str, FileEntry], network: torch.jit.ScriptModule
) -> Manifest:
    """The manifest of the ranking model beside that of the retrieval model."""
    sizes: Counter[str] = Counter()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        sizes[name.split(".")[0]] += tensor.nbytes
    index = manifest.index.model_copy(update={"bytes": dict(sizes)})
    return manifest.model_copy(update={"files": files, "index": index, "ranks": ranks})


def _publish(written: list[tuple[Path, Path]]) -> None:
    """Rename the folders, in order, and configure models that had no version; take all of it back if one fails.

    Where the last one, the retrieval model, had none, its ranking model has none either: if it is configured, then by
    an export that was killed in between.
    """
    homes = [version.parent for _, version in written]
    new = [home for home in homes if not all((path / CONFIGS["python"]).exists() for path in (home, homes[-1]))]
    renamed: list[Path] = []
    try:
        for partial, version in written:
            partial.rename(version)
            renamed.append(version)
            if version.parent in new:
                configure(version.parent, version)
    except BaseException:
        for version in renamed:
            shutil.rmtree(version, ignore_errors=True)
        for home in new:
            shutil.rmtree(home / CONFIGS["pytorch"].parent, ignore_errors=True)
            (home / CONFIGS["python"]).unlink(missing_ok=True)
        raise


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
