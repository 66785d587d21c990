"""Fewer dims for the first pass: the leading principal directions of the items.

Learned embeddings spread over far fewer dims than they have. Scores from the leading directions alone order candidates
nearly as all dims do, cost a fraction of the memory traffic, and whatever they get wrong is put right where candidates
are rescored from their whole vectors. Directions are those of the uncentred second moments, because scores are inner
products (Pearson 1901; for inner-product search in recommenders, Bachrach et al., RecSys 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.vectors import VectorSource
from builder.index.quantize import quantize

SAMPLE = 200_000  # items that choose the projection
QUERIES = 256
STEP = 4  # dims come in groups of four, the width of one dot-product instruction
ENOUGH = 0.999  # share of the exact results that must be among the candidates
SLACK = 1.5  # candidates for each result


@dataclass(frozen=True)
class Projected:
    """Rows of `base [N, D]` times `projection [D, P]`, made when they are indexed: `[n, P] float32`."""

    base: VectorSource
    projection: Tensor

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, at: Any, /) -> NDArray[np.float32]:
        rows = torch.from_numpy(np.array(self.base[at], dtype=np.float32))
        return np.asarray((rows @ self.projection).numpy())


def no_projection(dims: int) -> Tensor:
    """`[0, dims] float32`: vectors are coded as they are."""
    return torch.empty(0, dims)


def choose_projection(vectors: VectorSource, queries: Tensor, *, results: int, seed: int) -> Tensor:
    """The fewest leading directions that keep nearly all exact results among few more candidates than results.

    `vectors [N, D]`, `queries [Q, D] float32`. Measured on a sample of the items, with `results` scaled to its size.
    Returns `[D, P] float32` with orthonormal columns, P a multiple of 4, or `no_projection(D)` when no P up to three
    quarters of D is enough: the codes then are as good as those of all dims, and the projection is saved.
    """
    dims = queries.shape[1]
    sample = _sample(vectors, seed)
    directions = principal_directions(sample)
    fewest, most = 1, dims * 3 // 4 // STEP
    test = _Test(sample, queries[:QUERIES], directions, max(10, round(results * len(sample) / len(vectors))))
    if most < 1 or not test.passes(most * STEP):
        return no_projection(dims)
    while fewest < most:
        middle = (fewest + most) // 2
        if test.passes(middle * STEP):
            most = middle
        else:
            fewest = middle + 1
    return directions[:, : most * STEP].contiguous()


def leading_directions(vectors: VectorSource, count: int, *, seed: int) -> Tensor:
    """`[D, count] float32`; `count` = D gives `no_projection(D)`."""
    sample = _sample(vectors, seed)
    if count == sample.shape[1]:
        return no_projection(count)
    return principal_directions(sample)[:, :count].contiguous()


def principal_directions(rows: Tensor) -> Tensor:
    """Eigenvectors of the second moments of `rows [n, D] float32` as columns `[D, D] float32`, the largest first.

    The largest component of a direction is positive.
    """
    moments = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in _scaled(rows).split(16_384):
        moments += (part.T @ part).to(torch.float64)
    _, vectors = torch.linalg.eigh(moments)
    vectors = vectors.flip(1)
    strongest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    signed: Tensor = vectors * torch.where(strongest < 0, -1.0, 1.0)
    return signed.to(torch.float32)


def _scaled(rows: Tensor) -> Tensor:
    """`rows` with magnitudes up to 1: products of large or small ones leave the range of float32."""
    scaled: Tensor = rows / rows.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return scaled


def _sample(vectors: VectorSource, seed: int) -> Tensor:
    count = len(vectors)
    if count <= SAMPLE:
        return torch.from_numpy(np.array(vectors[:], dtype=np.float32))
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:SAMPLE].sort().values
    return torch.from_numpy(np.array(vectors[chosen.numpy()], dtype=np.float32))


class _Test:
    """Whether the candidates of int8 scores from the leading dims hold the exact top k of a sample."""

    def __init__(self, sample: Tensor, queries: Tensor, directions: Tensor, k: int) -> None:
        self._k = min(k, len(sample))
        self._candidates = min(len(sample), round(SLACK * self._k))
        scaled = _scaled(sample)
        self._rows = scaled @ directions
        self._largest = scaled.abs().amax(1)
        self._queries = _scaled(queries) @ directions
        self._exact = [(part @ self._rows.T).topk(self._k, dim=1).indices for part in self._queries.split(32)]

    def passes(self, dims: int) -> bool:
        codes, scales, _ = quantize(self._rows[:, :dims], self._largest)
        coded = codes.to(torch.float32) * scales[:, None]
        kept, total = 0, 0
        for queries, exact in zip(self._queries[:, :dims].split(32), self._exact, strict=True):
            scores = queries @ coded.T
            floor = scores.topk(self._candidates, dim=1).values[:, -1:]
            kept += int((scores.gather(1, exact) >= floor).sum())
            total += exact.numel()
        return kept >= ENOUGH * total
