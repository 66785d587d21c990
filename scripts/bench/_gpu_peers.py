"""What scripts/bench/gpu compares with: exact search by torch, and, where they are installed, Faiss and SilverTorch's
operators with as many clusters and probes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from builder.index.build import Index

DIVISOR = 16  # by which SilverTorch's int8 products fit float16


def matrix_search(index: Index, queries: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Exact search as torch has it: scores [B, candidates] and rows. In parts where all scores would take too much."""
    best: list[tuple[Tensor, Tensor]] = []
    scales = index.scales.view(-1)
    for start in range(0, len(index.vectors), 1 << 23):
        part = slice(start, start + (1 << 23))
        scores, rows = ((queries.half() @ index.vectors[part].T) * scales[part]).topk(candidates, dim=1)
        best.append((scores, rows + start))
    scores, rows = (torch.cat(columns, dim=1) for columns in zip(*best, strict=True))
    order = scores.topk(candidates, dim=1)
    return order.values, rows.gather(1, order.indices)


def faiss_search(index: Index, clusters: int, probes: int, candidates: int) -> Callable[[Tensor], object]:
    """An IVF index of int8 codes of the vectors; its transfers from and to the host are included."""
    faiss: Any = importlib.import_module("faiss")
    resources = faiss.StandardGpuResources()
    vectors = _items(index)[0].cpu().numpy()
    config = faiss.GpuIndexIVFScalarQuantizerConfig()
    quantizer = faiss.ScalarQuantizer.QT_8bit
    ivf = faiss.GpuIndexIVFScalarQuantizer(
        resources, vectors.shape[1], clusters, quantizer, faiss.METRIC_INNER_PRODUCT, True, config
    )
    ivf.train(vectors[:: max(len(vectors) // (40 * clusters), 1)])
    ivf.add(vectors)
    ivf.nprobe = probes
    return lambda queries: ivf.search(queries.cpu().numpy(), candidates)


def silvertorch_search(index: Index, probes: int, candidates: int, batches: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """Rows [B, candidates] by `fused_kmean_ann` (github.com/meta-recsys/silvertorch) over the clusters of the index.

    What the operator leaves to its caller is torch's: codes of the queries, products with the means, the best clusters
    and the best candidates. Codes have one scale for all items. The operator wants the most rows that a request's
    clusters hold, which is taken from `batches`.
    """
    importlib.import_module("silvertorch.ops._load_ops")
    vectors, rows, counts = _items(index)
    offsets = counts.cumsum(0) - counts
    codes = (vectors * (127 / vectors.abs().max())).round().to(torch.int8)
    labels = torch.repeat_interleave(torch.arange(len(counts), device="cuda"), counts)
    means = torch.zeros(len(counts), vectors.shape[1], device="cuda").index_add_(0, labels, vectors)
    means = (means / counts.clamp(min=1)[:, None]).half()
    del vectors, labels

    def probed(queries: Tensor) -> Tensor:
        return (queries.half() @ means.T).topk(probes, dim=1).indices

    most = max(int(counts[probed(queries)].sum(1).max()) for queries in batches)

    def search(queries: Tensor) -> Tensor:
        clusters = probed(queries)
        query_codes = (queries * (127 / queries.abs().amax(dim=1, keepdim=True))).round().to(torch.int8)
        scores, found = torch.ops.st.fused_kmean_ann(
            offsets, clusters, counts[clusters], codes, query_codes, most, divisor_for_int8=DIVISOR
        )
        best = scores.topk(candidates, dim=1).indices
        return rows[found.gather(1, best).clamp(min=0)]

    return search


def _items(index: Index) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors [N, D] float32 by cluster, their rows in the index [N] int32, and items of each cluster [C] int64."""
    exists = torch.from_numpy(index.layout.item_of_row >= 0)
    starts = 32 * index.cluster_blocks[:-1].numpy().astype(np.int64)
    counts = np.add.reduceat(exists.numpy().astype(np.int64), starts)
    rows = exists.nonzero()[:, 0].cuda()
    vectors = index.vectors[rows].float() * index.scales.view(-1)[rows, None]
    return vectors, rows.int(), torch.from_numpy(counts).cuda()
