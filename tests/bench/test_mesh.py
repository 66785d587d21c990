"""The mesh that the one model is compared with: its filters, its search and its networks give the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("faiss", reason="needs the extra [bench]")
pytest.importorskip("pyroaring", reason="needs the extra [bench]")
from _answers import overlap
from _tuning import queries_of, tune
from _workloads import Workload, prepare
from mesh_services.retriever import Retriever
from mesh_services.sets import DenseSets, RoaringSets, evaluate
from mesh_services.wire import pack, unpack

from builder import ops
from builder.export.manifest import read_manifest
from client import F, compile_filter, matches
from client.schema import Feature, Schema

ITEMS, CANDIDATES = 3_000, 200


def test_arrays_travel_as_they_are() -> None:
    sent = [np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros(0, np.float32), np.array([1, 0], np.uint8)]

    received = unpack(pack(*sent))

    assert [(a.dtype, a.shape) for a in received] == [(a.dtype, a.shape) for a in sent]
    assert all(np.array_equal(a, b) for a, b in zip(received, sent, strict=True))


SCHEMA = Schema(
    name="items",
    user_features=(),
    item_features=(
        Feature("colour", "category", "integer", True),
        Feature("tags", "tags", "integer", True),
        Feature("price", "number", None, True),
    ),
    tasks=("score",),
    history_length=0,
    query_dims=4,
    max_results=10,
    max_candidates=10,
    clusters=1,
)
CONDITIONS = (
    F.colour == 1,
    F.colour.is_in([2, 3, 99]),
    F.tags.any_of(0, 7),
    F.tags.all_of(0, 1),
    F.price >= 0.5,
    (F.price > 0.25) & (F.price < 0.26),
    F.price.between(0.9, 0.1),
    F.price.is_unknown() | F.colour.is_unknown(),
    ~F.tags.is_unknown(),
    (F.colour.is_in([0, 1]) | F.tags.any_of(3)) & (F.price >= 0.1) & (F.price <= 0.8) & ~F.tags.any_of(0, 30),
    ~(F.colour == 0) & ~(F.price <= 0.5),
)


@pytest.mark.parametrize("kind", [DenseSets, RoaringSets])
def test_filters_let_through_what_the_interpreter_lets_through(kind: Any) -> None:
    """Every item by `client.matches`; some have no colour, no tags or no price, some terms are frequent, some rare."""
    rng = np.random.default_rng(0)
    items: list[dict[str, Any]] = [
        {
            "colour": None if rng.random() < 0.1 else int(rng.geometric(0.4)) - 1,
            "tags": sorted({int(tag) for tag in rng.zipf(1.5, rng.integers(0, 4)) - 1 if tag < 40}),
            "price": None if rng.random() < 0.1 else float(rng.random()),
        }
        for _ in range(1_000)
    ]
    owners = [(i, tag) for i, item in enumerate(items) for tag in item["tags"]]
    coloured = [(i, item["colour"]) for i, item in enumerate(items) if item["colour"] is not None]
    columns: dict[str, Any] = {
        "items": len(items),
        "features": 3,
        "0.owners": np.array([i for i, _ in coloured]),
        "0.keys": np.array([colour for _, colour in coloured]),
        "1.owners": np.array([i for i, _ in owners]),
        "1.keys": np.array([tag for _, tag in owners]),
        "2.values": np.array([np.nan if item["price"] is None else item["price"] for item in items]),
    }
    sets = kind(columns)
    for condition in CONDITIONS:
        found = evaluate(np.asarray(compile_filter(condition, SCHEMA)), sets)
        positions = sets.positions(found) if kind is DenseSets else np.array(found.to_array())
        expected = [i for i, item in enumerate(items) if matches(condition, item, SCHEMA)]
        assert positions.tolist() == expected, str(condition)
        if kind is DenseSets:
            assert sets.count(found) == len(expected)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ops.load()
    folder: Path = tmp_path_factory.mktemp("work") / "small"
    prepare(Workload("small", (CANDIDATES,), ITEMS, 32, max_candidates=ITEMS), folder, Path())
    tune(folder, [CANDIDATES], specs=("IVF{lists},Flat",), tuned=8)
    return folder


def test_search_and_scoring_of_the_mesh_answer_as_the_one_model(workload: Path) -> None:
    """Without servers: tower, retriever and scoring network, everything looked at, beside the exported network."""
    artifact = workload / "unified" / "retrieval" / "1"
    network: Any = torch.jit.load(str(artifact / "model.pt")).eval()
    scoring: Any = torch.jit.load(str(workload / "mesh" / "scoring" / "1" / "model.pt")).eval()
    tower: Any = torch.jit.load(str(workload / "mesh" / "tower" / "1" / "model.pt")).eval()
    settings = json.loads((workload / f"retrieval-{CANDIDATES}.json").read_text())
    with np.load(workload / "requests.npz") as stored:
        requests = {name: torch.from_numpy(stored[name][-32:]) for name in stored.files}
    clusters = read_manifest(artifact).index.clusters
    for listed in (0, ITEMS):  # through the index, and through the list of what passes
        retriever = Retriever(workload, {**settings, "listed": listed})
        mesh, one = [], []
        for row in range(32):
            given = {name: values[row : row + 1] for name, values in requests.items()}
            weights = torch.full((1, 2), torch.nan)
            limits = torch.tensor([[clusters, CANDIDATES]], dtype=torch.int32)
            with torch.inference_mode():
                query = tower(given["user_id"], given["history"])[0]
                asked = (query[0].numpy(), given["filter"][0].numpy(), given["exclude"][0].numpy())
                found, scores = (torch.from_numpy(a)[None] for a in retriever.search(*asked, CANDIDATES, True))
                ids, values, _, count = scoring(query, given["history"], found, scores, weights)
                expected = network(
                    given["user_id"], given["history"], given["filter"], given["exclude"], weights, limits
                )
            assert int(count) == int(expected[3])
            mesh.append(ids[0, : int(count)].numpy())
            one.append(expected[0][0, : int(count)].numpy())
            _, here, there = np.intersect1d(mesh[-1], one[-1], return_indices=True)
            np.testing.assert_allclose(values[0][here], expected[1][0][there], rtol=1e-2)  # vectors are float16
        assert overlap(mesh, one) >= 0.99


def test_settings_find_what_the_one_model_finds(workload: Path) -> None:
    settings = json.loads((workload / f"retrieval-{CANDIDATES}.json").read_text())
    for place, recall in settings["unified_recall"].items():
        assert settings["recall"][place] >= recall - 0.001


def test_queries_are_the_towers(workload: Path) -> None:
    network: Any = torch.jit.load(str(workload / "unified" / "retrieval" / "1" / "model.pt")).eval()
    with np.load(workload / "requests.npz") as stored:
        users = {name: stored[name][:300] for name in ("user_id", "history")}
    with torch.inference_mode():
        tower: Any = torch.jit.load(str(workload / "mesh" / "tower" / "1" / "model.pt")).eval()
        expected = tower(torch.from_numpy(users["user_id"]), torch.from_numpy(users["history"]))[0]
    np.testing.assert_allclose(queries_of(network, users), expected, rtol=1e-5)
