"""Exact search by matrix products in chunks: what the index is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.lists import Lists
from builder.data.vectors import VectorSource

_QUERIES = 1024
_ITEMS = 16_384


def exact_search(
    queries: NDArray[Any] | Tensor,
    vectors: VectorSource,
    k: int,
    *,
    exclude: Lists | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[float], None] = lambda done: None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k items of the largest inner product.

    `queries [Q, D]` floats; `vectors` [N, D] floats; `exclude`: Q lists of positions that must not be returned. Returns
    positions `[Q, k]` by descending score, -1 past the last item, and scores `[Q, k]`, -inf there. Equal scores come in
    any order. Memory: scores of 1,024 queries by 16,384 items at a time. `on_step` receives the fraction done.
    """
    asked = torch.as_tensor(queries, dtype=torch.float32)
    positions = np.full((len(asked), k), -1, np.int64)
    scores = np.full((len(asked), k), -np.inf, np.float32)
    for start in range(0, len(asked), _QUERIES):
        stop = min(start + _QUERIES, len(asked))
        excluded = None if exclude is None else exclude.take(np.arange(start, stop))
        best, at = _search_chunk(
            asked[start:stop].to(device), vectors, k, excluded, _part(on_step, start, stop, len(asked))
        )
        positions[start:stop, : best.shape[1]] = torch.where(torch.isinf(best), -1, at).cpu().numpy()
        scores[start:stop, : best.shape[1]] = best.cpu().numpy()
    return positions, scores


def _part(on_step: Callable[[float], None], start: int, stop: int, total: int) -> Callable[[float], None]:
    """Reports the fraction done of a part as that of the whole."""
    return lambda done: on_step((start + (stop - start) * done) / total)


def _search_chunk(
    queries: Tensor, vectors: VectorSource, k: int, exclude: Lists | None, on_step: Callable[[float], None]
) -> tuple[Tensor, Tensor]:
    """Best scores `[Q, min(k, N)]`, -inf for none, and their positions."""
    best = queries.new_empty((len(queries), 0))
    at = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    owners = None if exclude is None else torch.from_numpy(exclude.owners)
    values = None if exclude is None else torch.from_numpy(exclude.values.astype(np.int64))
    for start in range(0, len(vectors), _ITEMS):
        # A copy, because a memory map of a run cannot be written and torch wants what it could write.
        chunk = torch.from_numpy(np.array(vectors[start : start + _ITEMS], dtype=np.float32)).to(queries.device)
        scores = queries @ chunk.T
        if owners is not None and values is not None:
            here = (values >= start) & (values < start + len(chunk))
            scores[owners[here].to(scores.device), values[here].to(scores.device) - start] = -torch.inf
        top = scores.topk(min(k, len(chunk)), dim=1)
        best, at = torch.cat([best, top.values], dim=1), torch.cat([at, top.indices + start], dim=1)
        kept = best.topk(min(k, best.shape[1]), dim=1)
        best, at = kept.values, at.gather(1, kept.indices)
        on_step((start + len(chunk)) / len(vectors))
    return best, at
