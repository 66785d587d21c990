"""Queries on a GPU and results there, through CUDA's shared memory. Skipped where torch finds no GPU.

Once with the server's default, that the server copies what it is given to the host for the model, and once with models
that get it where it lies.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from builder.serving.server import StockServer
from client import AsyncRetrievalClient, DeviceArray, F, InvalidValue, Request, Retrieval, RetrievalClient
from client._device import DeviceRows, Lease, vector_on_device
from tests.end_to_end.conftest import Shop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.server,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

FORCE = 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }\n'


@pytest.fixture(scope="module", params=["copied to the host for the model", "given to the model as they lie"])
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[StockServer]:
    folder = tmp_path_factory.mktemp("gpu")
    copy = folder / "repository"
    shutil.copytree(repository, copy)
    if request.param.startswith("given"):
        found = list(copy.glob("*/configs/python-gpu.pbtxt"))
        assert len(found) == 2  # the retrieval and the ranking model
        for path in found:
            path.write_text(path.read_text() + FORCE)
    with StockServer(copy, log=folder / "log", gpu=True) as server:
        yield server


@pytest.fixture(scope="module")
def queries(shop: Shop) -> torch.Tensor:
    return torch.from_numpy(shop.queries).cuda()


def shared(server: StockServer) -> RetrievalClient:
    return RetrievalClient(server.url, timeout=30, shared_memory="cuda:0", headers=server.admin_headers)


def regions(server: StockServer) -> int:
    with triton.InferenceServerClient(server.url) as raw:
        return len(raw.get_cuda_shared_memory_status(headers=server.admin_headers).regions)


def assert_same(one: Any, other: Any) -> None:
    assert isinstance(one, Retrieval), one
    assert isinstance(one.item_ids, DeviceArray)
    ids, scores, tasks = (torch.from_dlpack(each) for each in (one.item_ids, one.scores, one.task_scores))
    assert all(tensor.device == torch.device("cuda:0") for tensor in (ids, scores, tasks))
    assert torch.equal(ids.cpu(), torch.from_numpy(other.item_ids.copy()))
    assert torch.equal(scores.cpu(), torch.from_numpy(other.scores.copy()))
    assert torch.equal(tasks.cpu(), torch.from_numpy(other.task_scores.copy()))
    np.testing.assert_array_equal(np.asarray(one.item_ids), other.item_ids)
    assert list(one) == list(other)


def test_results_are_those_of_messages(server: StockServer, shop: Shop, queries: torch.Tensor) -> None:
    conditions = [None, F.genres.any_of("Drama", "War"), F.year >= 1980]
    asked = [Request(query=query, filter=conditions[at % 3], k=1 + at % 50) for at, query in enumerate(shop.queries)]
    there = [replace(one, query=queries[at]) if at % 5 else one for at, one in enumerate(asked)]
    with RetrievalClient(server.url, timeout=30) as client, shared(server) as device:
        expected = client.retrieve_many(asked)
        assert all(one.count for one in expected)
        for one, other in zip(device.retrieve_many(there), expected, strict=True):
            assert_same(one, other)
        for at in range(20):
            assert_same(device.retrieve(query=queries[at], filter=asked[at].filter, k=asked[at].k), expected[at])
        items = shop.ids[:100]
        one, other = device.rank(query=queries[0], items=items), client.rank(query=shop.queries[0], items=items)
        np.testing.assert_array_equal(one.item_ids, other.item_ids)
    assert regions(server) == 0


def test_with_asyncio(server: StockServer, shop: Shop, queries: torch.Tensor) -> None:
    """Requests that are batched by the server, some of them of the host."""
    asked = shop.queries[:16]

    async def calls() -> list[Retrieval]:
        async with AsyncRetrievalClient(
            server.url, timeout=30, shared_memory="cuda:0", headers=server.admin_headers
        ) as device:
            every = [query if at % 4 == 0 else queries[at] for at, query in enumerate(asked)]
            return await asyncio.gather(*(device.retrieve(query=query) for query in every * 4))

    with RetrievalClient(server.url, timeout=30) as client:
        expected = client.retrieve_many(Request(query=query) for query in asked)
    for number, one in enumerate(asyncio.run(calls())):
        assert_same(one, expected[number % 16])
    assert regions(server) == 0


def test_a_query_that_another_stream_still_computes(server: StockServer, shop: Shop, queries: torch.Tensor) -> None:
    with RetrievalClient(server.url, timeout=30) as client, shared(server) as device:
        expected = client.retrieve(query=shop.queries[7])
        device.retrieve(query=queries[0])
        for _ in range(5):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                late = torch.zeros_like(queries[7])
                torch.cuda._sleep(50_000_000)  # clock cycles, some 30 ms
                late.copy_(queries[7])
                assert_same(device.retrieve(query=late), expected)


def test_a_result_stays_while_something_refers_to_it(server: StockServer, shop: Shop, queries: torch.Tensor) -> None:
    with RetrievalClient(server.url, timeout=30) as client, shared(server) as device:
        expected = client.retrieve_many(Request(query=query) for query in shop.queries[:8])
        tensors = [torch.from_dlpack(device.retrieve(query=query).item_ids) for query in queries[:8]]
        addresses = {tensor.data_ptr() for tensor in tensors}
        assert len(addresses) == 8
        for tensor, other in zip(tensors, expected, strict=True):
            assert tensor.tolist() == other.item_ids.tolist()
        assert regions(server) == 8
        kept = tensors[3]
        del tensors, tensor
        for query in queries[:20]:
            device.retrieve(query=query)
        assert regions(server) == 8
        assert kept.tolist() == expected[3].item_ids.tolist()
    assert regions(server) == 0
    assert kept.tolist() == expected[3].item_ids.tolist()  # after the client too


def test_work_that_is_queued_still_reads_what_it_was_given(
    server: StockServer, shop: Shop, queries: torch.Tensor
) -> None:
    """Nothing refers to the results any more when it begins."""
    copies = []
    with RetrievalClient(server.url, timeout=30) as client, shared(server) as device:
        for query in queries[:10]:
            given = torch.from_dlpack(device.retrieve(query=query).item_ids)
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda._sleep(20_000_000)
                copies.append(given + 0)
            del given
        assert regions(server) == 1
        torch.cuda.synchronize()
        expected = client.retrieve_many(Request(query=query) for query in shop.queries[:10])
    for copy, other in zip(copies, expected, strict=True):
        assert copy.tolist() == other.item_ids.tolist()


def test_memory_goes_back_to_the_device(server: StockServer, queries: torch.Tensor) -> None:
    def round_of_results() -> int:
        with shared(server) as device:
            results = [device.retrieve(query=query) for query in queries]
            assert regions(server) > 100
            del results
        return int(torch.cuda.mem_get_info(0)[0])

    first = round_of_results()
    assert abs(round_of_results() - first) < 32e6  # what is left is the server's and torch's


def test_rows_of_many_allocations_are_copied_as_those_of_one_matrix() -> None:
    """Some of which may be neighbours, which CUDA may not copy at once."""
    from client._cuda_memory import CudaMemory

    cupy = imported_cupy()
    values = np.random.default_rng(5).normal(size=(64, 128)).astype(np.float32)  # 512 bytes each: CUDA leaves no gap
    before = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(None)
    try:
        apart = [cupy.asarray(row) for row in values]
    finally:
        cupy.cuda.set_allocator(before)
    memory = CudaMemory("unregistered", 1 << 21, 0)
    for given in (apart, list(cupy.asarray(values)), list(torch.from_numpy(values).cuda())):
        rows = [vector_on_device("query", row, np.float32, 0) for row in given]
        memory.write(0, DeviceRows((64, 128), values.dtype, [np.zeros(128, np.float32)]))
        memory.write(0, DeviceRows((64, 128), values.dtype, rows))
        found = memory.read(0, (64, 128), values.dtype, Lease(lambda exported: None))
        np.testing.assert_array_equal(np.asarray(found), values)


def imported_cupy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a CUDA that it does not find, and does without
        return pytest.importorskip("cupy")


def test_with_cupy(server: StockServer, shop: Shop) -> None:
    cupy = imported_cupy()
    with RetrievalClient(server.url, timeout=30) as client, shared(server) as device:
        expected = client.retrieve(query=shop.queries[2])
        result = device.retrieve(query=cupy.asarray(shop.queries[2]))
        np.testing.assert_array_equal(cupy.asnumpy(cupy.from_dlpack(result.item_ids)), expected.item_ids)
        np.testing.assert_array_equal(cupy.asnumpy(cupy.from_dlpack(result.scores)), expected.scores)


def test_the_block_of_the_guide(server: StockServer, capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    (block,) = (block for block in blocks if 'shared_memory="cuda:0"' in block)
    names: dict[str, Any] = {"KEY": server.admin_key}
    exec(block.replace("localhost:8001", server.url), names)
    assert names["ids"].tolist() == names["result"].item_ids.tolist()
    assert capsys.readouterr().out.startswith("cuda:0 [")


def test_what_is_refused(server: StockServer, queries: torch.Tensor) -> None:
    with pytest.raises(InvalidValue, match="got cuda:99, this process sees"):
        RetrievalClient(server.url, shared_memory="cuda:99")
    with (
        RetrievalClient(server.url, timeout=30) as client,
        pytest.raises(InvalidValue, match="query: is on cuda:0; make the client with shared_memory='cuda:0'"),
    ):
        client.retrieve(query=queries[0])
    with shared(server) as device:
        with pytest.raises(InvalidValue, match="query: got float16 on cuda:0, expected float32"):
            device.retrieve(query=queries[0].half())
        with pytest.raises(InvalidValue, match="contiguous"):
            device.retrieve(query=queries[0].repeat(2)[::2])
        with pytest.raises(InvalidValue, match="query: cannot be read through DLPack: "):
            device.retrieve(query=queries[0].clone().requires_grad_())
        bad = queries[0].clone()
        bad[3] = torch.nan
        good, refused = device.retrieve_many([Request(query=queries[0]), Request(query=bad)])
        assert isinstance(good, Retrieval)
        assert "the query vector holds NaN or infinity" in str(refused)
