"""What the client does over gRPC, against the stock server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import numpy as np
import pytest
import tritonclient.grpc as triton
from click.testing import CliRunner

from builder.cli.main import cli
from builder.serving.server import StockServer
from client import (
    AccessDenied,
    AsyncRetrievalClient,
    DeadlineExceeded,
    F,
    Request,
    Retrieval,
    RetrievalClient,
    Retry,
    ServerError,
    UnknownName,
)
from tests.end_to_end.conftest import Shop

pytestmark = pytest.mark.server

CONDITION = F.genres.any_of("Drama", "War") & (F.year >= 1980)


def own_slots() -> list[Path]:
    return list(Path("/dev/shm").glob(f"silvertriton-client-{os.getpid()}-*"))


def assert_same(one: Any, other: Any) -> None:
    assert isinstance(one, Retrieval), one
    assert isinstance(other, Retrieval), other
    np.testing.assert_array_equal(one.item_ids, other.item_ids)
    np.testing.assert_array_equal(one.scores, other.scores)


def requests(shop: Shop, count: int) -> list[Request]:
    return [
        Request(query=query, filter=CONDITION if row % 2 else None, exclude=shop.ids[: 100 * (row % 3)])
        for row, query in enumerate(shop.queries[:count])
    ]


def test_shared_memory_gives_the_same_answers(server: StockServer, client: RetrievalClient, shop: Shop) -> None:
    asked = requests(shop, 64)
    expected = client.retrieve_many(asked)
    with RetrievalClient(server.url, timeout=20, shared_memory=True, headers=server.admin_headers) as shared:
        for _ in range(3):  # sizes are learnt, then outputs travel through the slot too
            for one, other in zip(shared.retrieve_many(asked), expected, strict=True):
                assert_same(one, other)
            assert_same(shared.retrieve(query=shop.queries[1], filter=CONDITION, exclude=shop.ids[:100]), expected[1])
        assert 1 <= len(own_slots()) <= 2
        items = shop.ids[:40]
        one, other = (of.rank(query=shop.queries[0], items=items) for of in (shared, client))
        np.testing.assert_array_equal(one.item_ids, other.item_ids)
    assert own_slots() == []


def test_shared_memory_with_asyncio(server: StockServer, client: RetrievalClient, shop: Shop) -> None:
    asked = requests(shop, 16)
    expected = client.retrieve_many(asked)

    async def calls() -> list[Retrieval]:
        async with AsyncRetrievalClient(
            server.url, timeout=20, shared_memory=True, headers=server.admin_headers
        ) as shared:
            ask = [
                shared.retrieve(query=one.query, filter=one.filter, exclude=one.exclude)
                for _ in range(4)
                for one in asked
            ]
            return await asyncio.gather(*ask)

    for number, one in enumerate(asyncio.run(calls())):
        assert_same(one, expected[number % 16])
    assert own_slots() == []


def test_a_request_given_up_does_not_spoil_the_next_ones(server: StockServer, shop: Shop) -> None:
    """Its slot is left to the server, which may still write there."""
    with RetrievalClient(server.url, timeout=20, shared_memory=True, headers=server.admin_headers) as shared:
        # Few, as one of thousands may end this server (docs/robustness.md).
        expected = [shared.retrieve(query=query) for query in shop.queries[:5]]
        for number, query in enumerate(shop.queries[:5]):
            with contextlib.suppress(DeadlineExceeded):  # most of them
                shared.retrieve_many([Request(query=one) for one in shop.queries], timeout=0.002)
            assert_same(shared.retrieve(query=query), expected[number])
    assert own_slots() == []


@pytest.fixture
def restartable(repository: Path, tmp_path: Path) -> Iterator[StockServer]:
    with StockServer(repository, log=tmp_path / "log") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("shared_memory", [False, True])
def test_a_restarted_server_is_found_again(
    restartable: StockServer, repository: Path, shop: Shop, shared_memory: bool
) -> None:
    port = restartable.grpc_port
    retry = Retry(attempts=1000, most=0.2)
    settings: dict[str, Any] = {"retry": retry, "shared_memory": shared_memory, "headers": restartable.admin_headers}
    with RetrievalClient(restartable.url, timeout=60, **settings) as client:
        expected = client.retrieve(query=shop.queries[0])
        client.retrieve(query=shop.queries[0])
        restartable.stop()
        with StockServer(repository, grpc_port=port, admin_key=restartable.admin_key):
            assert_same(client.retrieve(query=shop.queries[0]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("shared_memory", [False, True])
def test_a_server_killed_under_load(restartable: StockServer, shop: Shop, shared_memory: bool) -> None:
    """No call fails and no answer is wrong."""
    wrong, answered = list[object](), [0] * 4
    retry = Retry(attempts=1000, most=0.2)
    settings: dict[str, Any] = {"retry": retry, "shared_memory": shared_memory, "headers": restartable.admin_headers}
    with RetrievalClient(restartable.url, timeout=90, **settings) as client:
        expected = [client.retrieve(query=query).item_ids.tolist() for query in shop.queries[:20]]
        ended = threading.Event()

        def load(worker: int) -> None:
            try:
                while not ended.is_set():
                    number = answered[worker] % 20
                    found = client.retrieve(query=shop.queries[number]).item_ids.tolist()
                    if found != expected[number]:
                        wrong.append((number, found))
                    answered[worker] += 1
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=load, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        try:
            while min(answered) < 20 and not wrong:
                time.sleep(0.01)
            assert restartable._process is not None
            restartable._process.kill()
            restartable.restart()
            before = list(answered)
            while any(now < then + 20 for now, then in zip(answered, before, strict=True)) and not wrong:
                time.sleep(0.01)
            ended.set()
            for thread in threads:
                thread.join()
        finally:
            ended.set()
    assert wrong == []


@pytest.mark.slow
def test_a_filter_feature_that_a_replaced_artifact_adds(shop: Shop, repository: Path, tmp_path: Path) -> None:
    """The client was connected to an artifact that did not filter by year; it needs not be made anew."""
    for name in ("vectors.npy", "queries.npy", "items.parquet"):
        (tmp_path / name).symlink_to(shop.folder / name)
    config = (shop.folder / "retrieval.yaml").read_text()
    (tmp_path / "retrieval.yaml").write_text(
        config.replace("name: year, kind: number, filter: true", "name: year, kind: number")
    )
    before = tmp_path / "model_repository"
    arguments = ["export", str(tmp_path / "retrieval.yaml"), "--repository", str(before)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with StockServer(before) as server:
        port = server.grpc_port
        client = RetrievalClient(server.url, timeout=60, retry=Retry(attempts=1000, most=0.2))
        client.retrieve(query=shop.queries[0], filter=F.genres.any_of("Drama"))
        with pytest.raises(UnknownName, match="'year' cannot be filtered by"):
            client.retrieve(query=shop.queries[0], filter=F.year >= 1980)
    with client, StockServer(repository, grpc_port=port) as server, RetrievalClient(server.url, timeout=60) as other:
        for condition in (F.year >= 1980, F.genres.any_of("Drama")):
            expected = other.retrieve(query=shop.queries[0], filter=condition)
            assert_same(client.retrieve(query=shop.queries[0], filter=condition), expected)


def test_shared_memory_that_the_server_cannot_open(
    server: StockServer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    import client._shared_memory as module

    def elsewhere(self: Any) -> Any:
        return module.service_pb2.SystemSharedMemoryRegisterRequest(
            name="elsewhere", key="/not-on-this-host", offset=0, byte_size=self.size
        )

    monkeypatch.setattr(module.SystemMemory, "register_request", elsewhere)
    with (
        RetrievalClient(server.url, timeout=20, shared_memory=True, headers=server.admin_headers) as shared,
        pytest.raises(ServerError, match="shared_memory= needs a server on this host"),
    ):
        shared.retrieve(query=shop.queries[0])
    assert own_slots() == []


def test_shared_memory_wants_the_key_of_the_server(server: StockServer, shop: Shop) -> None:
    for headers in ({}, {"triton-grpc-protocol-admin-key": "wrong"}):
        with (
            RetrievalClient(server.url, timeout=20, shared_memory=True, headers=headers) as shared,
            pytest.raises(AccessDenied, match="give its key with headers="),
        ):
            shared.retrieve(query=shop.queries[0])
    with RetrievalClient(server.url, timeout=20, shared_memory=True, headers=server.admin_headers) as shared:
        assert shared.retrieve(query=shop.queries[0], k=3).count == 3
    with triton.InferenceServerClient(server.url) as raw:  # closing a client tells the server to forget its slots
        status = raw.get_system_shared_memory_status(headers=server.admin_headers)
    assert not status.regions


ADMINISTRATION: dict[str, Callable[..., Any]] = {
    "index": lambda raw, **key: raw.get_model_repository_index(**key),
    "load": lambda raw, **key: raw.load_model("retrieval", config="{}", **key),
    "unload": lambda raw, **key: raw.unload_model("retrieval", **key),
    "memory": lambda raw, **key: raw.get_system_shared_memory_status(**key),
    "cuda memory": lambda raw, **key: raw.get_cuda_shared_memory_status(**key),
    "register": lambda raw, **key: raw.register_system_shared_memory("one", "/one", 8, **key),
    "trace": lambda raw, **key: raw.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}, **key),
    "log": lambda raw, **key: raw.update_log_settings({"log_verbose_level": 1}, **key),
}


@pytest.mark.parametrize("call", ADMINISTRATION.values(), ids=ADMINISTRATION)
def test_administration_over_grpc_wants_the_key(server: StockServer, call: Callable[..., Any]) -> None:
    with triton.InferenceServerClient(server.url) as raw:
        for headers in ({}, {"triton-grpc-protocol-admin-key": "wrong"}):
            with pytest.raises(triton.InferenceServerException, match="protocol is restricted"):
                call(raw, headers=headers)


@pytest.mark.parametrize(
    "path",
    [
        "repository/index", "repository/models/retrieval/load", "repository/models/retrieval/unload", "logging",
        "systemsharedmemory/region/one/register", "cudasharedmemory/status", "trace/setting",
        "models/retrieval/trace/setting", "models/retrieval/infer", "models/retrieval/generate",
    ],
)  # fmt: skip
def test_administration_and_inference_over_http_want_the_key(server: StockServer, path: str) -> None:
    body = None if path.endswith("status") else b"{}"
    for headers in ({}, {"admin-key": "wrong"}):
        with pytest.raises(HTTPError) as caught:
            urlopen(UrlRequest(f"http://127.0.0.1:{server.http_port}/v2/{path}", body, headers), timeout=10)
        assert caught.value.code == 403
        assert b"restricted" in caught.value.read()


def test_the_key_opens_what_changes_nothing(server: StockServer) -> None:
    with triton.InferenceServerClient(server.url) as raw:
        index = raw.get_model_repository_index(headers=server.admin_headers)
        assert {model.name for model in index.models} == {"retrieval", "retrieval_rank"}
        assert raw.get_trace_settings(headers=server.admin_headers).settings["trace_level"].value == ["OFF"]
        assert raw.is_server_ready()  # open to all
        assert raw.get_inference_statistics("retrieval").model_stats
        assert raw.get_server_metadata().version == "2.51.0"
