"""The CUDA operators on a real GPU, against those of the CPU. Skipped where torch finds none.

pytest tests/kernels/cuda/test_gpu.py
compute-sanitizer --tool memcheck python -m pytest tests/kernels/cuda/test_gpu.py -k "answers"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from builder import ops
from tests.kernels.arguments import ON_GPUS, Arguments, arguments
from tests.kernels.catalogue import Items, marked, marks
from tests.kernels.reference import Limits, Request

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def on_gpu(given: Arguments) -> Arguments:
    return {name: value.cuda() if isinstance(value, Tensor) else value for name, value in given.items()}


def call(operator: str, given: Arguments) -> list[Tensor]:
    wrapper: Callable[..., Any] = getattr(ops, operator)
    result = wrapper(**given)
    return [result] if isinstance(result, Tensor) else list(result)


def neighbours() -> Arguments:
    generator = np.random.default_rng(8)
    given = arguments("search")
    count = len(given["item_rows"])
    rows = np.stack([generator.choice(given["item_rows"].numpy(), 9, replace=False) for _ in range(count)])
    rows[::3, 5:] = -1
    return {
        "history": given["ids"][torch.from_numpy(generator.integers(0, len(given["ids"]), (3, 30)))],
        "rows": torch.from_numpy(np.stack([generator.permutation(given["item_rows"].numpy())[:50] for _ in range(3)])),
        "ids": given["ids"],
        "item_rows": given["item_rows"],
        "neighbours": torch.from_numpy(rows),
        "weights": torch.from_numpy(generator.random(rows.shape, np.float32)),
        "most": 20,
    }


def assert_same(expected: list[Tensor], results: list[Tensor], note: str) -> None:
    """Bit for bit; of a search the columns that the CPU has, and nothing in those beyond."""
    for one, other in zip(expected, results, strict=True):
        own = other.cpu()
        if one.dim() > 1 and own.shape[1] > one.shape[1]:
            assert (own[:, one.shape[1] :] <= -1).all(), note
            own = own[:, : one.shape[1]]
        assert torch.equal(one, own), note


@pytest.mark.parametrize("operator", [*ON_GPUS, "neighbour_scores"])
@pytest.mark.parametrize(("count", "batch"), [(300, 1), (300, 9), (40_000, 3), (40_000, 40)])
def test_answers_are_those_of_the_cpu(operator: str, count: int, batch: int) -> None:
    given = neighbours() if operator == "neighbour_scores" else arguments(operator, count, batch)
    assert_same(call(operator, given), call(operator, on_gpu(given)), f"{operator}, {count} items, {batch} requests")


def large_search() -> Arguments:
    """60,000 items in 400 clusters: enough for the wide search in all of its phases."""
    generator, count = np.random.default_rng(3), 60_000
    centres = 2 * generator.normal(size=(400, 48))
    cluster_of = generator.integers(400, size=count)
    items = Items(
        centres[cluster_of] + generator.normal(size=(count, 48)),
        marks(generator.random(count) < 0.3, generator.random(count) < 0.01),
        clusters=400,
        cluster_of=cluster_of,
        centroids=centres.astype(np.float32),
        spreads=np.ones(400),
        reach=[1.5, 1.0, 0.5],
        frequent=2_000,
    )
    programs = [(0, 0), marked(0), marked(1)]
    requests = [Request(query, programs[i % 3]) for i, query in enumerate(items.queries(generator, 24))]
    return items.arguments(requests, Limits(0, 100, 200, exact_rows=50))


def test_a_thousand_repeats_give_the_same() -> None:
    given = large_search()
    expected, moved = call("search", given), on_gpu(given)
    first = call("search", moved)
    for repeat in range(1_000):
        results = call("search", moved)
        if repeat % 100 == 0:
            assert_same(expected, results, f"repeat {repeat}")
        assert all(map(torch.equal, first, results)), f"repeat {repeat}"


def test_a_search_is_captured_in_a_graph_and_replayed_on_other_requests() -> None:
    given = large_search()
    moved = on_gpu(given)
    call("search", moved)  # what is loaded at the first call cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call("search", moved)
    for roll in (0, 5):
        for name in ("query", "filter", "exclude", "limits", "status"):
            moved[name].copy_(given[name].roll(roll, 0))
        graph.replay()
        torch.cuda.synchronize()
        rolled = {name: given[name].roll(roll, 0) for name in ("query", "filter", "exclude", "limits", "status")}
        assert_same(call("search", {**given, **rolled}), results, f"requests moved by {roll}")


def test_streams_do_not_wait_for_each_other_and_give_the_same() -> None:
    moved = on_gpu(large_search())
    expected = call("search", moved)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for stream in streams * 5:
        with torch.cuda.stream(stream):
            results.append(call("search", moved))
    torch.cuda.synchronize()
    for result in results:
        assert all(map(torch.equal, expected, result))


def test_nothing_waits_for_the_device() -> None:
    """A search that is only queued returns before it is done."""
    moved = on_gpu(large_search())
    call("search", moved)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second of the device's clock
    done = torch.cuda.Event()
    call("search", moved)
    done.record()
    assert not done.query()
    torch.cuda.synchronize()


def test_tensors_on_two_devices_are_refused() -> None:
    given = arguments("rescore")
    with pytest.raises(RuntimeError, match=r"rescore: \w+: got a tensor on another device, expected one on the GPU of"):
        call("rescore", {**on_gpu(given), "rows": given["rows"]})
