"""An index made on the GPU in seconds, where `builder export` would cluster for minutes: of eighty million items too.

Items are drawn cluster by cluster, so that what k-means would have to find is known; all else (codes, scales, means,
spreads, layout) is what builder/index makes, by its functions or checked against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.columns import Column
from builder.data.synthetic import INTRINSIC_DIMS
from builder.index.blocks import BLOCK, Layout, pack_codes, pack_mask
from builder.index.build import Index, pack_centroids
from builder.index.filters import build_filters
from builder.index.projection import no_projection
from builder.index.quantize import quantize

ROWS_PER_CHUNK = 1 << 20  # whole blocks


@dataclass(frozen=True)
class Mixture:
    """What vectors are drawn from: `centres` [C, I], `basis` [I, D], both on the GPU, and a generator of it."""

    centres: Tensor
    basis: Tensor
    generator: torch.Generator

    def around(self, points: Tensor) -> Tensor:
        """Vectors [n, D] of length about 1 near `points` [n, I], as builder/data/synthetic.py draws them."""
        near = points + 0.6 * self._normal(*points.shape)
        spread = near @ self.basis + 0.05 * self._normal(len(points), self.basis.shape[1])
        return torch.nn.functional.normalize(spread, dim=1) * torch.exp(0.1 * self._normal(len(points), 1))

    def queries(self, count: int) -> Tensor:
        """[count, D]: each between two centres."""
        pairs = torch.randint(len(self.centres), (2, count), generator=self.generator, device="cuda")
        weight = torch.rand(count, 1, generator=self.generator, device="cuda") / 2 + 0.5
        return self.around(weight * self.centres[pairs[0]] + (1 - weight) * self.centres[pairs[1]])

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device="cuda")


def mixture(dims: int, clusters: int, seed: int) -> Mixture:
    generator = torch.Generator("cuda").manual_seed(seed)
    inner = min(INTRINSIC_DIMS, dims)
    basis = torch.linalg.qr(torch.randn(dims, inner, generator=generator, device="cuda"))[0].T
    return Mixture(torch.randn(clusters, inner, generator=generator, device="cuda"), basis.contiguous(), generator)


def index_of(mixture: Mixture, items: int, seed: int, columns: Sequence[Column] = ()) -> Index:
    """The index of `items` drawn items with ids 0 to N - 1, in clusters of half to one and a half times the average.

    Its large tensors are on the GPU. `columns`: item features by id.
    """
    clusters, dims = len(mixture.centres), mixture.basis.shape[1]
    sizes = np.random.default_rng(seed).uniform(0.5, 1.5, clusters)
    bounds = np.round(np.concatenate([[0], np.cumsum(sizes / sizes.sum())]) * items).astype(np.int64)
    layout = _layout(bounds)
    rows = len(layout.item_of_row)
    codes = torch.empty(rows // BLOCK, -(-dims // 4), BLOCK, 4, dtype=torch.int8, device="cuda")
    scales = torch.empty(rows // BLOCK, BLOCK, device="cuda")
    halves = torch.empty(rows, dims, dtype=torch.float16, device="cuda")
    sums = torch.zeros(clusters, dims, dtype=torch.float64, device="cuda")
    squares = torch.zeros(clusters, dtype=torch.float64, device="cuda")
    for start in range(0, rows, ROWS_PER_CHUNK):
        item = torch.from_numpy(layout.item_of_row[start : start + ROWS_PER_CHUNK]).cuda()
        label = torch.searchsorted(torch.from_numpy(bounds[1:]).cuda(), item.clamp(min=0), right=True)
        vectors = mixture.around(mixture.centres[label]) * (item >= 0)[:, None]
        chunk_codes, chunk_scales, halves[start : start + len(item)] = quantize(vectors)
        codes[start // BLOCK : (start + len(item)) // BLOCK] = pack_codes(chunk_codes)
        scales[start // BLOCK : (start + len(item)) // BLOCK] = chunk_scales.view(-1, BLOCK)
        wide = vectors.to(torch.float64)
        sums.index_add_(0, label, wide)
        squares.index_add_(0, label, wide.square().sum(1))
    # As builder.index.kmeans.cluster_shapes has it.
    counts = torch.from_numpy(np.diff(bounds)).cuda().clamp(min=1)
    means = sums / counts[:, None]
    spreads = ((squares / counts - means.square().sum(1)).clamp(min=0) / dims).sqrt()
    centroid_codes, centroid_scales, centroid_spreads = pack_centroids(means.float().cpu(), spreads.float().cpu())
    return Index(
        projection=no_projection(dims),
        codes=codes,
        scales=scales,
        row_codes=torch.empty(0, (dims // 4 + 4) // 4 * 4, dtype=torch.int32),
        vectors=halves,
        ids=torch.from_numpy(layout.item_of_row),
        item_rows=torch.from_numpy(layout.row_of_item.astype(np.int32)),
        cluster_blocks=torch.from_numpy(layout.cluster_blocks),
        centroid_codes=centroid_codes,
        centroid_scales=centroid_scales,
        centroid_spreads=centroid_spreads,
        valid=torch.from_numpy(pack_mask(layout.item_of_row >= 0)),
        filters=build_filters(columns, layout),
        forward={},
        layout=layout,
    )


def _layout(bounds: NDArray[np.int64]) -> Layout:
    """That of items sorted by cluster already, those of cluster c from bounds[c] on: no sort of all."""
    sizes = np.diff(bounds)
    cluster_blocks = np.concatenate([[0], np.cumsum(-(-sizes // BLOCK))]).astype(np.int32)
    moved = cluster_blocks[:-1].astype(np.int64) * BLOCK - bounds[:-1]
    row_of_item = np.arange(bounds[-1]) + np.repeat(moved, sizes)
    item_of_row = np.full(int(cluster_blocks[-1]) * BLOCK, -1, dtype=np.int64)
    item_of_row[row_of_item] = np.arange(bounds[-1])
    return Layout(item_of_row, row_of_item, cluster_blocks)
