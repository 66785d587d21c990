"""The block layout: rows sorted by cluster, each cluster padded to whole blocks of 32 (docs/operators.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.vectors import VectorSource
from builder.index.quantize import quantize

BLOCK = 32
ROWS_PER_CHUNK = 8_192  # whole blocks; quantising in float64 takes 8 bytes a component, several times over


@dataclass(frozen=True)
class Layout:
    """Where every item stands.

    `item_of_row` [R] int64: position in the catalogue, -1 for padding. `row_of_item` [N] int64: its inverse.
    `cluster_blocks` [C + 1] int32.
    """

    item_of_row: NDArray[np.int64]
    row_of_item: NDArray[np.int64]
    cluster_blocks: NDArray[np.int32]

    @property
    def blocks(self) -> int:
        return len(self.item_of_row) // BLOCK


def arrange(labels: NDArray[np.int32], ids: NDArray[np.int64], clusters: int) -> Layout:
    """Sort items by (cluster, id) and pad each cluster to whole blocks. `labels` [N], `ids` [N]."""
    order = np.lexsort((ids, labels))
    sizes = np.bincount(labels, minlength=clusters)
    blocks = -(-sizes // BLOCK)
    cluster_blocks = np.zeros(clusters + 1, dtype=np.int32)
    np.cumsum(blocks, out=cluster_blocks[1:])
    first_of_cluster = np.cumsum(sizes) - sizes  # in `order`
    sorted_labels = labels[order]
    rows = (
        cluster_blocks[sorted_labels].astype(np.int64) * BLOCK + np.arange(len(order)) - first_of_cluster[sorted_labels]
    )
    item_of_row = np.full(int(cluster_blocks[-1]) * BLOCK, -1, dtype=np.int64)
    item_of_row[rows] = order
    row_of_item = np.empty(len(order), dtype=np.int64)
    row_of_item[order] = rows
    return Layout(item_of_row, row_of_item, cluster_blocks)


def pack_mask(bits: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Pack `[..., R] bool` into mask words `[..., R / 32] int32`; row 32b + r is bit r of word b."""
    return np.packbits(bits, axis=-1, bitorder="little").view("<i4")


def pack_codes(codes: Tensor) -> Tensor:
    """Reorder `[n, D] int8`, n a multiple of 32, into blocks `[n / 32, ceil(D / 4), 32, 4] int8`, zeros past D."""
    rows, dims = codes.shape
    groups = -(-dims // 4)
    padded = torch.nn.functional.pad(codes, (0, groups * 4 - dims))
    return padded.view(rows // BLOCK, BLOCK, groups, 4).permute(0, 2, 1, 3).contiguous()


def pack_rows(codes: Tensor, scales: Tensor, dims: int) -> Tensor:
    """The same codes row by row, `[R, W] int32`: the groups of four of a row, the bits of its scale, zeros.

    For filters that few rows of a block pass. `codes [NB, P4, 32, 4] int8`, `scales [NB, 32] float32`; W is P4 + 1 in
    whole fours. None, `[0, W]`, where both copies would take more than a byte for each of the `dims` of the vectors.
    """
    blocks, groups = codes.shape[:2]
    width = (groups + 4) // 4 * 4
    if 4 * (groups + width) > dims:
        return torch.empty(0, width, dtype=torch.int32)
    rows = torch.zeros(blocks, BLOCK, width, dtype=torch.int32)
    rows[:, :, :groups] = codes.view(torch.int32).squeeze(3).transpose(1, 2)
    rows[:, :, groups] = scales.view(torch.int32)
    return rows.view(blocks * BLOCK, width)


def pack_vectors(
    vectors: VectorSource,
    item_of_row: NDArray[np.int64],
    projection: Tensor,
    on_step: Callable[[float], None] = lambda done: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Project and quantise `vectors [N, D]` into the order of rows, a chunk at a time.

    `projection [D, P]`, or `[0, D]` for none. Returns `codes [NB, P4, 32, 4] int8`, `scales [NB, 32] float32`,
    `vectors [R, D] float16`.
    """
    rows, dims = len(item_of_row), vectors[:1].shape[1]
    codes = torch.empty(rows // BLOCK, -(-projection.shape[1] // 4), BLOCK, 4, dtype=torch.int8)
    scales = torch.empty(rows // BLOCK, BLOCK)
    halves = torch.empty(rows, dims, dtype=torch.float16)
    for start in range(0, rows, ROWS_PER_CHUNK):
        items = item_of_row[start : start + ROWS_PER_CHUNK]
        chunk = torch.from_numpy(np.array(vectors[np.maximum(items, 0)], dtype=np.float32))
        chunk[torch.from_numpy(items < 0)] = 0
        coded = chunk @ projection if len(projection) else chunk
        chunk_codes, chunk_scales, chunk_halves = quantize(coded, chunk)
        first, last = start // BLOCK, (start + len(items)) // BLOCK
        codes[first:last] = pack_codes(chunk_codes)
        scales[first:last] = chunk_scales.view(-1, BLOCK)
        halves[start : start + len(items)] = chunk_halves
        on_step((start + len(items)) / rows)
    return codes, scales, halves
