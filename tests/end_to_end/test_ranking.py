"""The ranking model beside the retrieval model in the stock server: the same items, the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from builder import ops
from builder.export.manifest import read_manifest
from builder.serving.server import StockServer
from client import RetrievalClient, Schema, Status
from tests.end_to_end.conftest import Shop
from tests.end_to_end.libtorch import harness

pytestmark = pytest.mark.server

SEED = 31
TYPES = {"float32": "FP32", "int64": "INT64"}


def raw_batch(shop: Shop, rows: int, width: int = 16) -> dict[str, np.ndarray]:
    """Items of which every fifth is unknown, and padding."""
    rng = np.random.default_rng(SEED)
    items = rng.choice(shop.ids, (rows, width))
    items[:, 4::5] = 10**12 + rng.integers(0, 100, items[:, 4::5].shape)
    items[:, -3:] = -1
    return {
        "query": shop.queries[:rows].copy(),
        "items": items,
        "task_weights": np.full((rows, 1), np.nan, dtype=np.float32),
    }


def raw_rank(server: StockServer, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A bare tritonclient: nothing of ours."""
    inputs = []
    for name, array in reversed(batch.items()):  # only names bind
        tensor = triton.InferInput(name, array.shape, TYPES[str(array.dtype)])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with triton.InferenceServerClient(server.url) as bare:
        response = bare.infer("retrieval_rank", inputs)
    return {name: response.as_numpy(name) for name in ("scores", "task_scores", "known", "status")}


@pytest.fixture(scope="module")
def rank_version(version: Path) -> Path:
    return version.parents[1] / "retrieval_rank" / version.name


def test_a_thousand_pairs_score_as_they_were_retrieved(
    client: RetrievalClient, shop: Shop, version: Path, rank_version: Path
) -> None:
    """Random users and items that retrieval returned, in random order among unknown ids, bit for bit."""
    rng = np.random.default_rng(SEED)
    pairs = 0
    for query in shop.queries[:100]:
        found = client.retrieve(query=query, k=50)
        chosen = rng.permutation(found.count)[:10]
        unknown = rng.integers(10**12, 10**13, 5)
        items = rng.permutation([*found.item_ids[chosen].tolist(), *unknown.tolist()])
        ranked = client.rank(query=query, items=items)
        best_first = np.sort(chosen)  # retrieval's own order
        assert ranked.item_ids.tolist() == found.item_ids[best_first].tolist()
        assert ranked.scores.tobytes() == found.scores[best_first].tobytes()
        assert ranked.task_scores.tobytes() == found.task_scores[best_first].tobytes()
        assert sorted(ranked.unknown.tolist()) == sorted(unknown.tolist())
        assert items[ranked.positions].tolist() == ranked.item_ids.tolist()
        pairs += ranked.count
    assert pairs == 1000
    assert read_manifest(version).snapshot == read_manifest(rank_version).snapshot


def test_items_that_were_not_retrieved_score_as_brute_force(client: RetrievalClient, shop: Shop) -> None:
    rng = np.random.default_rng(SEED + 1)
    for query in shop.queries[:20]:
        at = rng.permutation(len(shop.ids))[:1500]  # more than goes at once
        ranked = client.rank(query=query, items=shop.ids[at], k=700)
        exact = shop.vectors[at].astype(np.float64) @ query.astype(np.float64)
        assert ranked.count == 700
        # float16 rounds each of 24 products of up to some tens by 2^-11 of it at most.
        np.testing.assert_allclose(ranked.scores, exact[ranked.positions], rtol=0, atol=0.03)
        np.testing.assert_allclose(ranked.scores, -np.sort(-exact)[:700], rtol=0, atol=0.03)


def test_weights_scale_and_reverse(client: RetrievalClient, shop: Shop) -> None:
    items, query = shop.ids[:40], shop.queries[3]
    plain = client.rank(query=query, items=items)
    turned = client.rank(query=query, items=items, task_weights={"score": -2.0})
    assert turned.item_ids.tolist() == plain.item_ids.tolist()[::-1]
    np.testing.assert_array_equal(turned.scores, -2 * plain.scores[::-1])
    np.testing.assert_array_equal(turned.task_scores, plain.task_scores[::-1])


BAD_ROWS: list[tuple[str, Any, Status]] = [
    ("query", np.nan, Status.QUERY),
    ("query", np.inf, Status.QUERY),
    ("task_weights", np.inf, Status.TASK_WEIGHTS),
    ("items", -2, Status.ITEMS),
]


@pytest.mark.parametrize(("name", "value", "status"), BAD_ROWS)
def test_one_bad_row_in_eight_leaves_seven_right_answers(
    server: StockServer, shop: Shop, name: str, value: Any, status: Status
) -> None:
    batch = raw_batch(shop, 8)
    good = raw_rank(server, batch)
    assert good["status"].tolist() == [[0]] * 8
    assert good["known"].sum() == 8 * 11
    batch[name][3, 0] = value
    mixed = raw_rank(server, batch)
    assert mixed["status"][3, 0] == status
    assert mixed["known"][3].sum() == 0
    assert np.isneginf(mixed["scores"][3]).all()
    assert np.isneginf(mixed["task_scores"][3]).all()
    for output in good:
        np.testing.assert_array_equal(np.delete(mixed[output], 3, 0), np.delete(good[output], 3, 0), err_msg=output)


def test_the_order_given_stays_and_the_client_agrees(server: StockServer, client: RetrievalClient, shop: Shop) -> None:
    batch = raw_batch(shop, 4)
    raw = raw_rank(server, batch)
    for row in range(4):
        items = batch["items"][row, :-3]
        known = np.isin(items, shop.ids)
        assert raw["known"][row].tolist() == [*known.astype(int).tolist(), 0, 0, 0]
        assert np.isneginf(raw["scores"][row, :-3][~known]).all()
        ranked = client.rank(query=shop.queries[row], items=items)
        as_given = np.full(len(items), -np.inf, np.float32)
        as_given[ranked.positions] = ranked.scores
        assert as_given.tolist() == raw["scores"][row, :-3].tolist()
        assert ranked.unknown.tolist() == items[~known].tolist()


@pytest.mark.parametrize("rows", [1, 3])
def test_served_answers_equal_the_network_in_process(
    server: StockServer, rank_version: Path, shop: Shop, rows: int
) -> None:
    ops.load()
    network = torch.jit.load(str(rank_version / "model.pt"))
    batch = raw_batch(shop, rows)
    with torch.inference_mode():
        local = network(**{name: torch.from_numpy(array) for name, array in batch.items()})
    for (name, served), tensor in zip(raw_rank(server, batch).items(), local, strict=True):
        np.testing.assert_array_equal(served, tensor.numpy(), err_msg=name)


@pytest.mark.slow
def test_libtorch_answers_as_this_process_does(rank_version: Path, shop: Shop) -> None:
    """As the PyTorch backend calls it: arguments by name, a flat tuple of tensors."""
    ops.load()
    network = torch.jit.load(str(rank_version / "model.pt"))
    batch = raw_batch(shop, 5)
    batch["items"][2, 7] = -5
    with torch.inference_mode():
        local = network(**{name: torch.from_numpy(array) for name, array in batch.items()})
    answers = harness.run(rank_version / "model.pt", dict(reversed(batch.items())))
    assert len(answers) == len(local) == 4
    for one, other in zip(answers, local, strict=True):
        assert one.dtype == other.numpy().dtype
        np.testing.assert_array_equal(one, other.numpy())
    assert answers[3].tolist() == [[0], [0], [Status.ITEMS], [0], [0]]


def test_both_models_tell_the_same_snapshot_and_schema(server: StockServer, version: Path, schema: Schema) -> None:
    with triton.InferenceServerClient(server.url) as bare:
        retrieval, ranking = (bare.get_model_config(name).config for name in ("retrieval", "retrieval_rank"))
    for name in ("schema", "snapshot", "fingerprint"):
        assert retrieval.parameters[name] == ranking.parameters[name], name
    assert ranking.parameters["snapshot"].string_value == read_manifest(version).snapshot
    assert Schema.from_json(ranking.parameters["schema"].string_value) == schema
