"""An index made on the GPU in seconds, where `builder export` would take an hour: of eighty million items too.

Items are drawn cluster by cluster, so that what k-means would have to find is known; all else (codes, scales, means,
spreads, layout, filters) is what builder/index makes of them, as tests/bench/test_gpu_index.py compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.synthetic import INTRINSIC_DIMS
from builder.index.blocks import BLOCK, Layout, pack_codes, pack_mask
from builder.index.build import Index, pack_centroids
from builder.index.filters import NUMBER_BUCKETS, FilterIndex, build_filters
from builder.index.projection import no_projection
from builder.index.quantize import quantize

ROWS_PER_CHUNK = 1 << 20  # whole blocks


@dataclass(frozen=True)
class Mixture:
    """What vectors are drawn from: `centres` [C, I], `basis` [I, D], and a generator, all on one device."""

    centres: Tensor
    basis: Tensor
    generator: torch.Generator

    @property
    def device(self) -> torch.device:
        return self.centres.device

    def around(self, points: Tensor) -> Tensor:
        """Vectors [n, D] of length about 1 near `points` [n, I], as builder/data/synthetic.py draws them."""
        near = points + 0.6 * self._normal(*points.shape)
        spread = near @ self.basis + 0.05 * self._normal(len(points), self.basis.shape[1])
        return torch.nn.functional.normalize(spread, dim=1) * torch.exp(0.1 * self._normal(len(points), 1))

    def queries(self, count: int) -> Tensor:
        """[count, D]: each between two centres."""
        pairs = torch.randint(len(self.centres), (2, count), generator=self.generator, device=self.device)
        weight = torch.rand(count, 1, generator=self.generator, device=self.device) / 2 + 0.5
        return self.around(weight * self.centres[pairs[0]] + (1 - weight) * self.centres[pairs[1]])

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)


def mixture(dims: int, clusters: int, seed: int, device: str = "cuda") -> Mixture:
    generator = torch.Generator(device).manual_seed(seed)
    inner = min(INTRINSIC_DIMS, dims)
    basis = torch.linalg.qr(torch.randn(dims, inner, generator=generator, device=device))[0].T
    return Mixture(torch.randn(clusters, inner, generator=generator, device=device), basis.contiguous(), generator)


def index_of(mixture: Mixture, items: int, seed: int) -> Index:
    """The index of `items` drawn items with ids 0 to N - 1, in clusters of half to one and a half times the average.

    Without item features. Its large tensors are on the device of the mixture.
    """
    clusters, dims, device = len(mixture.centres), mixture.basis.shape[1], mixture.device
    sizes = np.random.default_rng(seed).uniform(0.5, 1.5, clusters)
    bounds = np.round(np.concatenate([[0], np.cumsum(sizes / sizes.sum())]) * items).astype(np.int64)
    layout = _layout(bounds)
    rows = len(layout.item_of_row)
    codes = torch.empty(rows // BLOCK, -(-dims // 4), BLOCK, 4, dtype=torch.int8, device=device)
    scales = torch.empty(rows // BLOCK, BLOCK, device=device)
    halves = torch.empty(rows, dims, dtype=torch.float16, device=device)
    sums = torch.zeros(clusters, dims, dtype=torch.float64, device=device)
    squares = torch.zeros(clusters, dtype=torch.float64, device=device)
    ends = torch.from_numpy(bounds[1:]).to(device)
    for start in range(0, rows, ROWS_PER_CHUNK):
        item = torch.from_numpy(layout.item_of_row[start : start + ROWS_PER_CHUNK]).to(device)
        label = torch.searchsorted(ends, item.clamp(min=0), right=True)
        vectors = mixture.around(mixture.centres[label]) * (item >= 0)[:, None]
        chunk_codes, chunk_scales, halves[start : start + len(item)] = quantize(vectors)
        codes[start // BLOCK : (start + len(item)) // BLOCK] = pack_codes(chunk_codes)
        scales[start // BLOCK : (start + len(item)) // BLOCK] = chunk_scales.view(-1, BLOCK)
        wide = vectors.to(torch.float64)
        sums.index_add_(0, label, wide)
        squares.index_add_(0, label, wide.square().sum(1))
    # As builder.index.kmeans.cluster_shapes has it.
    counts = torch.from_numpy(np.diff(bounds)).to(device).clamp(min=1)
    means = sums / counts[:, None]
    spreads = ((squares / counts - means.square().sum(1)).clamp(min=0) / dims).sqrt()
    centroid_codes, centroid_scales, centroid_spreads = pack_centroids(means.float().cpu(), spreads.float().cpu())
    return Index(
        projection=no_projection(dims),
        codes=codes,
        scales=scales,
        row_codes=torch.empty(0, (-(-dims // 4) + 4) // 4 * 4, dtype=torch.int32),
        vectors=halves,
        ids=torch.from_numpy(layout.item_of_row),
        item_rows=torch.from_numpy(layout.row_of_item.astype(np.int32)),
        cluster_blocks=torch.from_numpy(layout.cluster_blocks),
        centroid_codes=centroid_codes,
        centroid_scales=centroid_scales,
        centroid_spreads=centroid_spreads,
        valid=torch.from_numpy(pack_mask(layout.item_of_row >= 0)),
        filters=build_filters((), layout),
        forward={},
        layout=layout,
    )


def filters_of(categories: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> FilterIndex:
    """The filter index of categories and then numbers, by row, on their device.

    `categories`: [R] integers, 0 to V - 1 and -1 for no item, each value of more than R / 32 rows, so that it has a
    bitmap; `numbers`: [R] float64, NaN for no item. Raises ValueError for a value of fewer rows.
    """
    bitmaps: list[Tensor] = []
    term_keys, term_bitmap, feature_terms = [], [], [0]
    for name, keys in categories.items():
        values = int(keys.max()) + 1
        if int(torch.bincount(keys[keys >= 0]).min()) <= len(keys) // BLOCK:
            raise ValueError(f"{name}: a value of too few rows for a bitmap")
        term_keys += [0, *range(values)]
        term_bitmap += [-1, *range(len(bitmaps), len(bitmaps) + values)]
        bitmaps += [_packed(keys == value) for value in range(values)]
        feature_terms.append(len(term_keys))
    for _ in numbers:
        term_keys.append(0)
        term_bitmap.append(-1)
        feature_terms.append(len(term_keys))
    rows = len(next(iter((categories | numbers).values())))
    sorted_rows = torch.full((len(numbers), rows), -1, dtype=torch.int32)
    known, prefixes = [], []
    for place, values_of_row in enumerate(numbers.values()):
        order = values_of_row.argsort(stable=True)  # NaN sorts last
        known.append(int((~values_of_row.isnan()).sum()))
        sorted_rows[place, : known[-1]] = order[: known[-1]].int().cpu()
        step = -(-known[-1] // NUMBER_BUCKETS)
        bits = torch.zeros(rows, dtype=torch.bool, device=order.device)
        for bucket in range(NUMBER_BUCKETS - 1):
            bits[order[min(bucket * step, known[-1]) : min((bucket + 1) * step, known[-1])]] = True
            prefixes.append(_packed(bits))
    return FilterIndex(
        feature_terms=torch.tensor(feature_terms, dtype=torch.int32),
        term_keys=torch.tensor(term_keys, dtype=torch.int64),
        term_bitmap=torch.tensor(term_bitmap, dtype=torch.int32),
        term_postings=torch.zeros(len(term_keys) + 1, dtype=torch.int64),
        postings=torch.empty(0, dtype=torch.int32),
        bitmaps=torch.stack(bitmaps),
        feature_number=torch.tensor([-1] * len(categories) + list(range(len(numbers))), dtype=torch.int32),
        number_values=torch.stack(list(numbers.values())),
        number_rows=sorted_rows,
        number_known=torch.tensor(known, dtype=torch.int32),
        number_bitmaps=torch.stack(prefixes).view(len(numbers), NUMBER_BUCKETS - 1, -1),
    )


def best_rows(index: Index, query: Tensor, count: int, passing: Tensor | None = None) -> Tensor:
    """The rows [count] of the largest products of `query` [D] with the stored vectors, in float32.

    `passing` [NB] int32: words of rows that may be among them; None: all that hold an item.
    """
    words = index.valid.to(query.device) if passing is None else passing
    scores = torch.empty(len(index.vectors), device=query.device)
    scales = index.scales.view(-1)
    bits = torch.arange(BLOCK, dtype=torch.int32, device=query.device)
    for start in range(0, len(scores), 1 << 23):
        part = slice(start, start + (1 << 23))
        scores[part] = index.vectors[part].float() @ query * scales[part]
        allowed = words[start // BLOCK : (start + (1 << 23)) // BLOCK, None] >> bits & 1
        scores[part].masked_fill_(allowed.view(-1) == 0, -torch.inf)
    return scores.topk(count).indices


def _packed(bits: Tensor) -> Tensor:
    """`pack_mask` on a device: [R] bool to [R / 32] int32."""
    shifts = torch.arange(BLOCK, dtype=torch.int32, device=bits.device)
    return (bits.view(-1, BLOCK).int() << shifts).sum(1, dtype=torch.int32)


def _layout(bounds: NDArray[np.int64]) -> Layout:
    """That of items sorted by cluster already, those of cluster c from bounds[c] on: no sort of all."""
    sizes = np.diff(bounds)
    cluster_blocks = np.concatenate([[0], np.cumsum(-(-sizes // BLOCK))]).astype(np.int32)
    moved = cluster_blocks[:-1].astype(np.int64) * BLOCK - bounds[:-1]
    row_of_item = np.arange(bounds[-1]) + np.repeat(moved, sizes)
    item_of_row = np.full(int(cluster_blocks[-1]) * BLOCK, -1, dtype=np.int64)
    item_of_row[row_of_item] = np.arange(bounds[-1])
    return Layout(item_of_row, row_of_item, cluster_blocks)
