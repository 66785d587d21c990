"""What a version's index says of itself: how large clusters are, and how many items each filter value passes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder import ops
from builder.export.manifest import MODEL_FILE, Manifest, verify
from builder.export.repository import version_of_run
from builder.index.blocks import BLOCK
from client.hashing import string_key
from client.schema import Feature


@dataclass(frozen=True)
class Terms:
    """A category or tags feature. `values` [V] strings or integers, most frequent first, `items` [V] how many have it;
    `unknown`: items without a value."""

    name: str
    kind: str
    values: tuple[str, ...]
    items: NDArray[np.int64]
    unknown: int


@dataclass(frozen=True)
class Numbers:
    """A number or date. `values` [known] float64 ascending, dates in seconds since 1970; `unknown`: items without."""

    name: str
    kind: Literal["number", "date"]
    values: NDArray[np.float64]
    unknown: int


@dataclass(frozen=True)
class Artifact:
    """`cluster_items` [C] items of each cluster; `rows`: with the padding; `filters`: in the order of the schema."""

    version: Path
    manifest: Manifest
    cluster_items: NDArray[np.int64]
    rows: int
    filters: tuple[Terms | Numbers, ...]


def find_artifact(repository: Path, model: str, name: str, figures: dict[str, float]) -> Artifact | None:
    """The newest version of a model that was exported from the run with this name and these figures.

    None if there is none. Raises BuilderError for a version that is damaged.
    """
    version = version_of_run(repository, model, name, figures)
    return None if version is None else read_artifact(version)


def read_artifact(version: Path) -> Artifact:
    """Check the files of a version and read its index. Raises what `verify` raises."""
    manifest = verify(version)
    ops.load()
    network = torch.jit.load(str(version / MODEL_FILE), map_location="cpu")
    tensors = {name.removeprefix("search."): tensor for name, tensor in network.named_buffers()}
    features = [feature for feature in manifest.read_schema().item_features if feature.filter]
    return Artifact(
        version,
        manifest,
        _cluster_items(tensors["cluster_blocks"], tensors["ids"]),
        len(tensors["ids"]),
        tuple(_filter(tensors, position, feature, manifest) for position, feature in enumerate(features)),
    )


def _cluster_items(cluster_blocks: Tensor, ids: Tensor) -> NDArray[np.int64]:
    """`cluster_blocks` [C + 1] int32, `ids` [R] int64 with -1 for padding -> [C]."""
    taken = np.concatenate([[0], np.cumsum((ids >= 0).numpy())])
    return np.diff(taken[cluster_blocks.numpy().astype(np.int64) * BLOCK])


def _filter(tensors: dict[str, Tensor], position: int, feature: Feature, manifest: Manifest) -> Terms | Numbers:
    items = manifest.index.items
    number = int(tensors["filters.feature_number"][position])
    if number >= 0:
        known = int(tensors["filters.number_known"][number])
        values = tensors["filters.number_values"][number].numpy()
        kind: Literal["number", "date"] = "date" if feature.kind == "date" else "number"
        return Numbers(feature.name, kind, np.sort(values[~np.isnan(values)]), items - known)
    first, last = tensors["filters.feature_terms"][position : position + 2].tolist()
    sizes = _term_items(tensors, first, last)
    keys = tensors["filters.term_keys"][first + 1 : last].numpy()  # the first term is "no value"
    order = np.argsort(-sizes[1:], kind="stable")
    names = {string_key(value): value for value in manifest.vocabularies.get(feature.name, [])}
    unnamed = "hash " if feature.values == "string" else ""
    named = tuple(names.get(key, f"{unnamed}{key}") for key in keys[order].tolist())
    return Terms(feature.name, feature.kind, named, sizes[1:][order], int(sizes[0]))


def _term_items(tensors: dict[str, Tensor], first: int, last: int) -> NDArray[np.int64]:
    """[last - first] int64: items of each term, whether it is a bitmap or a list."""
    postings = tensors["filters.term_postings"][first : last + 1].numpy()
    sizes: NDArray[np.int64] = np.diff(postings).astype(np.int64)
    bitmaps = tensors["filters.term_bitmap"][first:last].numpy()
    for term in np.flatnonzero(bitmaps >= 0).tolist():
        words = tensors["filters.bitmaps"][int(bitmaps[term])].numpy()
        sizes[term] = int(np.unpackbits(words.view(np.uint8)).sum())
    return sizes
