"""manifest.json: what a version directory contains, and the hashes that prove it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from builder.config import Diversity
from builder.errors import BuilderError
from client.contract import Contract, Rules
from client.errors import SchemaError
from client.filters.compiler import MAX_WORDS
from client.schema import Schema

FORMAT = 1
OPERATORS = 7  # raised whenever the schema of an operator changes
MANIFEST = "manifest.json"
MODEL_FILE, CODE_FILE, LIBRARY_FILE = "model.pt", "model.py", "libsilvertriton_ops.so"
_HASH_CHUNK = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Section):
    bytes: int
    sha256: str


class Recall(_Section):
    """Share of the exact top `at` that the default setting finds, over `queries` queries from `source`."""

    at: int
    target: float
    measured: float
    queries: int
    source: str


class IndexStatistics(_Section):
    """`code_dims`: dims of the codes that find candidates. `cluster_items`: fewest, median and most items of a cluster.
    `probes` 0: as many as may hold a candidate, `mean_probes` on average. `exact_rows`, `reach`: see docs/operators.md.
    `max_filter_words`: of a filter's program. `bytes`: by group of tensors. `mean_results`: what the rules of diversity
    leave of the results of a query, on average; None where there are no rules.
    """

    items: int
    dims: int
    code_dims: int
    clusters: int
    cluster_items: tuple[int, int, int]
    probes: int
    candidates: int
    exact_rows: int
    reach: tuple[float, ...]
    mean_probes: float
    max_filter_words: int = MAX_WORDS
    bytes: dict[str, int]
    mean_results: float | None = None


class Point(_Section):
    """What a setting measures. `reach`: where all items pass; `probes`: clusters that a query scans, on average;
    `milliseconds`: of the search for one query on one thread, the least of three medians, on the curve's machine."""

    reach: float
    candidates: int
    probes: float
    recall: float
    milliseconds: float


class Curve(_Section):
    """What other defaults of this index would find and cost, for the queries of `Recall`; `machine`: the processor."""

    machine: str
    points: tuple[Point, ...]


class Ranks(_Section):
    """The version whose items a ranking model scores: its model, its number, and the SHA-256 of its model.pt."""

    model: str
    version: int
    sha256: str


class Manifest(_Section):
    """`vocabularies`: the string values of each string-valued item feature. `value`: the formula that orders results,
    None for the weighted sum of the tasks. `diversity`: rules of the last selection, if any. `task_groups`: tasks that
    share a vector of the user, None where all do. `curve`: where `builder tune` chose the defaults. `training`: figures
    of the run, if any. `ranks`: only in that of a ranking model, which is otherwise that of its retrieval model but for
    `files` and the bytes of `index`.
    """

    format: int
    name: str
    created: str
    silvertriton: str
    torch: str
    operators: int
    artifact_schema: dict[str, Any] = Field(alias="schema")
    fingerprint: int
    vocabularies: dict[str, list[str]]
    value: str | None
    diversity: Diversity | None = None
    task_groups: tuple[tuple[str, ...], ...] | None = None
    index: IndexStatistics
    recall: Recall
    curve: Curve | None = None
    training: dict[str, float]
    files: dict[str, FileEntry]
    ranks: Ranks | None = None

    @property
    def snapshot(self) -> str:
        """What is the same for the retrieval model and the ranking model of a snapshot, and for no others."""
        return self.files[MODEL_FILE].sha256 if self.ranks is None else self.ranks.sha256

    @property
    def contract(self) -> Contract:
        """What clients are told beside the schema. The operators are those of this release."""
        rules = None
        if self.diversity is not None:
            mmr = self.diversity.mmr
            rules = Rules(tuple(self.diversity.at_most.items()), 1.0 if mmr is None else mmr)
        return Contract(max_filter_words=self.index.max_filter_words, items=self.index.items, rules=rules)

    def read_schema(self) -> Schema:
        return Schema.from_json(json.dumps(self.artifact_schema))

    def to_json(self) -> str:
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda read: None) -> FileEntry:
    """Size and SHA-256 of a file; `on_bytes` receives how many bytes were read since its last call."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(len(chunk))
    return FileEntry(bytes=done, sha256=digest.hexdigest())


def read_manifest(version: Path) -> Manifest:
    """Read the manifest of a version directory. Raises `BuilderError`: absent, malformed or of another format."""
    path = version / MANIFEST
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise BuilderError(
            f"{version} holds no {MANIFEST}; it is no exported version. List them with: builder inspect"
        ) from error
    except OSError as error:
        raise BuilderError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BuilderError(f"{path} is not JSON ({error}); the version is damaged, export it again") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else None
        raise BuilderError(f"{path} has format {found!r}, this builder reads {FORMAT}; use the release that wrote it")
    try:
        manifest = Manifest.model_validate(raw)
        fingerprint = manifest.read_schema().fingerprint
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BuilderError(f"{path}: field {where}: {first['msg']}; the version is damaged, export it again") from error
    except SchemaError as error:
        raise BuilderError(f"{path}: {error}") from error
    if fingerprint != manifest.fingerprint:
        raise BuilderError(
            f"{path}: field fingerprint: got {manifest.fingerprint}, its schema has {fingerprint}; "
            "the version is damaged, export it again"
        )
    for name in (MODEL_FILE, CODE_FILE, LIBRARY_FILE):
        if name not in manifest.files:
            raise BuilderError(f"{path}: field files: lacks {name}; the version is damaged, export it again")
    for name in manifest.files:
        if Path(name).name != name:
            raise BuilderError(f"{path}: field files: {name!r} is no file of its folder; the version is damaged")
    return manifest


def verify(version: Path, on_bytes: Callable[[int], None] = lambda read: None) -> Manifest:
    """Check every file of a version against its manifest and return it.

    Raises `BuilderError` naming the first file that is missing, shorter or longer than written, or changed.
    """
    manifest = read_manifest(version)
    for name, entry in manifest.files.items():
        path = version / name
        if not path.is_file():
            raise BuilderError(f"{path} is missing; export the version again")
        size = path.stat().st_size
        if size != entry.bytes:
            raise BuilderError(
                f"{path} has {size:,} bytes, its manifest says {entry.bytes:,}: it is truncated or changed; "
                "export it again"
            )
        if hash_file(path, on_bytes).sha256 != entry.sha256:
            raise BuilderError(
                f"{path} does not have the SHA-256 in its manifest: it was changed or damaged; export it again"
            )
    return manifest
