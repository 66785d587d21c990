"""The artifact in plain LibTorch, without Python or a server, answers as the network in this process does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from builder import ops
from builder.export.manifest import read_manifest
from client import F, Status, compile_filter
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
