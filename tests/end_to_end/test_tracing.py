"""OpenTelemetry: the stock server's spans arrive at a collector, as children of the client's."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from builder.serving.options import tracing_options
from builder.serving.server import StockServer
from client import RetrievalClient
from tests.end_to_end.conftest import Shop

pytestmark = pytest.mark.server

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP endpoint that keeps the spans of POST /v1/traces, in JSON."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[dict[str, Any]] = []
        self.services: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    def take(self, body: bytes) -> None:
        for resource in json.loads(body)["resourceSpans"]:
            attributes = {one["key"]: one["value"]["stringValue"] for one in resource["resource"]["attributes"]}
            self.services.add(attributes["service.name"])
            self.spans += [span for scope in resource["scopeSpans"] for span in scope["spans"]]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"] == name]


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            self.server.take(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def until_spans_arrive(collector: Collector, ask: Callable[[], object]) -> int:
    """How many times was asked. A loaded machine's exporter may give up on a batch; it does not send it again."""
    for asked in range(1, 13):
        ask()
        deadline = time.monotonic() + 8  # spans are sent every 5 seconds
        while not collector.named("InferRequest") and time.monotonic() < deadline:
            time.sleep(0.05)
        if collector.spans:
            return asked
    raise AssertionError("no span arrived")


def test_spans_are_children_of_the_clients(repository: Path, shop: Shop, collector: Collector, tmp_path: Path) -> None:
    options = tracing_options(collector.url, rate=0)
    with (
        StockServer(repository, log=tmp_path / "log", options=options) as server,
        RetrievalClient(server.url, timeout=20) as client,
    ):
        untraced = client.retrieve(query=shop.queries[0])

        def ask() -> None:
            traced = client.retrieve(query=shop.queries[0], headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
            assert traced.item_ids.tolist() == untraced.item_ids.tolist()

        asked = until_spans_arrive(collector, ask)
    assert collector.services == {"silvertriton"}
    assert {span["traceId"] for span in collector.spans} == {TRACE}  # none of the request without a parent
    requests, models, computes = (collector.named(name) for name in ("InferRequest", "retrieval", "compute"))
    assert 1 <= len(requests) == len(models) == len(computes) <= asked
    assert {span["parentSpanId"] for span in requests} == {PARENT}
    assert {span["parentSpanId"] for span in models} == {span["spanId"] for span in requests}
    assert {span["parentSpanId"] for span in computes} == {span["spanId"] for span in models}
    assert [event["name"] for event in models[0]["events"]] == ["REQUEST_START", "QUEUE_START", "REQUEST_END"]
    assert int(computes[0]["startTimeUnixNano"]) < int(computes[0]["endTimeUnixNano"])


def test_requests_without_a_parent_are_sampled(
    repository: Path, shop: Shop, collector: Collector, tmp_path: Path
) -> None:
    options = tracing_options(collector.url, rate=5)
    with (
        StockServer(repository, log=tmp_path / "log", options=options) as server,
        RetrievalClient(server.url, timeout=20) as client,
    ):
        asked = until_spans_arrive(collector, lambda: [client.retrieve(query=query) for query in shop.queries[:20]])
    roots = collector.named("InferRequest")
    assert len({span["traceId"] for span in roots}) == len(roots) <= asked * 4
    assert not any(span.get("parentSpanId") for span in roots)
