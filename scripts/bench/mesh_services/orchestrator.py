"""The orchestrator: takes the request that the unified model takes, asks the services in turn, answers.

    python orchestrator.py '{"models": ADDRESS, "retrieval": ADDRESS, "filter": ADDRESS or null, "users": [...], ...}'

With the address of a filter service candidates are filtered after they are found, else where they are found.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[3])]

from mesh_services.wire import channel, pack, run, serve, unpack  # noqa: E402
from tritonclient.grpc import service_pb2  # noqa: E402

from client._messages import DTYPES, SERVICE, infer_request  # noqa: E402

SPARE = 1.3  # times as many as should do are fetched where they are filtered afterwards
NOTHING = np.zeros(2, np.int64)
Arrays = dict[str, np.ndarray]


class Orchestrator:
    """`users`: the inputs of the tower; `candidates`: of a request that asks for none; `items`: of the catalogue."""

    def __init__(
        self, models: str, retrieval: str, filter: str | None, users: list[str], candidates: int, items: int
    ) -> None:
        self.users, self.candidates, self.items = users, candidates, items
        self.infer = channel(models).unary_unary(f"{SERVICE}ModelInfer")  # bytes in, bytes out
        self.search = channel(retrieval).unary_unary("/Retrieval/Search")
        self.afterwards = filter is not None
        if filter is not None:
            filters = channel(filter)
            self.count, self.check = filters.unary_unary("/Filter/Count"), filters.unary_unary("/Filter/Check")
        self.seconds: dict[str, float] = {}
        self.requests = 0

    async def answer(self, message: bytes) -> bytes:
        """ModelInferRequest -> ModelInferResponse, both as the unified model has them."""
        clock = Clock(self.seconds)
        request = service_pb2.ModelInferRequest.FromString(message)
        given = tensors(request.inputs, request.raw_input_contents)
        whole, count = (int(limit) for limit in given["search"][0])
        count = min(count or self.candidates, self.items)
        clock.stage("parse")
        if self.afterwards and given["filter"][0, 1]:
            query, positions, scores = await self.find_and_filter(given, count, whole, clock)
        else:
            query = await self.tower(given)
            clock.stage("tower")
            found = await self.search(
                pack(query[0], given["filter"][0], given["exclude"][0], np.array([whole, count], np.int32))
            )
            positions, scores = unpack(found)
            clock.stage("retrieval")
        scoring = {
            "query": query,
            "history": given.get("history", np.full((1, 1), -1, np.int64)),
            "positions": positions[None],
            "retrieved": scores[None],
            "task_weights": given["task_weights"],
        }
        response = await self.infer(infer_request("scoring", "", scoring).SerializeToString())
        clock.stage("scoring")
        self.requests += 1
        return bytes(response)

    async def tower(self, given: Arrays) -> np.ndarray:
        asked = infer_request("tower", "", {name: given[name] for name in self.users})
        answer = service_pb2.ModelInferResponse.FromString(await self.infer(asked.SerializeToString()))
        return tensors(answer.outputs, answer.raw_output_contents)["query"]

    async def find_and_filter(
        self, given: Arrays, count: int, whole: int, clock: Clock
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fetch as many as should leave `count` that pass, and more until they do."""
        query, counted = await asyncio.gather(self.tower(given), self.count(pack(given["filter"][0])))
        clock.stage("tower and filter count")
        (number, passing) = unpack(counted)[0]
        wanted = min(count, int(passing))
        fetch = min(self.items, int(SPARE * count * self.items / max(1, passing)))
        while True:
            limits = np.array([whole, fetch], np.int32)
            positions, scores = unpack(await self.search(pack(query[0], NOTHING, given["exclude"][0], limits)))
            clock.stage("retrieval")
            checked = await self.check(pack(np.array([number], np.int64), positions))
            passes = unpack(checked)[0].astype(bool)
            clock.stage("filter check")
            if passes.sum() >= wanted or fetch == self.items:
                break
            fetch = min(self.items, 2 * fetch)
        kept, values = np.full(count, -1, np.int32), np.full(count, -np.inf, np.float32)
        positions, scores = positions[passes][:count], scores[passes][:count]
        kept[: len(positions)], values[: len(scores)] = positions, scores
        return query, kept, values

    async def told(self, _: bytes) -> bytes:
        """Seconds of each stage since the last call, and requests, as JSON."""
        text = json.dumps({"requests": self.requests, "seconds": self.seconds})
        self.seconds.clear()
        self.requests = 0
        return text.encode()


class Clock:
    """Adds up what each stage of a request took."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def stage(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def tensors(described: Any, contents: Any) -> Arrays:
    return {
        tensor.name: np.frombuffer(content, DTYPES[tensor.datatype]).reshape(tensor.shape)
        for tensor, content in zip(described, contents, strict=True)
    }


async def start(config: str) -> None:
    orchestrator = Orchestrator(**json.loads(config))
    service = SERVICE.strip("/")
    await serve({f"{service}": {"ModelInfer": orchestrator.answer}, "Orchestrator": {"Told": orchestrator.told}})


if __name__ == "__main__":
    run(start, sys.argv[1:])
