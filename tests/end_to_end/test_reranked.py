"""Towers, index, reranker, two tasks and a value formula: what the stock server answers is what the network computes.

The reference is the network as Python modules, before it is scripted, written or loaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from builder.config import Config
from builder.data.synthetic import CATEGORIES, COUNTRIES, synthetic
from builder.export import artifact
from builder.export.artifact import export
from builder.export.sources import from_run
from builder.network.pipeline import Pipeline
from builder.serving.server import StockServer
from builder.training.run import TrainedRun, load, train
from client import Codec, Condition, F, Request, RetrievalClient
from client._grpc import GrpcTransport
from client.schema import Schema

pytestmark = pytest.mark.server

USERS, ITEMS, RESULTS, REQUESTS, HISTORY = 300, 600, 30, 1000, 20
SETTINGS = """
tasks: {watch: true, long_view: seconds > 60}
training: {epochs: 2, batch: 256, negatives: 64, learning_rate: 0.01}
rerank: {epochs: 3, learning_rate: 0.01, candidates: 100}
index: {results: 30, clusters: 8}
value: "0.7 * watch + 0.3 * long_view * log(1 + coalesce(price, 0))"
"""


@dataclass(frozen=True)
class Made:
    """`network`: what was exported, as Python modules."""

    run: TrainedRun
    network: Pipeline
    version: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("reranked")
    config = synthetic(folder / "data", users=USERS, items=ITEMS, seed=4)
    events = folder / "data" / "interactions.parquet"
    table = pq.read_table(events)
    seconds = pa.array((table["item_id"].to_numpy() * 7) % 120)
    pq.write_table(table.append_column("seconds", seconds), events)
    config.write_text(config.read_text().replace("history: 50", f"history: {HISTORY}") + SETTINGS)
    trained = load(train(Config.load(config), folder / "run", False))
    networks: list[Any] = []
    script = artifact.script

    def recording(network: Any, schema: Schema) -> torch.jit.ScriptModule:
        networks.append(network)
        return script(network, schema)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the server
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "script", recording)
        version = export(from_run(trained), folder / "repository")
    assert isinstance(networks[0], Pipeline)
    yield Made(trained, networks[0], version)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def server(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with StockServer(made.version.parents[1], log=log) as server:
        yield server


@pytest.fixture
def client(server: StockServer) -> Iterator[RetrievalClient]:
    with RetrievalClient(server.url, timeout=10.0) as client:
        yield client


def random_filter(rng: random.Random, depth: int) -> Condition:
    if depth and rng.random() < 0.6:
        left, right = random_filter(rng, depth - 1), random_filter(rng, depth - 1)
        return rng.choice([left & right, left | right, ~left])
    return rng.choice(
        [
            F.category.is_in(rng.sample(CATEGORIES, rng.randrange(1, 4))),
            F.category.is_unknown(),
            F.price >= rng.uniform(0, 60),
            F.price.between(rng.uniform(0, 30), rng.uniform(20, 90)),
            F.released < f"20{rng.randrange(15, 25)}-06-01",
            F.price.is_unknown(),
        ]
    )


def random_request(rng: random.Random, ids: list[int]) -> Request:
    """Known users and others, with more or less known of them, and all that a request may ask for."""
    user = {
        "user_id": rng.choice([rng.randrange(USERS), 10**9, None]),
        "age": rng.choice([rng.uniform(10, 90), 1e30, None]),
        "country": rng.choice([*COUNTRIES, "nowhere", None]),
    }
    return Request(
        user=user,
        history=[rng.choice([*ids, 10**12]) for _ in range(rng.randrange(3 * HISTORY))],
        filter=random_filter(rng, 3) if rng.random() < 0.5 else None,
        exclude=rng.sample(ids, rng.choice([0, 0, 5, 60])),
        task_weights=rng.choice([None, {"long_view": 3.0}, {"watch": -1.0, "long_view": rng.uniform(-1, 2)}]),
        probes=rng.choice([None, None, rng.randrange(1, 9)]),
        candidates=rng.choice([None, None, rng.randrange(RESULTS, 300)]),
    )


def in_process(made: Made, schema: Schema, inputs: dict[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    """item_ids, scores, task_scores, count, status, stats of the Python modules."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    features = [tensors[feature.name] for feature in schema.user_features]
    history = tensors["history"]
    network = made.network
    with torch.inference_mode():
        query = network.tower(features, history)
        status = network.check_user(features, history)
        asked = (tensors[name] for name in ("filter", "exclude", "task_weights", "search"))
        return network.retrieve(query, history, status, *asked)


def test_a_thousand_answers_are_those_of_the_network(made: Made, server: StockServer, client: RetrievalClient) -> None:
    seed = 41
    rng = random.Random(seed)
    schema = client.schema
    codec, ids = Codec(schema), made.run.catalogue.ids.tolist()
    requests = [random_request(rng, ids) for _ in range(REQUESTS)]
    counts, orders, start = [], set(), 0
    transport = GrpcTransport(server.url)
    while start < REQUESTS:
        part = requests[start : start + rng.choice([1, 2, 7, 24])]
        inputs = codec.encode(part)
        served = transport.infer("retrieval", inputs, 10.0).outputs
        local = in_process(made, schema, inputs)
        where = f"seed {seed}, requests from {start}"
        for name, tensor in zip(("item_ids", "count", "status", "stats"), (local[0], *local[3:]), strict=True):
            np.testing.assert_array_equal(served[name], tensor.numpy(), err_msg=f"{where}: {name}")
        for name, tensor in zip(("scores", "task_scores"), local[1:3], strict=True):
            np.testing.assert_allclose(served[name], tensor.numpy(), rtol=0, atol=1e-4, err_msg=f"{where}: {name}")
        assert not served["status"].any(), where
        counts += served["count"][:, 0].tolist()
        orders |= {tuple(row) for row in served["item_ids"].tolist()}
        start += len(part)
    transport.close()
    assert len(counts) == REQUESTS
    assert counts.count(RESULTS) > 500  # and others that find less, or nothing
    assert 0 < counts.count(0) < 300
    assert len({count for count in counts if 0 < count < RESULTS}) > 5
    assert len(orders) > 600


def test_what_was_retrieved_ranks_the_same(made: Made, client: RetrievalClient) -> None:
    """The ranking model of the snapshot, reranker and formula included."""
    rng = random.Random(5)
    ids = made.run.catalogue.ids.tolist()
    ranked_items = 0
    for _ in range(60):
        request = random_request(rng, ids)
        found = client.retrieve(
            user=request.user, history=request.history, filter=request.filter, task_weights=request.task_weights
        )
        if not found.count:
            continue
        ranked = client.rank(
            user=request.user,
            history=request.history,
            items=rng.sample(found.item_ids.tolist(), found.count),
            task_weights=request.task_weights,
        )
        np.testing.assert_allclose(ranked.scores, found.scores, rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.sort(ranked.task_scores, 0), np.sort(found.task_scores, 0), rtol=0, atol=1e-6)
        ranked_items += ranked.count
    assert ranked_items > 500


def test_the_formula_orders_and_the_search_does_not(made: Made, client: RetrievalClient) -> None:
    """Without which the tests above would say little: reranker, formula and weights change what is answered."""
    asking = made.run.held_out(sample=20)
    prices = next(column.values for column in made.run.catalogue.columns if column.feature.name == "price")
    orders = []
    for row in range(20):
        user = {name: array[row, 0].item() for name, array in asking.features.items() if name != "country"}
        history = asking.history[row][asking.history[row] >= 0]
        for weights in (None, {"watch": 0.0}, {"long_view": 0.0}):
            found = client.retrieve(user=user, history=history, task_weights=weights)
            watch, long_view = found.task_scores.astype(np.float64).T
            price = np.nan_to_num(prices[made.run.catalogue.find(found.item_ids)])
            used = {"watch": 1.0, "long_view": 1.0, **(weights or {})}
            expected = 0.7 * used["watch"] * watch + 0.3 * used["long_view"] * long_view * np.log1p(price)
            np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-6)
            orders.append(tuple(found.item_ids.tolist()))
    assert len(set(orders)) == 60
