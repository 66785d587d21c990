"""Versions that can be told apart by their answers, and clients that look at every answer while versions change."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.config import Config
from builder.export.artifact import export
from builder.export.sources import from_embeddings
from client import AsyncRetrievalClient, ConnectionFailed, F, Ranking, Request, Retrieval, RetrievalClient

FIRST = 1_000_000  # the ids of version n are n * FIRST + row
DIMS, COLOURS = 16, ("red", "green", "blue")


@dataclass(frozen=True)
class Made:
    """What tells a version: K and the name of its task; every second one also filters by year."""

    number: int
    results: int
    task: str
    rows: int


def make(folder: Path, repository: Path, number: int, *, rows: int = 400, dims: int = DIMS) -> Made:
    """Export version `number`; it differs from the one before in items, filter features, results and task."""
    made = Made(number, 10 + 5 * (number % 3), "watch" if number % 3 else "click", rows)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    np.save(folder / "vectors.npy", rng.normal(size=(rows, dims)).astype(np.float32))
    items = {
        "id": np.arange(rows) + number * FIRST,
        "colour": [COLOURS[row % 3] for row in range(rows)],
        "year": [1990 + row % 30 for row in range(rows)],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    path = folder / "retrieval.yaml"
    path.write_text(f"""
name: v{number}
embeddings: {{path: vectors.npy}}
data:
  items:
    path: items.parquet
    id: id
    features:
      - {{name: colour, kind: category, filter: true}}
      - {{name: year, kind: number, filter: {str(number % 2 == 0).lower()}}}
index: {{results: {made.results}, clusters: 4}}
""")
    source = dataclasses.replace(from_embeddings(Config.load(path)), tasks=(made.task,))
    version = export(source, repository)
    assert version.name == str(number), version
    return made


@dataclass
class Load:
    """Clients of one server that ask until `stop`, threads and asyncio tasks, retrieving, batching and ranking.

    `done`: (when it was sent, latency in seconds, the version that answered) of every call; `failed` and `mixed`: what
    went wrong. No call is tried again, once a client is connected. `settings`: of every client. `headers`: of one that
    uses shared memory, which wants the server's key; left out, there is none.
    """

    address: str
    versions: dict[int, Made]
    dims: int = DIMS
    settings: dict[str, Any] = field(default_factory=lambda: {"timeout": 10.0, "retry": None})
    headers: dict[str, str] = field(default_factory=dict)
    done: list[tuple[float, float, int]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._ended = threading.Event()
        calls = [self._retrieves, self._batches, self._ranks, self._hedged]
        calls += [self._shares_memory] if self.headers else []
        self._threads = [threading.Thread(target=self._threaded, args=(call,)) for call in calls]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._asynchronous())))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def until(self, what: Callable[[int], bool], calls: int = 20, seconds: float = 20.0) -> None:
        """Wait for that many more calls that a version answered for which `what` is true."""
        first, ends = len(self.done), time.monotonic() + seconds
        while sum(what(version) for _, _, version in self.done[first:]) < calls:
            assert time.monotonic() < ends, f"{len(self.done) - first} calls: {self.failed[:3]}"
            assert self.failed == []
            time.sleep(0.02)

    def wait(self, seconds: float) -> None:
        """Let so much time pass."""
        time.sleep(seconds)

    def _threaded(self, call: Callable[[RetrievalClient, np.random.Generator], list[Any]]) -> None:
        rng = np.random.default_rng(len(self._threads))
        settings = dict(self.settings)
        if call == self._hedged:
            settings["hedge"] = 0.05
        elif call == self._shares_memory:
            settings |= {"shared_memory": True, "headers": self.headers}
        with RetrievalClient(self.address, **settings) as client:
            while not self._ended.is_set():  # a busy machine may not answer in time for a connection
                with contextlib.suppress(ConnectionFailed):
                    call(client, rng)
                    break
            while not self._ended.is_set():
                self._timed(lambda: call(client, rng))

    def _timed(self, call: Callable[[], list[Any]]) -> None:
        started, at = time.perf_counter(), time.monotonic()
        try:
            results = call()
        except Exception as error:
            self.failed.append(f"{type(error).__name__}: {error}")
            return
        self._look(results, at, time.perf_counter() - started)

    def _look(self, results: list[Any], at: float, latency: float) -> None:
        for result in results:
            if fault := self._fault(result):
                self.mixed.append(f"{fault}: {result!r} of version {getattr(result, 'version', None)}")
        self.done.append((at, latency, results[0].version))

    def _fault(self, result: Any) -> str:
        """What shows that an answer is not wholly of the version that it says."""
        if not isinstance(result, Retrieval | Ranking):
            return "a refused request"
        made = self.versions.get(result.version or 0)
        if made is None:
            return "no such version"
        if set((result.item_ids // FIRST).tolist()) != {made.number}:
            return "ids of another version"
        if result.task_names != (made.task,) or not np.array_equal(result.scores, result.task_scores[:, 0]):
            return "scores of another schema"
        if isinstance(result, Ranking):
            return "" if result.count == 1 and len(result.unknown) == len(self.versions) - 1 else "other items known"
        if result.count != made.results:
            return "another number of results"
        return "" if {int(item) % FIRST % 3 for item in result.item_ids} == {0} else "items that do not pass the filter"

    def _request(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"query": rng.normal(size=self.dims).astype(np.float32), "filter": F.colour.any_of("red")}

    def _retrieves(self, client: RetrievalClient, rng: np.random.Generator) -> list[Any]:
        return [client.retrieve(**self._request(rng))]

    def _hedged(self, client: RetrievalClient, rng: np.random.Generator) -> list[Any]:
        return [client.retrieve(**self._request(rng))]

    def _shares_memory(self, client: RetrievalClient, rng: np.random.Generator) -> list[Any]:
        return [client.retrieve(**self._request(rng))]

    def _batches(self, client: RetrievalClient, rng: np.random.Generator) -> list[Any]:
        return list(client.retrieve_many([Request(**self._request(rng)) for _ in range(3)]))

    def _ranks(self, client: RetrievalClient, rng: np.random.Generator) -> list[Any]:
        """Retrieval before, so that the client knows both models and must keep them apart."""
        query = rng.normal(size=self.dims).astype(np.float32)
        found = client.retrieve(query=query, filter=F.colour.any_of("red"))
        row = int(rng.integers(min(made.rows for made in self.versions.values())))
        return [found, client.rank(query=query, items=[number * FIRST + row for number in self.versions])]

    async def _asynchronous(self) -> None:
        async with AsyncRetrievalClient(self.address, **self.settings) as client:
            while not self._ended.is_set():
                with contextlib.suppress(ConnectionFailed):
                    await client.schema()
                    break
            await asyncio.gather(*(self._task(client, seed) for seed in range(3)))

    async def _task(self, client: AsyncRetrievalClient, seed: int) -> None:
        rng = np.random.default_rng(100 + seed)
        while not self._ended.is_set():
            started, at = time.perf_counter(), time.monotonic()
            try:
                found = [await client.retrieve(**self._request(rng))]
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                continue
            self._look(found, at, time.perf_counter() - started)
