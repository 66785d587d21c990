"""Spherical k-means on mini-batches: the directions that clusters gather around.

Mini-batch k-means after Sculley (WWW 2010), spherical after Dhillon and Modha (2001): rows are compared by cosine,
since inner-product search ranks by direction and length, and `cluster_shapes` takes care of length.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from builder.data.vectors import VectorSource

ROWS_PER_CHUNK = 65_536  # a chunk times 128 dims is 32 MiB of float32
SCORES_PER_CHUNK = 2**19  # scores of one matmul: 2 MiB of float32, which stay in the cache for argmax
MOST_SPREAD = 1e30  # some thousand times it is still a float32
SAMPLE_PER_CLUSTER = 128  # more changed recall by less than its noise at 1M x 128


def automatic_clusters(rows: int) -> int:
    """Clusters for a catalogue: 2 sqrt(N) balances coarse and fine search; a cluster fills two blocks on average."""
    return max(1, min(round(2 * math.sqrt(rows)), rows // 64))


def spherical_kmeans(
    vectors: VectorSource,
    clusters: int,
    *,
    seed: int,
    epochs: int = 8,
    on_step: Callable[[float], None] = lambda done: None,
) -> Tensor:
    """Return `[C, D] float32` unit centroids of `vectors [N, D]`, the same for the same seed and thread count.

    Trains on a sample of at most `SAMPLE_PER_CLUSTER` rows a cluster. A cluster that an epoch leaves empty is moved
    onto a random row, most likely of a wide cluster. `on_step` receives the fraction done. Raises ValueError unless
    1 <= clusters <= N.
    """
    rows = len(vectors)
    if not 1 <= clusters <= rows:
        raise ValueError(f"clusters is {clusters}; expected 1 to the number of items, {rows}")
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(rows, generator=generator)[: clusters * SAMPLE_PER_CLUSTER].sort().values
    points = directions(torch.from_numpy(np.array(vectors[sample.numpy()], dtype=np.float32)))
    centroids = points[torch.randperm(len(points), generator=generator)[:clusters]].clone()
    batch = min(len(points), max(4096, 8 * clusters))
    batches = math.ceil(len(points) / batch)
    labels = torch.empty(len(points), dtype=torch.int64)
    for epoch in range(epochs):
        order = torch.randperm(len(points), generator=generator)
        sums = torch.zeros_like(centroids)
        counts = torch.zeros(clusters, dtype=torch.int64)
        for step in range(batches):
            chosen = order[step * batch : (step + 1) * batch]
            rows_of_step = points[chosen]
            labels[chosen] = nearest(rows_of_step, centroids)
            _move_towards_means(centroids, sums, counts, rows_of_step, labels[chosen])
            on_step((epoch * batches + step + 1) / (epochs * batches))
        if epoch + 1 < epochs:
            _repair_empty(centroids, counts, points, labels, generator)
    return centroids


def directions(rows: Tensor) -> Tensor:
    """Unit vectors of `rows [n, D] float32`, 0 for a zero row. Squares of float32 would overflow beyond 1e19."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    return normalize(rows / torch.where(largest > 0, largest, torch.ones_like(largest)), dim=1)


def nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """Return `[n] int64`, the centroid with the largest inner product of each row (ties: the first)."""
    step = max(1, SCORES_PER_CHUNK // len(centroids))
    columns = centroids.T.contiguous()
    scores = torch.empty(min(step, len(rows)), len(centroids))
    labels = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        # numpy's argmax is vectorised; torch's took four times as long as the matmul.
        torch.mm(part, columns, out=scores[: len(part)]).numpy().argmax(axis=1, out=labels[start : start + len(part)])
    return torch.from_numpy(labels)


def assign(
    vectors: VectorSource, centroids: Tensor, *, on_step: Callable[[float], None] = lambda done: None
) -> NDArray[np.int32]:
    """Return `[N] int32`, the cluster of every row of `vectors [N, D]`, reading it a chunk at a time."""
    labels = np.empty(len(vectors), dtype=np.int32)
    for start in range(0, len(vectors), ROWS_PER_CHUNK):
        chunk = torch.from_numpy(np.array(vectors[start : start + ROWS_PER_CHUNK], dtype=np.float32))
        labels[start : start + len(chunk)] = nearest(directions(chunk), centroids).numpy()
        on_step(min(1.0, (start + len(chunk)) / len(vectors)))
    return labels


def cluster_shapes(vectors: VectorSource, labels: NDArray[np.int32], clusters: int) -> tuple[Tensor, Tensor]:
    """Means `[C, P] float32` of the rows of each cluster, and spreads `[C] float32`: their standard deviation from it
    along one direction, on average over all. Those of an empty cluster are 0. `vectors [N, P]`, `labels [N]`.

    A query's product with the mean is what the cluster's rows score on average, so that clusters of long vectors, which
    win inner-product searches, come first; times the query's length, the spread tells how far their scores vary.
    """
    sums = torch.zeros(clusters, vectors[:1].shape[1], dtype=torch.float64)
    squares = torch.zeros(clusters, dtype=torch.float64)
    for start in range(0, len(vectors), ROWS_PER_CHUNK):
        chunk = torch.from_numpy(np.array(vectors[start : start + ROWS_PER_CHUNK], dtype=np.float64))
        part = torch.from_numpy(labels[start : start + len(chunk)]).long()
        sums.index_add_(0, part, chunk)
        squares.index_add_(0, part, chunk.square().sum(1))
    counts = torch.from_numpy(np.bincount(labels, minlength=clusters)).clamp(min=1)
    means = sums / counts[:, None]
    variances = (squares / counts - means.square().sum(1)).clamp(min=0) / sums.shape[1]
    return means.to(torch.float32), variances.sqrt().clamp(max=MOST_SPREAD).to(torch.float32)


def _move_towards_means(centroids: Tensor, sums: Tensor, counts: Tensor, rows: Tensor, labels: Tensor) -> None:
    """One mini-batch step in place: each centroid becomes the direction of the mean of this epoch's rows so far."""
    sums.index_add_(0, labels, rows)
    counts += torch.bincount(labels, minlength=len(counts))
    hit = counts > 0
    centroids[hit] = normalize(sums[hit], dim=1)


def _repair_empty(
    centroids: Tensor, counts: Tensor, points: Tensor, labels: Tensor, generator: torch.Generator
) -> None:
    """Move centroids without rows onto random rows, drawn in proportion to their distance from their own centroid.

    So k-means++ chooses its starts (Arthur and Vassilvitskii, 2007): wide clusters are split, and copies of one row are
    not. Weighted sampling without replacement by exponential clocks (Efraimidis and Spirakis, 2006) takes any number of
    rows. `points [n, D]` of length 1 or 0, `labels [n]` the cluster of each, `counts [C]` the rows of each cluster.
    """
    empty = (counts == 0).nonzero().flatten()
    if len(empty) == 0:
        return
    distances = (points * (points - centroids[labels])).sum(1).clamp(min=0)
    clocks = torch.empty(len(points), dtype=torch.float64).exponential_(generator=generator)
    first = (clocks / distances).topk(min(len(empty), len(points)), largest=False).indices
    centroids[empty[: len(first)]] = points[first]
