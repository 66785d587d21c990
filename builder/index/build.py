"""From vectors, ids and feature columns to the whole index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.columns import Column
from builder.data.vectors import VectorSource
from builder.index.blocks import BLOCK, Layout, arrange, pack_codes, pack_mask, pack_rows, pack_vectors
from builder.index.filters import FilterIndex, build_filters
from builder.index.forward import forward_columns
from builder.index.kmeans import assign, cluster_shapes, spherical_kmeans
from builder.index.projection import Projected, no_projection
from builder.index.quantize import quantize

Step = Callable[[str], Callable[[float], None]]
"""Called with a description when a stage starts; returns the function that receives the fraction done."""


@dataclass(frozen=True)
class Index:
    """All tensors of the index; shapes and meaning stand in docs/operators.md.

    `item_rows` [N] int32: rows in ascending order of their ids, so that an id is found by binary search.
    """

    projection: Tensor
    codes: Tensor
    scales: Tensor
    row_codes: Tensor
    vectors: Tensor
    ids: Tensor
    item_rows: Tensor
    cluster_blocks: Tensor
    centroid_codes: Tensor
    centroid_scales: Tensor
    centroid_spreads: Tensor
    valid: Tensor
    filters: FilterIndex
    forward: dict[str, Tensor]
    layout: Layout

    @property
    def clusters(self) -> int:
        return len(self.cluster_blocks) - 1


def build_index(
    vectors: VectorSource,
    ids: NDArray[np.int64],
    columns: Sequence[Column],
    *,
    clusters: int,
    seed: int,
    projection: Tensor | None = None,
    step: Step = lambda description: lambda done: None,
) -> Index:
    """Cluster, quantise and lay out a catalogue.

    `vectors`: [N, D] finite floats (an array or a memory map, read in chunks); `ids`: [N] distinct, >= 0; `columns`:
    item features in the order of the schema, all N long; `projection`: [D, P] (builder.index.projection), None: codes
    are of all dims. Raises ValueError unless 1 <= `clusters` <= N.
    """
    projection = no_projection(vectors[:1].shape[1]) if projection is None else projection
    coded = Projected(vectors, projection) if len(projection) else vectors
    centroids = spherical_kmeans(coded, clusters, seed=seed, on_step=step(f"Clustering into {clusters:,}"))
    labels = assign(coded, centroids, on_step=step("Assigning items to clusters"))
    means, spreads = cluster_shapes(coded, labels, clusters)
    layout = arrange(labels, ids, clusters)
    codes, scales, halves = pack_vectors(vectors, layout.item_of_row, projection, on_step=step("Quantising rows"))
    centroid_codes, centroid_scales, centroid_spreads = pack_centroids(means, spreads)
    item_of_row = layout.item_of_row
    filtered = [column for column in columns if column.feature.filter]
    return Index(
        projection=projection,
        codes=codes,
        scales=scales,
        row_codes=pack_rows(codes, scales, halves.shape[1]),
        vectors=halves,
        ids=torch.from_numpy(np.where(item_of_row >= 0, ids[item_of_row], -1)),
        item_rows=torch.from_numpy(layout.row_of_item[np.argsort(ids)].astype(np.int32)),
        cluster_blocks=torch.from_numpy(layout.cluster_blocks),
        centroid_codes=centroid_codes,
        centroid_scales=centroid_scales,
        centroid_spreads=centroid_spreads,
        valid=torch.from_numpy(pack_mask(item_of_row >= 0)),
        filters=build_filters(filtered, layout, step("Indexing filters")),
        forward=forward_columns(columns, layout),
        layout=layout,
    )


def pack_centroids(means: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and spreads of the clusters' `means` [C, P]. A code is off by up to half its scale, evenly: that
    adds to the `spreads` [C]."""
    padding = -len(means) % BLOCK
    codes, scales, _ = quantize(torch.nn.functional.pad(means, (0, 0, 0, padding)))
    padded = torch.nn.functional.pad(spreads, (0, padding)).to(torch.float64)
    wider = torch.hypot(padded, scales.to(torch.float64) / 12**0.5)
    return pack_codes(codes), scales.view(-1, BLOCK), wider.to(torch.float32).view(-1, BLOCK)
