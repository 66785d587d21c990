"""One small artifact of given vectors and attributes, exported by the command line and served by the stock server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from builder.cli.main import cli
from builder.serving.server import StockServer
from client import RetrievalClient, Schema

ITEMS, DIMS = 3000, 24
COLOURS = ["red", "green", "blue", "ünïcode"]
GENRES = ["Drama", "War", "Comedy", "Noir", "Rare"]

CONFIG = """
name: shop
embeddings: {path: vectors.npy, samples: queries.npy}
data:
  items:
    path: items.parquet
    id: sku
    features:
      - {name: colour, kind: category, filter: true}
      - {name: genres, kind: tags, filter: true}
      - {name: year, kind: number, filter: true}
      - {name: released, kind: date, filter: true}
      - {name: title_id, kind: category, filter: true, column: sku}
index: {results: 50, recall: 0.99}
"""


RESULTS = 50
RULES = {"colour": 9, "genres": 12}
SETTINGS = {
    "plain": "",
    "at_most": "diversity: {at_most: {colour: 9, genres: 12}}",
    "mmr": "diversity: {at_most: {colour: 9, genres: 12}, mmr: 0.7}",
}


@dataclass(frozen=True)
class Shop:
    """What was exported: `vectors` [N, D], `ids` [N], the items' values as dicts, and held-out `queries`."""

    folder: Path
    ids: np.ndarray
    vectors: np.ndarray
    items: list[dict[str, Any]]
    queries: np.ndarray

    def exact(self, query: np.ndarray, allowed: np.ndarray, k: int) -> list[int]:
        """Ids of the k best allowed items in float64; `allowed` [N] bool."""
        scores = np.where(allowed, self.vectors.astype(np.float64) @ query.astype(np.float64), -np.inf)
        order = np.lexsort((self.ids, -scores))[:k]
        return self.ids[order[np.isfinite(scores[order])]].tolist()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(11)
    centres = rng.normal(size=(40, DIMS))

    def near_centres(count: int) -> np.ndarray:
        return (centres[rng.integers(0, 40, size=count)] + 0.6 * rng.normal(size=(count, DIMS))).astype(np.float32)

    vectors, queries = near_centres(ITEMS), near_centres(200)
    ids = rng.permutation(10 * ITEMS)[:ITEMS].astype(np.int64)  # neither sorted nor dense
    items = [
        {
            "sku": sku,
            "colour": None if rng.random() < 0.1 else COLOURS[min(3, int(rng.exponential()))],
            "genres": [genre for genre in GENRES[:4] if rng.random() < 0.3],
            "year": None if rng.random() < 0.1 else int(rng.integers(1950, 2020)),
            "released": None if rng.random() < 0.1 else int(rng.integers(0, 2**30)),
        }
        for sku in ids.tolist()
    ]
    items[7]["genres"] = ["Rare"]
    columns = {name: [item[name] for item in items] for name in items[0]}
    columns["released"] = pa.array(columns["released"], pa.timestamp("s"))
    pq.write_table(pa.table(columns), folder / "items.parquet")
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", queries)
    (folder / "retrieval.yaml").write_text(CONFIG)
    for item in items:
        item["title_id"] = item["item_id"] = item["sku"]
    return Shop(folder, ids, vectors, items, queries)


def whole_numbers(seed: int, count: int) -> np.ndarray:
    """[count, DIMS] vectors that the index holds without rounding, so that the search is exact where it reads all."""
    vectors = np.random.default_rng(seed).integers(-127, 128, (count, DIMS)).astype(np.float32)
    vectors[:, 0] = 127
    return vectors


@pytest.fixture(scope="session")
def diverse(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The items of the shop with vectors of whole numbers, exported once with each of the settings."""
    folder = tmp_path_factory.mktemp("diverse")
    vectors, queries = whole_numbers(1, len(shop.ids)), whole_numbers(2, 30)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", queries)
    shutil.copy(shop.folder / "items.parquet", folder)
    config = CONFIG.replace("index: {", f"index: {{code_dims: {DIMS}, ")
    for model, rules in SETTINGS.items():
        (folder / f"{model}.yaml").write_text(f"{config}{rules}\n")
        arguments = ["export", str(folder / f"{model}.yaml"), "--repository", str(folder / "repository")]
        result = CliRunner().invoke(cli, [*arguments, "--model", model], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return Shop(folder, shop.ids, vectors, shop.items, queries)


@pytest.fixture(scope="session")
def repository(shop: Shop) -> Path:
    repository = shop.folder / "model_repository"
    arguments = ["export", str(shop.folder / "retrieval.yaml"), "--repository", str(repository)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return repository


@pytest.fixture(scope="session")
def version(repository: Path) -> Path:
    return repository / "retrieval" / "1"


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    with StockServer(repository, log=tmp_path_factory.mktemp("log") / "server.log") as server:
        yield server


@pytest.fixture
def client(server: StockServer) -> Iterator[RetrievalClient]:
    with RetrievalClient(server.url, timeout=10.0) as client:
        yield client


@pytest.fixture
def schema(client: RetrievalClient) -> Schema:
    return client.schema
