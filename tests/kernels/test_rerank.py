"""rerank against its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from builder import ops
from tests.kernels import reference
from tests.kernels.arguments import arguments

pytestmark = pytest.mark.usefixtures("instruction_set")

OF_REQUESTS = ("query", "history", "rows", "scores")


def random_arguments(seed: int) -> dict[str, Any]:
    """One index of `rows` rows, three requests, and layers of any size; every fourth reads no vectors."""
    rng = np.random.default_rng(seed)
    dims, hidden = int(rng.choice([1, 16, 33, 70])), int(rng.choice([1, 16, 40, 64, 130]))
    second, tasks = int(rng.choice([1, 8, 32, 65])), int(rng.choice([1, 2, 17]))
    read = dims if seed % 4 else 0
    items, width, most = int(rng.choice([1, 7, 300])), int(rng.choice([0, 1, 9])), int(rng.choice([0, 3, 50]))
    blocks = -(-(items + 5) // 32)
    item_rows = rng.permutation(32 * blocks)[:items].astype(np.int32)
    ids = np.full(32 * blocks, -1, np.int64)
    ids[item_rows] = np.sort(rng.choice(10 * items, items, replace=False))
    neighbours = np.full((items, width), -1, np.int32)
    for row in neighbours:
        count = int(rng.integers(0, min(width, items) + 1))
        row[:count] = rng.choice(item_rows, count, replace=False)
    history = rng.integers(-1, 10 * items, (3, int(rng.choice([1, 20, 70]))))
    rows = rng.integers(0, 32 * blocks, (3, int(rng.choice([0, 1, 23, 24, 25, 100])))).astype(np.int32)

    def layer(inputs: int, outputs: int) -> np.ndarray:
        padded = np.zeros((inputs, -(-outputs // 16) * 16), np.float32)
        padded[:, :outputs] = rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)
        return padded

    return {
        "query": rng.normal(size=(3, dims)).astype(np.float32),
        "history": history,
        "rows": rows,
        "scores": rng.normal(size=rows.shape).astype(np.float32),
        "vectors": rng.normal(size=(32 * blocks, dims)).astype(np.float16),
        "scales": rng.random((blocks, 32), np.float32),
        "items": rng.normal(size=(32 * blocks, hidden)).astype(np.float16),
        "ids": ids,
        "item_rows": item_rows,
        "neighbours": neighbours,
        "weights": rng.random(neighbours.shape, np.float32),
        "user": layer(read + 2, hidden),
        "first": layer(read + 5, hidden),
        "second": layer(hidden + 1, second),
        "output": layer(second + 6, tasks),
        "most": most,
        "tasks": tasks,
    }


def run(given: dict[str, Any]) -> np.ndarray:
    tensors = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in given.items()}
    return ops.rerank(**tensors).numpy()


@pytest.mark.parametrize("seed", range(40))
def test_random_rerankers(seed: int) -> None:
    given = random_arguments(seed)
    found = run(given)
    assert found.shape == (*given["rows"].shape, given["tasks"])
    for b in range(3):
        expected = reference.rerank(**{**given, **{name: given[name][b] for name in OF_REQUESTS}})
        np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-4, err_msg=f"seed {seed}")


@pytest.mark.parametrize("seed", [1, 2, 7])
def test_a_candidate_scores_the_same_whatever_stands_beside_it(seed: int) -> None:
    given = random_arguments(seed)
    given["rows"] = np.arange(3 * 30, dtype=np.int32).reshape(3, 30) % len(given["ids"])
    given["scores"] = np.random.default_rng(seed).normal(size=(3, 30)).astype(np.float32)
    whole = run(given)
    alone = {name: given[name][1:2] for name in OF_REQUESTS}
    for m in (0, 23, 24, 29):
        one = {**given, **alone, "rows": given["rows"][1:2, m : m + 1], "scores": given["scores"][1:2, m : m + 1]}
        np.testing.assert_array_equal(run(one)[0, 0], whole[1, m], f"seed {seed}, candidate {m}")


def test_rows_that_do_not_exist_are_never_followed() -> None:
    given = arguments("rerank")
    rows = given["rows"].clone()
    good = ops.rerank(**given)
    rows[:, ::2] = torch.tensor([-1, 2**31 - 1, -(2**31)], dtype=torch.int32)[:, None]
    found = ops.rerank(**{**given, "rows": rows})
    assert torch.equal(found[:, 1::2], good[:, 1::2])
    for item_rows in (-3, 2**31 - 1):  # what is near a damaged id may be missed, and is not followed
        damaged = torch.full_like(given["item_rows"], item_rows)
        assert torch.isfinite(ops.rerank(**{**given, "item_rows": damaged})[:, :5]).all()


def test_an_index_without_rows() -> None:
    given = random_arguments(1)
    for name in ("vectors", "scales", "items", "ids", "item_rows", "neighbours", "weights"):
        given[name] = given[name][:0]
    given["rows"], given["scores"] = np.zeros((3, 2), np.int32), np.zeros((3, 2), np.float32)
    assert (run(given) == 0).all()
