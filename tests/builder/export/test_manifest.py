"""A damaged, foreign or malformed version is refused, and the message names file and field."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.errors import BuilderError
from builder.export.manifest import hash_file, read_manifest, verify
from tests.builder.artifacts import export_vectors


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_vectors(tmp_path_factory.mktemp("exported"), np.eye(4, dtype=np.float32))


@pytest.fixture
def version(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "1"))


def test_a_version_as_written_verifies(version: Path) -> None:
    read: list[int] = []
    manifest = verify(version, read.append)
    assert sum(read) == sum(entry.bytes for entry in manifest.files.values())
    assert manifest.read_schema().fingerprint == manifest.fingerprint
    assert json.loads(manifest.to_json()) == json.loads((version / "manifest.json").read_text())
    assert set(manifest.files) == {"model.pt", "model.py", "libsilvertriton_ops.so"}
    for name, entry in manifest.files.items():
        assert entry.sha256 == hashlib.sha256((version / name).read_bytes()).hexdigest()


def test_a_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(3 * (1 << 20) + 17)
    (tmp_path / "file").write_bytes(content)
    read: list[int] = []
    entry = hash_file(tmp_path / "file", read.append)
    assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert read == [1 << 20, 1 << 20, 1 << 20, 17]


@pytest.mark.parametrize("name", ["model.pt", "model.py", "libsilvertriton_ops.so"])
def test_a_changed_file_is_named(version: Path, name: str) -> None:
    path = version / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BuilderError, match=f"/{name} does not have the SHA-256 in its manifest"):
        verify(version)
    path.write_bytes(content[:-1])
    with pytest.raises(BuilderError, match=f"/{name} has .* bytes, its manifest says .*truncated or changed"):
        verify(version)
    path.unlink()
    with pytest.raises(BuilderError, match=f"/{name} is missing; export the version again"):
        verify(version)
    path.mkdir()
    with pytest.raises(BuilderError, match=f"/{name} is missing"):
        verify(version)


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """`value` at a dotted key; ... removes it."""

    def apply(raw: dict[str, Any]) -> None:
        *path, last = key.split("/")
        for part in path:
            raw = raw[part]
        if value is ...:
            del raw[last]
        else:
            raw[last] = value

    return apply


ENTRY = {"bytes": 1, "sha256": "x"}
MALFORMED = [
    ("format", 2, "has format 2, this builder reads 1; use the release that wrote it"),
    ("format", ..., "has format None"),
    ("index", ..., "field index: Field required; the version is damaged"),
    ("index/items", "many", "field index.items: Input should be a valid integer"),
    ("index/surprise", 1, "field index.surprise: Extra inputs are not permitted"),
    ("recall/measured", None, "field recall.measured: "),
    ("files", [], "field files: Input should be a valid dictionary"),
    ("files/model.pt", ..., "field files: lacks model.pt"),
    ("files/libsilvertriton_ops.so", ..., "field files: lacks libsilvertriton_ops.so"),
    ("files/..\\u002f..\\u002fsecret", ENTRY, "is no file of its folder"),
    ("fingerprint", 7, "field fingerprint: got 7, its schema has "),
    ("schema/version", 99, "the schema has version 99"),
    ("schema/max_results", 0, "max_results is 0; expected an integer of at least 1"),
    ("schema/tasks", ..., "the schema lacks or misnames a field"),
    ("schema/item_features", [1], "the schema lacks or misnames a field"),
    ("schema/history_length", "x", "history_length is 'x'"),
]


@pytest.mark.parametrize(("key", "value", "message"), MALFORMED, ids=[f"{m[0]}={m[1]}" for m in MALFORMED])
def test_a_malformed_manifest_names_the_field(version: Path, key: str, value: Any, message: str) -> None:
    path = version / "manifest.json"
    raw = json.loads(path.read_text())
    change(key.replace("\\u002f", "\0"), value)(raw)
    path.write_text(json.dumps(raw).replace("\\u0000", "/"))
    with pytest.raises(BuilderError) as caught:
        read_manifest(version)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[1]", "has format None"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"some": "other tool"}', "has format None"),
    ],
)
def test_a_foreign_manifest_is_refused(version: Path, content: bytes, message: str) -> None:
    (version / "manifest.json").write_bytes(content)
    with pytest.raises(BuilderError, match=r"manifest\.json") as caught:
        verify(version)
    assert message in str(caught.value)


def test_no_manifest_or_no_file_at_its_place(version: Path) -> None:
    (version / "manifest.json").unlink()
    with pytest.raises(BuilderError, match=r"holds no manifest.json; it is no exported version"):
        verify(version)
    (version / "manifest.json").mkdir()
    with pytest.raises(BuilderError, match=r"manifest.json cannot be read: Is a directory"):
        verify(version)
