"""The indexes of scripts/bench/gpu are those that the builder makes of the same vectors and features."""

from __future__ import annotations

from dataclasses import fields

import _gpu_index
import numpy as np
import pytest
import torch
from torch import Tensor

from builder.data.columns import CategoryColumn, NumberColumn
from builder.index.blocks import arrange, pack_vectors
from builder.index.build import pack_centroids
from builder.index.filters import build_filters
from builder.index.kmeans import cluster_shapes
from client.schema import Feature

ITEMS, CLUSTERS, DIMS = 5_000, 17, 24


def test_layout_codes_and_shapes_are_the_builders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu_index, "ROWS_PER_CHUNK", 1024)
    drawn: list[Tensor] = []
    around = _gpu_index.Mixture.around

    def remembering(self: object, points: Tensor) -> Tensor:
        drawn.append(around(self, points))
        return drawn[-1]

    monkeypatch.setattr(_gpu_index.Mixture, "around", remembering)
    index = _gpu_index.index_of(_gpu_index.mixture(DIMS, CLUSTERS, 0, "cpu"), ITEMS, 1)
    item_of_row = index.layout.item_of_row
    vectors = np.zeros((ITEMS, DIMS), np.float32)
    vectors[item_of_row[item_of_row >= 0]] = torch.cat(drawn).numpy()[item_of_row >= 0]

    blocks = index.cluster_blocks.numpy()
    labels = np.repeat(np.arange(CLUSTERS, dtype=np.int32), np.diff(blocks) * 32)[index.layout.row_of_item]
    layout = arrange(labels, np.arange(ITEMS), CLUSTERS)
    assert np.array_equal(layout.item_of_row, item_of_row)
    assert np.array_equal(layout.row_of_item, index.layout.row_of_item)
    assert np.array_equal(layout.cluster_blocks, blocks)
    for expected, found in zip(
        pack_vectors(vectors, item_of_row, index.projection), (index.codes, index.scales, index.vectors), strict=True
    ):
        assert torch.equal(expected, found)
    shapes = pack_centroids(*cluster_shapes(vectors, labels, CLUSTERS))
    found_shapes = (index.centroid_codes, index.centroid_scales, index.centroid_spreads)
    for expected, found in zip(shapes, found_shapes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_filters_are_the_builders() -> None:
    index = _gpu_index.index_of(_gpu_index.mixture(DIMS, CLUSTERS, 0, "cpu"), ITEMS, 1)
    generator, item_of_row = np.random.default_rng(2), torch.from_numpy(index.layout.item_of_row)
    kinds, prices = generator.integers(0, 9, ITEMS), generator.normal(size=ITEMS).round(1)
    kind_of_row = torch.where(item_of_row >= 0, torch.from_numpy(kinds)[item_of_row], -1)
    price_of_row = torch.where(item_of_row >= 0, torch.from_numpy(prices)[item_of_row], torch.nan)
    found = _gpu_index.filters_of({"kind": kind_of_row}, {"price": price_of_row})
    columns = (
        CategoryColumn(Feature("kind", "category", "integer", True), kinds),
        NumberColumn(Feature("price", "number", None, True), prices),
    )
    expected = build_filters(columns, index.layout)
    for field in fields(expected):
        one, other = getattr(expected, field.name), getattr(found, field.name)
        assert one.dtype == other.dtype, field.name
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True, msg=field.name)
    with pytest.raises(ValueError, match="kind: a value of too few rows for a bitmap"):
        _gpu_index.filters_of({"kind": torch.where(kind_of_row == 3, 4, kind_of_row)}, {"price": price_of_row})
