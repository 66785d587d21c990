"""What an artifact will take in memory, from its source, before an index is built.

Letters: N items, C clusters, R rows of the index, NB blocks, D dims, P dims of the codes, M candidates, B requests of a
batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from torch import nn

from builder.data.columns import CategoryColumn, Column, NumberColumn
from builder.export.artifact import Source, projection_of
from builder.export.manifest import MODEL_FILE, Manifest
from builder.index.blocks import BLOCK
from builder.index.filters import NUMBER_BUCKETS
from builder.index.kmeans import automatic_clusters
from builder.network.rerank import MolScorer, Reranker
from builder.network.towers import UserTower
from client.hashing import UNKNOWN_KEY

PROCESS = 250_000_000  # bytes of a process with torch and no index: 234 MB measured, the server's stub has some more
WHOLE_CLUSTER = 0.5  # blocks of padding a cluster: its last block is half full on average


@dataclass(frozen=True)
class Estimate:
    """Bytes. `parts`: of tensors, by what they are; `request`: beside them for each request of a batch."""

    items: int
    code_dims: int
    parts: dict[str, int]
    request: int

    @property
    def tensors(self) -> int:
        """Of all tensors: the size of model.pt, and what a GPU holds."""
        return sum(self.parts.values())

    def resident(self, instances: int) -> int:
        """Of the server's processes of one model, its tensors in memory once."""
        return self.tensors + instances * PROCESS

    def loading(self, instances: int) -> int:
        """The most while they load: with several, each has a copy of its own until it shares the first one's."""
        return self.resident(instances) + (self.tensors if instances > 1 else 0)


def of_version(manifest: Manifest) -> Estimate:
    """Of a version that was exported: what its tensors take."""
    index = manifest.index
    tensors = manifest.files[MODEL_FILE].bytes
    parts = {**index.bytes, "user tower": max(tensors - sum(index.bytes.values()), 0)}
    blocks = next((size for name, size in index.bytes.items() if name == "ids"), 0) // (8 * BLOCK)
    width = manifest.read_schema().max_candidates
    return Estimate(index.items, index.code_dims, parts, _request(blocks, width, index.dims))


def of_source(source: Source, items: int | None = None) -> Estimate:
    """Of what `source` would be exported as; `items`: as if it had so many, alike in all else.

    Values of features, neighbours and embeddings of items then grow in proportion; vocabularies stay. With `code_dims:
    auto` the dims of the codes are chosen as an export chooses them. Clusters are taken to end in half a block.
    """
    settings, given, dims = source.settings, len(source.catalogue), source.dims
    count = given if items is None else items
    grown = count / given
    clusters = automatic_clusters(count) if settings.clusters == "auto" else settings.clusters
    blocks = ceil(count / BLOCK + WHOLE_CLUSTER * clusters)
    rows = blocks * BLOCK
    projection = projection_of(source)
    code_dims = int(projection.shape[1])
    groups, of_centroids = -(-code_dims // 4), -(-clusters // BLOCK) * BLOCK
    width = (groups + 4) // 4 * 4
    columns = source.catalogue.columns
    filtered = [column for column in columns if column.feature.filter]
    parts = {
        "codes": 4 * rows * (groups + 1) + (4 * rows * width if 4 * (groups + width) <= dims else 0),
        "vectors": 2 * rows * dims,
        "ids": 8 * rows + 4 * count,
        "centroids": projection.nbytes + of_centroids * (4 * groups + 8) + 4 * (clusters + 1),
        "filters": 4 * blocks + sum(_filter_bytes(column, blocks, grown) for column in filtered),
        "forward columns": sum(_forward_bytes(column, rows, grown) for column in columns),
        "reranker": 0 if source.reranker is None else _reranker_bytes(source.reranker, count, rows),
        "user tower": _tower_bytes(source.tower, grown),
    }
    if source.diversity is not None:
        parts["diversity"] = _diversity_bytes(source, rows, grown)
    return Estimate(count, code_dims, parts, _request(blocks, settings.max_candidates, dims))


def _request(blocks: int, candidates: int, dims: int) -> int:
    """A mask of the items, and the candidates with their vectors where a reranker reads them."""
    return 4 * blocks + candidates * (4 * dims + 64)


def _filter_bytes(column: Column, blocks: int, grown: float) -> int:
    """Terms with their bitmap or posting list, the smaller of the two; of a number sorted rows and bitmaps too."""
    sizes = _term_sizes(column) * grown
    terms = len(sizes) * (8 + 4 + 8) + 12  # key, bitmap, posting; where the feature's begin
    listed = int(np.where(sizes > blocks, blocks, sizes).sum()) * 4
    if isinstance(column, NumberColumn):
        return terms + listed + blocks * BLOCK * (8 + 4) + (NUMBER_BUCKETS - 1) * 4 * blocks
    return terms + listed


def _term_sizes(column: Column) -> NDArray[np.float64]:
    """Items of each term of a feature, "no value" first."""
    if isinstance(column, NumberColumn):
        return np.array([np.isnan(column.values).sum()], dtype=np.float64)
    keys = column.keys
    if isinstance(column, CategoryColumn):
        unknown, keys = int((keys == UNKNOWN_KEY).sum()), keys[keys != UNKNOWN_KEY]
    else:
        unknown = int((np.diff(column.offsets) == 0).sum())
    return np.concatenate([[unknown], np.unique(keys, return_counts=True)[1]]).astype(np.float64)


def _forward_bytes(column: Column, rows: int, grown: float) -> int:
    if isinstance(column, NumberColumn):
        return 8 * rows
    distinct = 8 * (len(_term_sizes(column)) - 1)
    if isinstance(column, CategoryColumn):
        return distinct + 4 * rows
    return distinct + 4 * (rows + 1) + round(4 * len(column.keys) * grown)


def _reranker_bytes(reranker: Reranker, items: int, rows: int) -> int:
    kept = reranker.item_side.project.out_features
    graph = 8 * items * reranker.neighbours.rows.shape[1]
    layers = () if isinstance(reranker.scorer, MolScorer) else reranker.scorer.layers()
    return 2 * rows * kept + graph + 8 * items + _bytes(reranker.scorer) + sum(layer.nbytes for layer in layers)


def _tower_bytes(tower: nn.Module | None, grown: float) -> int:
    if tower is None:
        return 0
    whole = _bytes(tower)
    if not isinstance(tower, UserTower):
        return whole
    of_items = _bytes(tower.items) + _bytes(tower.history)
    return whole + round(of_items * (grown - 1))


def _diversity_bytes(source: Source, rows: int, grown: float) -> int:
    """Groups of rows, and lengths of vectors for maximal marginal relevance."""
    rules = source.diversity
    assert rules is not None
    lengths = 4 * rows if rules.mmr is not None and rules.mmr < 1 else 0
    ruled = [column for column in source.catalogue.columns if column.feature.name in rules.at_most]
    sizes = [_term_sizes(column)[1:] for column in ruled]
    of_groups = 8 * (rows + 1) + sum(round(4 * float(s.sum()) * grown) + 4 * len(s) for s in sizes) if ruled else 0
    return lengths + of_groups


def _bytes(module: nn.Module) -> int:
    tensors: Iterable[nn.Parameter] = (*module.parameters(), *module.buffers())  # type: ignore[arg-type]
    return sum(tensor.nbytes for tensor in tensors)
