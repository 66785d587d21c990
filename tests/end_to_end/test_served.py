"""Client, stock server and artifact together, against brute force over the raw values."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from builder import ops
from builder.serving.server import StockServer
from client import (
    Codec,
    Condition,
    F,
    Request,
    Retrieval,
    RetrievalClient,
    RowStatusError,
    Schema,
    Status,
    compile_filter,
    item_in,
    matches,
)
from client._grpc import GrpcTransport
from tests.end_to_end.conftest import COLOURS, DIMS, GENRES, ITEMS, Shop

pytestmark = pytest.mark.server


def allowed(shop: Shop, condition: Condition, schema: Schema) -> np.ndarray:
    return np.array([matches(condition, item, schema) for item in shop.items])


def test_unfiltered_recall_and_scores(client: RetrievalClient, shop: Shop) -> None:
    everything = np.ones(len(shop.ids), dtype=bool)
    hits = wanted = 0
    for query in shop.queries:
        result = client.retrieve(query=query, k=50)
        expected = shop.exact(query, everything, 50)
        hits += len(set(result.item_ids.tolist()) & set(expected))
        wanted += len(expected)
        assert result.count == 50
        position = {item: at for at, item in enumerate(shop.ids.tolist())}
        exact = [float(shop.vectors[position[item]] @ query) for item in result.item_ids.tolist()]
        np.testing.assert_allclose(result.scores, exact, rtol=2e-3, atol=2e-3)
        assert (np.diff(result.scores) <= 0).all()
        assert result.task_scores[:, 0].tolist() == result.scores.tolist()
    assert hits / wanted >= 0.985  # calibrated to .99 on these queries at 50; float16 may swap near-ties at the edge


FILTERS = [
    F.genres.any_of("Drama", "War") & (F.year >= 1990) & ~F.colour.is_in(["red"]),
    F.genres.all_of("Drama", "War") | (F.colour == "ünïcode"),
    F.released >= datetime(1995, 1, 1, tzinfo=timezone.utc),
    F.genres.any_of("Rare"),
    F.genres.any_of("nobody has this"),
    F.year.is_unknown() & F.genres.is_unknown(),
    F.year.between(1960, 1960),
    ~F.genres.any_of(*GENRES) | F.colour.is_unknown(),
    F.title_id.is_in([1, 2, 3]),
    item_in(range(0, 10 * ITEMS, 7)) & (F.year >= 1990),
    ~item_in(range(10 * ITEMS // 2)),
    item_in([10 * ITEMS, 2**62]),
]


@pytest.mark.parametrize("condition", FILTERS, ids=str)
def test_filtered_results_pass_and_nothing_better_is_missing(
    client: RetrievalClient, shop: Shop, schema: Schema, condition: Condition
) -> None:
    passing = allowed(shop, condition, schema)
    missing = wanted = 0
    for query in shop.queries[:40]:
        result = client.retrieve(query=query, filter=condition, k=20)
        expected = shop.exact(query, passing, 20)
        found = set(result.item_ids.tolist())
        assert found <= set(shop.ids[passing].tolist())
        assert result.count == len(expected)
        assert result.stats.rows_passing == passing.sum()
        missing += len(set(expected) - found)
        wanted += len(expected)
    assert missing <= 0.01 * wanted


def random_filter(rng: random.Random, depth: int) -> Condition:
    if depth and rng.random() < 0.7:
        left, right = random_filter(rng, depth - 1), random_filter(rng, depth - 1)
        return rng.choice([left & right, left | right, ~left])
    return rng.choice(
        [
            F.colour.any_of(*rng.sample([*COLOURS, "none"], rng.randrange(3))),
            F.genres.all_of(*rng.sample(GENRES, rng.randrange(3))),
            F.genres.any_of(*rng.sample(GENRES, rng.randrange(3))),
            F.year > rng.randrange(1940, 2030),
            F.year.between(rng.randrange(1940, 2030), rng.randrange(1940, 2030)),
            F.released < datetime.fromtimestamp(rng.randrange(2**30), timezone.utc),
            F.colour.is_unknown(),
            item_in(rng.sample(range(10 * ITEMS), rng.choice([5, 500, 2000]))),
        ]
    )


def test_random_filters_pass_exactly_what_the_interpreter_says(
    client: RetrievalClient, shop: Shop, schema: Schema
) -> None:
    seed = 20
    rng = random.Random(seed)
    filters = [random_filter(rng, 4) for _ in range(200)]
    requests = [Request(query=shop.queries[0], filter=condition, k=50) for condition in filters]
    for condition, result in zip(filters, client.retrieve_many(requests, timeout=60), strict=True):
        assert isinstance(result, Retrieval), f"seed {seed}: {condition}: {result}"
        passing = allowed(shop, condition, schema)
        assert result.stats.rows_passing == passing.sum(), f"seed {seed}: {condition}"
        assert set(result.item_ids.tolist()) <= set(shop.ids[passing].tolist()), f"seed {seed}: {condition}"
        assert result.count == min(50, passing.sum()), f"seed {seed}: {condition}"


def test_excluded_items_never_return(client: RetrievalClient, shop: Shop) -> None:
    first = client.retrieve(query=shop.queries[0], k=20).item_ids.tolist()
    second = client.retrieve(query=shop.queries[0], k=20, exclude=[*first[:10], 10**15])
    assert second.item_ids.tolist()[:10] == first[10:]
    assert not set(first[:10]) & set(second.item_ids.tolist())


def test_more_probes_make_the_search_exact(client: RetrievalClient, shop: Shop, schema: Schema) -> None:
    everything = np.ones(len(shop.ids), dtype=bool)
    for query in shop.queries[:20]:
        result = client.retrieve(query=query, k=20, probes=schema.clusters)
        assert result.stats.exact
        assert result.stats.rows_scanned == len(shop.ids)
        assert len(set(result.item_ids.tolist()) & set(shop.exact(query, everything, 20))) >= 19


def test_task_weights_scale_and_reverse_the_score(client: RetrievalClient, shop: Shop) -> None:
    query = shop.queries[1]
    plain = client.retrieve(query=query, k=10)
    doubled = client.retrieve(query=query, k=10, task_weights={"score": 2.0})
    assert doubled.item_ids.tolist() == plain.item_ids.tolist()
    np.testing.assert_allclose(doubled.scores, 2 * plain.scores, rtol=1e-6)
    np.testing.assert_allclose(doubled.task_scores, plain.task_scores, rtol=1e-6)
    worst = client.retrieve(query=query, k=10, task_weights={"score": -1.0}, candidates=10)
    assert worst.item_ids.tolist() == plain.item_ids.tolist()[::-1]


# Every way the contract names for a row to be wrong, with its status.
BAD_ROWS: list[tuple[str, dict[str, Any], Status]] = [
    ("NaN query", {"query": np.nan}, Status.QUERY),
    ("infinite query", {"query": np.inf}, Status.QUERY),
    ("unknown opcode", {"filter": [None, 1, 99]}, Status.FILTER_MALFORMED),
    ("length past the end", {"filter": [None, 10**12]}, Status.FILTER_MALFORMED),
    ("another schema", {"filter": [12345, 1, 7]}, Status.FILTER_FINGERPRINT),
    ("exclude below -1", {"exclude": -2}, Status.EXCLUDE),
    ("infinite weight", {"task_weights": np.inf}, Status.TASK_WEIGHTS),
    ("negative probes", {"search": [-1, 0]}, Status.SEARCH),
    ("too many probes", {"search": [10**6, 0]}, Status.SEARCH),
    ("too many candidates", {"search": [0, 10**6]}, Status.SEARCH),
]


def raw_batch(shop: Shop, schema: Schema, rows: int) -> dict[str, np.ndarray]:
    program = compile_filter(F.year >= 1980, schema)
    padded = np.zeros((rows, 16), dtype=np.int64)
    padded[:, : len(program)] = program
    return {
        "query": shop.queries[:rows].copy(),
        "filter": padded,
        "exclude": np.full((rows, 8), -1, dtype=np.int64),
        "task_weights": np.full((rows, 1), np.nan, dtype=np.float32),
        "search": np.zeros((rows, 2), dtype=np.int32),
    }


def raw_infer(server: StockServer, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A bare tritonclient: nothing of ours."""
    types = {"float32": "FP32", "int64": "INT64", "int32": "INT32"}
    inputs = []
    for name, array in batch.items():
        tensor = triton.InferInput(name, array.shape, types[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with triton.InferenceServerClient(server.url) as bare:
        response = bare.infer("retrieval", inputs)
    names = ("item_ids", "scores", "task_scores", "count", "status", "stats")
    return {name: response.as_numpy(name) for name in names}


@pytest.mark.parametrize(("what", "change", "status"), BAD_ROWS, ids=[row[0] for row in BAD_ROWS])
def test_one_bad_row_in_eight_leaves_seven_right_answers(
    server: StockServer, shop: Shop, schema: Schema, what: str, change: dict[str, Any], status: Status
) -> None:
    batch = raw_batch(shop, schema, 8)
    good = raw_infer(server, batch)
    assert good["status"].tolist() == [[0]] * 8
    for name, value in change.items():
        if name == "filter":
            words = [schema.fingerprint if word is None else word for word in value]
            batch[name][3, :] = 0
            batch[name][3, : len(words)] = words
        else:
            batch[name][3, : np.size(value)] = value
    mixed = raw_infer(server, batch)
    assert mixed["status"][3, 0] == status
    assert mixed["count"][3, 0] == 0
    assert set(mixed["item_ids"][3].tolist()) == {-1}
    assert np.isneginf(mixed["scores"][3]).all()
    assert mixed["stats"][3].tolist() == [0, 0, 0, 0]
    for name in good:
        np.testing.assert_array_equal(np.delete(mixed[name], 3, 0), np.delete(good[name], 3, 0), err_msg=name)


def test_bare_tritonclient_agrees_with_the_client(server: StockServer, client: RetrievalClient, shop: Shop) -> None:
    raw = raw_infer(server, raw_batch(shop, client.schema, 4))
    for row in range(4):
        result = client.retrieve(query=shop.queries[row], filter=F.year >= 1980)
        count = int(raw["count"][row, 0])
        assert result.item_ids.tolist() == raw["item_ids"][row, :count].tolist()
        assert result.scores.tolist() == raw["scores"][row, :count].tolist()


def test_the_client_reports_a_status_by_name(server: StockServer, shop: Shop, schema: Schema) -> None:
    good = Request(query=shop.queries[0], k=5)
    bad = Request(query=shop.queries[0], filter=F.year >= 1980)
    other = Codec(Schema(**{**schema.__dict__, "item_features": schema.item_features[:-1]}))
    transport = GrpcTransport(server.url)
    answer = transport.infer("retrieval", other.encode([good, bad]), 10.0)
    transport.close()
    results = other.decode(answer.outputs, [5, 50])
    assert isinstance(results[0], Retrieval)
    assert isinstance(results[1], RowStatusError)
    assert results[1].status is Status.FILTER_FINGERPRINT
    assert answer.version == "1"


def test_a_filter_of_an_older_schema_is_compiled_anew(client: RetrievalClient, shop: Shop, schema: Schema) -> None:
    bad = Request(query=shop.queries[0], filter=F.year >= 1980)
    other = Schema(**{**schema.__dict__, "item_features": schema.item_features[:-1]})
    (endpoint,) = client._core.balancer.endpoints
    endpoint.served["retrieval"].codec = Codec(other)  # as if the artifact had been replaced since it was read
    (result,) = client.retrieve_many([bad])
    assert isinstance(result, Retrieval)
    assert endpoint.served["retrieval"].codec.schema == schema


def test_concurrent_requests_of_different_shapes_keep_their_answers(server: StockServer, shop: Shop) -> None:
    with RetrievalClient(server.url, timeout=30.0) as client:
        conditions = [None, F.year >= 1980, F.title_id.is_in(range(200)) | (F.year < 1990)]

        def ask(n: int) -> tuple[int, list[int]]:
            result = client.retrieve(query=shop.queries[n % 50], filter=conditions[n % 3], exclude=range(n % 40))
            return n, result.item_ids.tolist()

        alone = dict(map(ask, range(60)))
        with ThreadPoolExecutor(16) as pool:
            together = dict(pool.map(ask, list(range(60)) * 3))
    assert together == alone


def test_served_answers_equal_the_network_in_process(
    server: StockServer, version: Path, shop: Shop, schema: Schema
) -> None:
    ops.load()
    network = torch.jit.load(str(version / "model.pt"))
    batch = raw_batch(shop, schema, 64)
    served = raw_infer(server, batch)
    with torch.inference_mode():
        local = network(*(torch.from_numpy(array) for array in batch.values()))
    for name, tensor in zip(served, local, strict=True):
        np.testing.assert_array_equal(served[name], tensor.numpy(), err_msg=name)


def test_every_input_is_bound_by_its_name(version: Path, shop: Shop, schema: Schema) -> None:
    """Triton binds inputs that match no argument by position, silently: names and order must be forward's."""
    ops.load()
    network = torch.jit.load(str(version / "model.pt"))
    arguments = [argument.name for argument in network.forward.schema.arguments[1:]]
    assert arguments == list(raw_batch(shop, schema, 1))
    batch = {name: torch.from_numpy(array) for name, array in raw_batch(shop, schema, 2).items()}
    assert batch["query"].shape == (2, DIMS)
    by_name = network(**dict(reversed(batch.items())))
    by_position = network(*batch.values())
    for one, other in zip(by_name, by_position, strict=True):
        assert torch.equal(one, other)
