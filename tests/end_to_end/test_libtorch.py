"""The artifact in plain LibTorch, without Python or a server, answers as the network in this process does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from builder import ops
from builder.config import Config
from builder.data.synthetic import synthetic
from builder.export.artifact import export
from builder.export.manifest import read_manifest
from builder.export.sources import read_source
from builder.training.run import load, train
from client import F, Status, compile_filter
from client.hashing import UNKNOWN_KEY
from client.schema import Schema
from tests.end_to_end.conftest import Shop
from tests.end_to_end.libtorch import harness

pytestmark = pytest.mark.slow

BAD = {3: Status.QUERY, 5: Status.FILTER_MALFORMED, 6: Status.EXCLUDE, 7: Status.SEARCH}


def requests(shop: Shop, schema: Schema) -> dict[str, np.ndarray]:
    """Sixteen rows: filters, exclusions, limits and weights of each row's own, and four rows that are wrong."""
    filters = [
        None,
        F.genres.any_of("Drama", "War") & (F.year >= 1990) & ~F.colour.is_in(["red"]),
        F.genres.any_of("Rare"),
        F.title_id.is_in(shop.ids[:100].tolist()),
    ]
    rows = 16
    batch = {
        "query": shop.queries[:rows].copy(),
        "filter": np.zeros((rows, 128), np.int64),
        "exclude": np.full((rows, 8), -1, np.int64),
        "task_weights": np.full((rows, 1), np.nan, np.float32),
        "search": np.zeros((rows, 2), np.int32),
    }
    for row in range(rows):
        if (condition := filters[row % len(filters)]) is not None:
            program = compile_filter(condition, schema)
            batch["filter"][row, : len(program)] = program
    batch["exclude"][:, :5] = shop.ids[np.arange(rows * 5).reshape(rows, 5) * 7]
    batch["task_weights"][4::3] = -0.5
    batch["search"][8:] = [5, 60]
    batch["query"][3, 2] = np.inf
    batch["filter"][5, :3] = [schema.fingerprint, 1, 99]
    batch["exclude"][6, 0] = -2
    batch["search"][7, 0] = -1
    return batch


def test_libtorch_answers_row_by_row_as_this_process_does(version: Path, shop: Shop) -> None:
    schema = read_manifest(version).read_schema()
    batch = requests(shop, schema)
    # Another order than forward's: only the names bind.
    answers = harness.run(version / "model.pt", dict(reversed(batch.items())))
    ops.load()
    network = torch.jit.load(str(version / "model.pt"))
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.inference_mode():
        together = network(**tensors)
    assert len(answers) == len(together) == 6
    for at, (one, other) in enumerate(zip(answers, together, strict=True)):
        assert one.dtype == other.numpy().dtype
        np.testing.assert_array_equal(one, other.numpy(), err_msg=f"output {at}")
    for row in range(16):
        with torch.inference_mode():
            alone = network(**{name: tensor[row : row + 1] for name, tensor in tensors.items()})
        for at, (one, other) in enumerate(zip(answers, alone, strict=True)):
            np.testing.assert_array_equal(one[row], other[0].numpy(), err_msg=f"row {row}, output {at}")
    item_ids, _, _, count, status, stats = answers
    assert status[:, 0].tolist() == [BAD.get(row, 0) for row in range(16)]
    for row in range(16):
        if row in BAD:
            assert (count[row, 0], set(item_ids[row].tolist())) == (0, {-1})
            continue
        found = item_ids[row, : count[row, 0]]
        assert len(found) == min(50, stats[row, 1])
        assert not set(found.tolist()) & set(batch["exclude"][row].tolist())


def test_an_input_under_another_name_is_no_input(version: Path, shop: Shop) -> None:
    batch = requests(shop, read_manifest(version).read_schema())
    batch["queries"] = batch.pop("query")
    with pytest.raises(harness.ServeModelError, match="forward takes query, which is not among the inputs"):
        harness.run(version / "model.pt", batch)


def test_a_tower_with_attention(tmp_path: Path) -> None:
    data = synthetic(tmp_path / "data", users=600, items=1_000, seed=1)
    text = data.read_text().replace("network: {dims: 32, history: 50}", "network: {dims: 32, history: 10, ATTENTION}")
    text = text.replace("ATTENTION", "pooling: attention, blocks: 2") + "index: {clusters: 20}\n"
    data.write_text(text + "training: {epochs: 2, batch: 256, negatives: 64, learning_rate: 0.01}\n")
    trained = load(train(Config.load(data), tmp_path / "run", False))
    model = export(read_source(tmp_path / "run"), tmp_path / "repository", model="retrieval") / "model.pt"
    asking = trained.held_out(sample=20)
    wanted = asking.history[:, -8:].copy()
    wanted[0], wanted[1, :5], wanted[2, 3:6], wanted[3, 6] = -1, -1, -1, 5  # none, few, a gap, an unknown id
    features = {name: array.copy() for name, array in asking.features.items()}
    for array in features.values():
        array[0] = np.nan if array.dtype == np.float32 else UNKNOWN_KEY
    query = trained.queries(dataclasses.replace(asking, features=features, history=wanted)).numpy()
    scores = query @ trained.item_vectors.T
    best = np.sort(scores, axis=1)[:, ::-1][:, :10]
    for width in (8, 16, 64):
        inputs = {
            **features,
            "history": np.pad(wanted, [(0, 0), (width - 8, 0)], constant_values=-1),
            "filter": np.zeros((20, 2), np.int64),
            "exclude": np.full((20, 1), -1),
            "task_weights": np.full((20, 1), np.nan, np.float32),
            "search": np.tile(np.array([[20, 0]], np.int32), (20, 1)),  # all clusters: exact
        }
        item_ids, found = harness.run(model, inputs)[:2]
        positions = trained.catalogue.find(item_ids[:, :10].ravel()).reshape(20, 10)
        np.testing.assert_allclose(found[:, :10], best, atol=2e-3)  # rows are float16
        np.testing.assert_allclose(np.take_along_axis(scores, positions, 1), best, atol=2e-3)
    popularity = np.bincount(trained.dataset.train.items, minlength=1_000)
    assert popularity[positions[0]].min() > np.sort(popularity)[-101]
