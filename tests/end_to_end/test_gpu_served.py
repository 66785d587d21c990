"""One version served on the CPU and on a GPU, side by side: the same answers. Skipped where torch finds no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from builder.serving.server import StockServer
from client import Condition, F, Request, Retrieval, RetrievalClient, item_in
from tests.end_to_end.conftest import ITEMS, Shop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.server,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

MODELS = ("retrieval", "retrieval_rank")
FILTERS: list[Condition | None] = [
    None,
    F.colour == "green",
    F.genres.any_of("Drama", "War") & (F.year >= 1990) & ~F.colour.is_in(["red"]),
    F.year.between(1960, 1969) | F.released.is_unknown(),
    F.genres.any_of("Rare"),
    F.genres.any_of("nobody has this"),
    item_in(range(0, 10 * ITEMS, 7)),
]


@dataclass(frozen=True)
class Both:
    """The two servers, and the bytes of the GPU that were taken while each started."""

    cpu: StockServer
    gpu: StockServer
    taken: tuple[int, int]


@pytest.fixture(scope="module")
def both(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    logs = tmp_path_factory.mktemp("logs")

    def free() -> int:
        return int(torch.cuda.mem_get_info(0)[0])

    before = free()
    with StockServer(repository, log=logs / "cpu.log") as cpu:
        between = free()
        with StockServer(repository, log=logs / "gpu.log", gpu=True) as gpu:
            yield Both(cpu, gpu, (before - between, between - free()))


def assert_same(one: Retrieval, other: Retrieval, note: str) -> None:
    np.testing.assert_array_equal(one.item_ids, other.item_ids, err_msg=note)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6, err_msg=note)
    np.testing.assert_allclose(one.task_scores, other.task_scores, rtol=1e-6, err_msg=note)


def test_the_models_are_on_the_gpu(both: Both) -> None:
    with triton.InferenceServerClient(both.gpu.url) as raw:
        for model in MODELS:
            (group,) = raw.get_model_config(model, as_json=True)["config"]["instance_group"]
            assert (group["kind"], group["count"]) == ("KIND_GPU", 1)
    assert both.gpu.log is not None
    log = both.gpu.log.read_text()
    for model in MODELS:
        assert f"ModelInstanceInitialize: {model}_0_0 (GPU device 0)" in log
    # What torch needs on a GPU, in the process of each model; the server itself takes the same in both.
    on_cpu, on_gpu = both.taken
    assert on_gpu - on_cpu > 100e6 * len(MODELS), both.taken


@pytest.mark.parametrize("condition", FILTERS, ids=str)
def test_answers_are_those_of_the_cpu(both: Both, shop: Shop, condition: Condition | None) -> None:
    with RetrievalClient(both.cpu.url, timeout=30.0) as cpu, RetrievalClient(both.gpu.url, timeout=30.0) as gpu:
        found = 0
        for at, query in enumerate(shop.queries[:20]):
            exclude = shop.ids[at : at + 5 * (at % 3)].tolist()
            one, other = (
                client.retrieve(query=query, filter=condition, exclude=exclude, k=50) for client in (cpu, gpu)
            )
            assert_same(one, other, f"query {at}")
            found += one.count
        assert (found > 0) != (condition is FILTERS[5])


def test_batches_are_answered_as_on_the_cpu(both: Both, shop: Shop) -> None:
    requests = [
        Request(query=query, filter=FILTERS[at % len(FILTERS)], k=1 + at % 50) for at, query in enumerate(shop.queries)
    ]
    with RetrievalClient(both.cpu.url, timeout=30.0) as cpu, RetrievalClient(both.gpu.url, timeout=30.0) as gpu:
        answers = zip(cpu.retrieve_many(requests), gpu.retrieve_many(requests), strict=True)
        for at, (one, other) in enumerate(answers):
            assert isinstance(one, Retrieval)
            assert isinstance(other, Retrieval)
            assert_same(one, other, f"request {at}")


def test_given_items_are_ranked_as_on_the_cpu(both: Both, shop: Shop) -> None:
    items = [*shop.ids[:200].tolist(), 10 * ITEMS]  # the last one is not in the catalogue
    with RetrievalClient(both.cpu.url, timeout=30.0) as cpu, RetrievalClient(both.gpu.url, timeout=30.0) as gpu:
        for at, query in enumerate(shop.queries[:10]):
            one, other = (client.rank(query=query, items=items) for client in (cpu, gpu))
            np.testing.assert_array_equal(one.item_ids, other.item_ids, err_msg=f"query {at}")
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6, err_msg=f"query {at}")
