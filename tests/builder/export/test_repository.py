"""Version directories appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from builder.errors import BuilderError
from builder.export import repository as module
from builder.export.artifact import Source, export
from builder.export.manifest import verify
from builder.export.repository import find_version, versions
from builder.export.served import configured
from builder.export.sources import read_source
from tests.builder.artifacts import listing, version_listing


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(70, 4)).astype(np.float32))
    return read_source(folder / "vectors.npy")


def test_versions_count_up_and_the_newest_is_found(source: Source, tmp_path: Path) -> None:
    assert [export(source, tmp_path).name for _ in range(2)] == ["1", "2"]
    assert listing(tmp_path) == version_listing(1, 2)
    assert find_version(tmp_path, "retrieval") == tmp_path / "retrieval" / "2"
    assert find_version(tmp_path, "retrieval", 1) == tmp_path / "retrieval" / "1"
    for version in versions(tmp_path, "retrieval"):
        assert verify(version).index.items == 70
    assert (tmp_path / "retrieval" / "2").stat().st_mode & 0o755 == 0o755  # the server may be another user


def test_versions_are_numbers_in_order_of_value(tmp_path: Path) -> None:
    for name in ("10", "9", "configs", ".partial-x", "0", "01", "1a"):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "m" / "11").write_text("a file")
    assert [path.name for path in versions(tmp_path, "m")] == ["9", "10"]
    with pytest.raises(BuilderError, match=r"does not hold version 3 \(versions: 9, 10\).*builder export"):
        find_version(tmp_path, "m", 3)
    with pytest.raises(BuilderError, match=r"any version \(versions: none\)"):
        find_version(tmp_path, "n")


@pytest.mark.parametrize("name", ["", "a b", "../up", "a/b", ".hidden", "ünï"])
def test_bad_model_names_are_refused_before_any_work(source: Source, tmp_path: Path, name: str) -> None:
    stages: list[str] = []

    def step(description: str) -> Any:
        stages.append(description)
        return lambda done: None

    with pytest.raises(BuilderError, match="letters, digits, '_' and '-' only"):
        export(source, tmp_path / "repository", model=name, step=step)
    assert stages == []
    assert listing(tmp_path) == []


def test_a_full_disk_is_seen_before_writing(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(BuilderError, match=r"has 1 MB free, the artifact needs 67 MB; free some space"):
        export(source, tmp_path)
    assert listing(tmp_path) == []


def fail_at(name: str) -> Any:
    """Makes the step called `name` of write_version fail as a full disk would, after half its work."""

    def save(scripted: torch.jit.ScriptModule, path: Path) -> None:
        path.write_bytes(b"half a model")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def copyfile(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    def anything(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    return {"_save": save, "copyfile": copyfile}.get(name, anything)


@pytest.mark.parametrize("step", ["_save", "copyfile", "hash_file", "_sync", "model_config"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_failing_write_leaves_what_was_there(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: int
) -> None:
    if before:
        export(source, tmp_path)
    there = listing(tmp_path)
    config = [path.read_bytes() for path in tmp_path.rglob("*.pbtxt")]
    monkeypatch.setattr(shutil if step == "copyfile" else module, step, fail_at(step))
    with pytest.raises(BuilderError, match=f"cannot write a version of retrieval into {tmp_path}: "):
        export(source, tmp_path)
    assert listing(tmp_path) == there == (version_listing(1) if before else [])
    assert [path.read_bytes() for path in tmp_path.rglob("*.pbtxt")] == config


def test_space_that_cannot_be_claimed_is_told(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a quota, which the free space of the file system does not show."""

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BuilderError, match=r"cannot write a version of retrieval .*No space left on device"):
        export(source, tmp_path)
    assert listing(tmp_path) == []


def test_an_interrupted_write_leaves_nothing(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(directory: Path) -> None:
        assert listing(tmp_path) != []
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path)
    assert listing(tmp_path) == []


def test_a_killed_export_is_cleared_away_by_the_next(source: Source, tmp_path: Path) -> None:
    left = tmp_path / "retrieval" / ".partial-abc"
    left.mkdir(parents=True)
    (left / "model.pt").write_bytes(b"half")
    export(source, tmp_path)
    assert listing(tmp_path) == version_listing(1)


def test_places_that_cannot_be_written_are_named(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuilderError, match=r"into .*/file: .*/file is no directory; choose another --repository"):
        export(source, tmp_path / "file")
    with pytest.raises(BuilderError, match=r"cannot write a version of retrieval into /proc/nowhere"):
        export(source, Path("/proc/nowhere"))
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked)  # root may write everywhere
    with pytest.raises(BuilderError, match=r"/locked is not writable"):
        export(source, locked)
    assert listing(tmp_path) == ["file", "locked"]


def test_exports_at_once_write_one_version_each(source: Source, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        written = [job.result() for job in [pool.submit(export, source, tmp_path) for _ in range(3)]]
    assert sorted(path.name for path in written) == ["1", "2", "3"]
    assert listing(tmp_path) == version_listing(1, 2, 3)
    for version in written:
        verify(version)


def test_one_of_two_exports_at_once_fails_and_the_other_does_not(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failing one removes the model's directory, on whose lock the other waits."""
    sync, calls = module._sync, iter([True])

    def fail_first(directory: Path) -> None:
        if next(calls, False):
            raise OSError("broken")
        sync(directory)

    monkeypatch.setattr(module, "_sync", fail_first)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(export, source, tmp_path) for _ in range(2)]
        failures = [job.exception() for job in jobs]
    assert sorted(type(failure) for failure in failures if failure) == [BuilderError]
    assert listing(tmp_path) == version_listing(1)
    verify(tmp_path / "retrieval" / "1")


def test_a_manifest_says_what_is_there(source: Source, tmp_path: Path) -> None:
    version = export(source, tmp_path)
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["index"]["items"] == 70
    assert manifest["schema"]["query_dims"] == 4
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (version / name).stat().st_size


@pytest.mark.parametrize("renamed", [False, True])
def test_an_export_killed_between_both_models_leaves_no_ranking_model_of_another_version(
    renamed: bool, source: Source, tmp_path: Path
) -> None:
    """The first version: its ranking model is there and configured, the retrieval model is not."""
    home = export(source, tmp_path).parent
    shutil.rmtree(home / "configs")
    (home / "config.pbtxt").unlink()
    if not renamed:
        shutil.rmtree(home)
    assert export(source, tmp_path).name == "2"
    for name in ("retrieval", "retrieval_rank"):
        served = configured(tmp_path / name)
        assert served is not None
        assert served.version == 2
