"""A small trained run with an exported version, its feature values written by someone who means no good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.config import Config
from builder.training.run import train
from tests.builder.artifacts import run

USERS, ITEMS = 60, 200
MAKERS = [
    '<script>alert("maker")</script>',
    "A & B",
    'it\'s "quoted" {{ 7 * 7 }}',
    "$x^2$ ]]> --> </style>",
    "日本語",
    "m" * 300,
    None,
]
WORDS = ["<img src=x onerror=alert(1)>", "</svg></table>", *(f"word {n}" for n in range(18))]
CONFIG = """\
name: shop
data:
  items:
    path: items.parquet
    id: sku
    features:
      - {name: maker, kind: category, filter: true}
      - {name: words, kind: tags, filter: true}
      - {name: price, kind: number, filter: true}
      - {name: released, kind: date, filter: true}
      - {name: shelf, kind: category}
  interactions: {path: interactions.parquet, user: user, item: sku, time: time}
split: {kind: leave-last-out}
network: {dims: 8, history: 5}
training: {epochs: 3, batch: 128, negatives: 32, learning_rate: 0.01}
index: {results: 10, clusters: 7, recall: 0.9}
"""


def columns() -> dict[str, list[object]]:
    """The item table; of makers and words, some are frequent (bitmaps) and some are rare (lists)."""
    rng = np.random.default_rng(3)
    popular = rng.geometric(0.4, size=ITEMS) - 1
    prices = rng.lognormal(3, 1, ITEMS)
    return {
        "sku": rng.permutation(10 * ITEMS)[:ITEMS].tolist(),
        "maker": [MAKERS[min(p, len(MAKERS) - 1)] for p in popular],
        "words": [sorted({WORDS[w] for w in (20 * rng.random(rng.integers(0, 5)) ** 3).astype(int)}) for _ in popular],
        "price": [None if p == 3 else round(float(v), 2) for p, v in zip(popular, prices, strict=True)],
        "released": [f"20{10 + p % 10}-0{1 + p % 9}-15" for p in popular],
        "shelf": rng.integers(0, 9, ITEMS).tolist(),
    }


def write_run(folder: Path) -> Path:
    """Data, a run in `folder`/run and a version in `folder`/repository; returns the run."""
    items = columns()
    pq.write_table(pa.table(items), folder / "items.parquet")
    rng = np.random.default_rng(4)
    skus = np.array(items["sku"])
    drawn = [rng.choice(skus, size=rng.integers(4, 30), replace=False) for _ in range(USERS)]
    events = {
        "user": np.repeat(np.arange(USERS), [len(one) for one in drawn]),
        "sku": np.concatenate(drawn),
        "time": np.concatenate([np.arange(len(one)) for one in drawn]),
    }
    pq.write_table(pa.table(events), folder / "interactions.parquet")
    (folder / "retrieval.yaml").write_text(CONFIG)
    trained = train(Config.load(folder / "retrieval.yaml"), folder / "run", False)
    assert run("export", trained, "--repository", folder / "repository") == 0
    return trained
