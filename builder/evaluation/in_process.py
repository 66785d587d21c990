"""The same questions as exact search, asked of an exported version in this process: of its index, and of all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder import ops
from builder.data.catalogue import Catalogue
from builder.export.manifest import MODEL_FILE, Manifest, verify
from builder.training.run import Requests

REQUESTS_AT_ONCE = 64


@dataclass(frozen=True)
class Answers:
    """Positions in the catalogue, -1 for none. `index [Q, n]`: the towers' order through the version's index, of as
    many as it hands on; `results [Q, K]`: what it answers. `orders`: what orders results anew behind the search, in
    words; empty: nothing does, and both are the same."""

    index: NDArray[np.int64]
    results: NDArray[np.int64]
    orders: tuple[str, ...]


@torch.inference_mode()
def artifact_search(
    version: Path, asking: Requests, catalogue: Catalogue, *, on_requests: Callable[[int], None] = lambda count: None
) -> Answers:
    """Retrieve for held-out users with the defaults of `version`, which was exported from their run.

    The items each user has seen are excluded. `on_requests` receives how many were answered since its last call. Raises
    `BuilderError` for a version that is damaged.
    """
    manifest = verify(version)
    schema = manifest.read_schema()
    ops.load()
    network = torch.jit.load(str(version / MODEL_FILE), map_location="cpu")
    index, results = [], []
    for start in range(0, len(asking), REQUESTS_AT_ONCE):
        rows = slice(start, start + REQUESTS_AT_ONCE)
        history = torch.from_numpy(asking.history[rows])
        features = [torch.from_numpy(asking.features[feature.name][rows]) for feature in schema.user_features]
        query = network.tower(features, history)
        status = network.check_user(features, history)
        count = len(query)
        everything = torch.zeros(count, 2, dtype=torch.int64)  # no filter
        seen = asking.exclude.take(np.arange(start, start + count))
        excluded = torch.from_numpy(seen.padded(max(1, int(seen.lengths.max(initial=0)))))
        weights = torch.full((count, len(schema.tasks)), torch.nan)  # the version's own, as all defaults
        limits = torch.zeros(count, 2, dtype=torch.int32)
        sought = network.groups.default(query) if hasattr(network, "groups") else query
        _, ids, _, _, _ = network.search(sought, everything, excluded, limits, status)
        index.append(_positions(ids, catalogue))
        item_ids, *_ = network.retrieve(query, history, status, everything, excluded, weights, limits)
        results.append(_positions(item_ids, catalogue))
        on_requests(count)
    return Answers(_stacked(index), _stacked(results), _orders(manifest))


def _positions(ids: Tensor, catalogue: Catalogue) -> NDArray[np.int64]:
    return np.asarray(catalogue.find(ids.numpy()), dtype=np.int64)


def _stacked(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Parts `[b, n]` of as many columns as the widest has, -1 where there were fewer."""
    if not parts:
        return np.empty((0, 0), np.int64)
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(p, [(0, 0), (0, width - p.shape[1])], constant_values=-1) for p in parts])


def _orders(manifest: Manifest) -> tuple[str, ...]:
    known = {
        "reranker": manifest.index.bytes.get("reranker", 0) > 0,
        "value formula": manifest.value is not None,
        "diversity": manifest.diversity is not None,
    }
    return tuple(name for name, there in known.items() if there)
