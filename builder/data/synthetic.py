"""Made-up data of any size, for trials and scale tests: nothing of it is measured quality.

Items belong to clusters of taste; popularity falls off as a power law inside and between clusters; attributes follow
the cluster, with exceptions; a user likes a few clusters and takes their items by popularity.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from builder.data.lists import ranges

EVENTS_PER_USER = 40  # mean
TASTES = 3  # clusters a user likes
STRAY = 0.15  # share of interactions, and of attributes, that follow no taste
FIRST_DAY, DAYS = 16_436, 3_650  # 2015-01-01 and ten years
CATEGORIES = ("books", "music", "films", "games", "garden", "kitchen", "sports", "travel")
TAGS_PER_CLUSTER = 6
COUNTRIES = ("BR", "DE", "IN", "JP", "NG", "US")
INTRINSIC_DIMS = 20  # learned embeddings of catalogues have about 16 to 24

RETRIEVAL_YAML = """\
# Synthetic: {users:,} users, {items:,} items, {events:,} interactions, seed {seed}.
name: synthetic
data:
  items:
    path: items.parquet
    id: item_id
    features:
      - {{name: category, kind: category, filter: true}}
      - {{name: tags, kind: tags, filter: true}}
      - {{name: price, kind: number, filter: true}}
      - {{name: released, kind: date, filter: true}}
  users:
    path: users.parquet
    id: user_id
    features:
      - {{name: age, kind: number}}
      - {{name: country, kind: category}}
  interactions: {{path: interactions.parquet, user: user_id, item: item_id, time: time}}
split: {{kind: leave-last-out}}
network: {{dims: 32, history: 50}}
"""


@dataclass(frozen=True)
class _Items:
    """`cluster` [N], ascending; cluster c owns items offsets[c] .. offsets[c + 1]; `popularity` [N], sums to 1."""

    cluster: NDArray[np.int64]
    offsets: NDArray[np.int64]
    popularity: NDArray[np.float64]


def synthetic(out: Path, *, users: int, items: int, seed: int) -> Path:
    """Write items.parquet, users.parquet, interactions.parquet and retrieval.yaml to `out`; returns the last's path."""
    rng = np.random.default_rng(seed)
    catalogue = _items(items, rng)
    clusters = len(catalogue.offsets) - 1
    liked = rng.choice(clusters, (users, TASTES), p=_sizes(clusters))
    ages = np.clip(rng.normal(20 + 45 * liked[:, 0] / clusters, 6).round(), 16, 90)  # age follows the first taste
    out.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(_item_table(catalogue, rng), out / "items.parquet")
    countries = pa.array(np.array(COUNTRIES, dtype=object)[rng.integers(0, len(COUNTRIES), users)])
    users_table = pa.table({"user_id": np.arange(users), "age": ages.astype(np.int32), "country": countries})
    pa.parquet.write_table(users_table, out / "users.parquet")
    interactions = _interactions(catalogue, liked, rng)
    pa.parquet.write_table(interactions, out / "interactions.parquet")
    path = out / "retrieval.yaml"
    text = RETRIEVAL_YAML.format(users=users, items=items, events=len(interactions), seed=seed)
    path.write_text(text, encoding="utf-8")
    return path


def synthetic_vectors(
    count: int, dims: int, *, seed: int, queries: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Item vectors [count, dims] and query vectors [queries, dims], float32, of length about 1.

    Clusters of power-law size around centres of `INTRINSIC_DIMS` dimensions, as embeddings of large catalogues have
    them, plus a little noise in all; queries lie between two centres. Made in chunks: memory is that of the result.
    """
    rng = np.random.default_rng(seed)
    inner = min(INTRINSIC_DIMS, dims)
    clusters = max(1, int(np.sqrt(count)))
    sizes = _sizes(clusters)
    centres = rng.standard_normal((clusters, inner), dtype=np.float32)
    basis = np.linalg.qr(rng.standard_normal((dims, inner)))[0].T.astype(np.float32)  # [inner, dims], orthonormal

    def around(points: NDArray[np.float32]) -> NDArray[np.float32]:
        near = points + 0.6 * rng.standard_normal(points.shape, dtype=np.float32)
        spread = near @ basis + 0.05 * rng.standard_normal((len(points), dims), dtype=np.float32)
        lengths = np.linalg.norm(spread, axis=1, keepdims=True)
        stretch = np.exp(0.1 * rng.standard_normal((len(points), 1), dtype=np.float32))
        return np.asarray(spread / lengths * stretch, dtype=np.float32)

    vectors = np.empty((count, dims), np.float32)
    for start in range(0, count, 65_536):
        rows = vectors[start : start + 65_536]
        rows[:] = around(centres[rng.choice(clusters, len(rows), p=sizes)])
    pairs = rng.choice(clusters, (queries, 2), p=sizes)
    weight = rng.uniform(0.5, 1.0, (queries, 1)).astype(np.float32)
    return vectors, around(weight * centres[pairs[:, 0]] + (1 - weight) * centres[pairs[:, 1]])


def _sizes(count: int) -> NDArray[np.float64]:
    """Shares that fall off as a power law and sum to 1."""
    shares = np.arange(1, count + 1) ** -0.7
    return np.asarray(shares / shares.sum())


def _items(count: int, rng: np.random.Generator) -> _Items:
    clusters = max(4, int(np.sqrt(count) / 2))
    cluster = np.sort(rng.choice(clusters, count, p=_sizes(clusters)))
    popularity = rng.pareto(1.2, count) + 0.05
    offsets = np.searchsorted(cluster, np.arange(clusters + 1))
    return _Items(cluster, offsets, popularity / popularity.sum())


def _item_table(items: _Items, rng: np.random.Generator) -> pa.Table:
    count = len(items.cluster)
    stray = rng.random(count) < STRAY
    category = np.where(stray, rng.integers(0, len(CATEGORIES), count), items.cluster % len(CATEGORIES))
    # Tags: up to three of the cluster's own, and now and then one of any cluster.
    own = rng.integers(0, 4, count)
    rows = np.repeat(np.arange(count), own)
    tags = items.cluster[rows] * TAGS_PER_CLUSTER + rng.integers(0, TAGS_PER_CLUSTER, len(rows))
    foreign = rng.random(len(rows)) < STRAY
    tags[foreign] = rng.integers(0, TAGS_PER_CLUSTER * (len(items.offsets) - 1), int(foreign.sum()))
    offsets = np.concatenate([[0], np.cumsum(own)]).astype(np.int32)
    tag_names = pa.array([f"tag-{tag}" for tag in range(TAGS_PER_CLUSTER * (len(items.offsets) - 1))])
    price = np.exp(rng.normal(1 + category / 2, 0.5)).round(2)
    ids = np.arange(count) * 3 + 10_000  # not the row numbers, so that nobody mistakes one for the other
    names = np.array(CATEGORIES, dtype=object)[category]
    return pa.table(
        {
            "item_id": ids,
            "title": pa.array([f"{name} {number}" for name, number in zip(names, ids, strict=True)]),
            "category": pa.array(names),
            "tags": pa.ListArray.from_arrays(offsets, tag_names.take(pa.array(tags))),
            "price": pa.array(price, mask=rng.random(count) < 0.02),
            "released": pa.array((FIRST_DAY + rng.integers(0, DAYS, count)).astype(np.int32)).cast(pa.date32()),
        }
    )


def _interactions(items: _Items, liked: NDArray[np.int64], rng: np.random.Generator) -> pa.Table:
    """Interactions of all users; `liked` [U, TASTES]: their clusters, the first liked most."""
    lengths = 3 + rng.poisson(rng.gamma(1.5, (EVENTS_PER_USER - 3) / 1.5, len(liked)))
    user = np.repeat(np.arange(len(liked)), lengths)
    cumulative = np.concatenate([[0.0], np.cumsum(items.popularity)])
    taste = np.minimum(rng.geometric(0.5, len(user)) - 1, TASTES - 1)
    cluster = liked[user, taste]
    stray = rng.random(len(user)) < STRAY
    low = np.where(stray, 0.0, cumulative[items.offsets[cluster]])
    high = np.where(stray, cumulative[-1], cumulative[items.offsets[cluster + 1]])
    drawn = np.searchsorted(cumulative, low + rng.random(len(user)) * (high - low), side="right") - 1
    order_in_user, _ = ranges(np.zeros(len(liked), np.int64), lengths)
    joined = rng.integers(0, DAYS // 2, len(liked)) * 86_400
    time = FIRST_DAY * 86_400 + joined[user] + order_in_user * 86_400 + rng.integers(0, 80_000, len(user))
    return pa.table(
        {
            "user_id": user,
            "item_id": drawn.clip(max=len(items.cluster) - 1) * 3 + 10_000,
            "time": pa.array(time, pa.timestamp("s")),
        }
    )
