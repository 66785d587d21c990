"""Reads what an exported version knows of one item, out of its forward columns."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builder import ops
from builder.errors import BuilderError
from builder.export.manifest import MODEL_FILE, Manifest
from client.hashing import string_key
from client.schema import Feature


def item_values(version: Path, manifest: Manifest, item: int) -> dict[str, Any]:
    """The id, cluster and feature values of an item; strings where the manifest has the vocabulary, else keys.

    Raises `BuilderError` if the version does not have the item, or is of a ranking model.
    """
    if manifest.ranks is not None:
        raise BuilderError(
            f"{version} is of a ranking model, which holds no features; ask version {manifest.ranks.version} of "
            f"{manifest.ranks.model}"
        )
    ops.load()
    network = torch.jit.load(str(version / MODEL_FILE), map_location="cpu")
    buffers = dict(network.named_buffers())
    found = (buffers["search.ids"] == item).nonzero()
    if not len(found):
        raise BuilderError(f"{version} has no item {item}; it holds {manifest.index.items:,} items")
    row = int(found[0])
    block = torch.tensor(row // 32)
    cluster = int(torch.searchsorted(buffers["search.cluster_blocks"].long(), block, right=True)) - 1
    values: dict[str, Any] = {"item_id": item, "cluster": cluster}
    numbers = 0
    for feature in manifest.read_schema().item_features:
        names = {string_key(value): value for value in manifest.vocabularies.get(feature.name, [])}
        if feature.kind in ("number", "date"):
            columns = {"values": buffers[f"items.numbers.{numbers}.values"]}
            numbers += 1
        else:
            columns = {
                part: buffers[f"items.{feature.name}__{part}"]
                for part in ("keys", "codes", "offsets")
                if f"items.{feature.name}__{part}" in buffers
            }
        values[feature.name] = _value(feature, columns, row, names)
    return values


def _value(feature: Feature, columns: dict[str, Tensor], row: int, names: dict[int, str]) -> Any:
    if feature.kind in ("number", "date"):
        value = float(columns["values"][row])
        if value != value:
            return None
        if feature.kind == "number":
            return int(value) if value.is_integer() else value
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(seconds=value)
        return moment.isoformat()
    if feature.kind == "category":
        codes = columns["codes"][row : row + 1]
        codes = codes[codes > 0]
    else:
        first, last = columns["offsets"][row : row + 2].tolist()
        codes = columns["codes"][first:last]
    keys = [int(columns["keys"][code - 1]) for code in codes.tolist()]
    found = [names.get(key, key) for key in keys]
    return found if feature.kind == "tags" else (found[0] if found else None)
