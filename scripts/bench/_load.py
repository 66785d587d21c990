"""The load generator: open loop, Poisson arrivals, latency from the time at which a request was due.

    python _load.py ADDRESS REQUESTS.npz

Reads lines of JSON from standard input and answers each with one: {"kind": "closed", "clients": 32, "seconds": 2} or
{"kind": "open", "rate": requests a second, "seconds": 5, "seed": 0}. REQUESTS.npz holds `bytes` and `offsets`: requests
as they travel, made beforehand, sent in turn.

A generator that waits for an answer before it sends the next request measures a slow server seldom (coordinated
omission, Tene 2013). Here arrivals are drawn beforehand and a request's latency counts from its arrival, whether or not
it could be sent then; what is not answered in time counts with the time it has waited.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram

CHANNELS = 4
DRAIN = 2.0  # seconds that answers may take after the last arrival
MOST_WAITING = 4_000  # a server that has so many requests to answer is past its limit: stop
TIMEOUT = 30.0
LONGEST = 60_000_000  # microseconds
Send = Callable[[bytes], Awaitable[Any]]


@dataclass
class Open:
    """What became of the requests of an open loop; latencies in microseconds."""

    histogram: HdrHistogram
    due: int = 0
    answered: int = 0
    failed: int = 0
    late: int = 0  # not answered `DRAIN` seconds after the last arrival, or given up
    seconds: float = 0.0
    last: str = ""

    def add(self, seconds: float) -> None:
        self.histogram.record_value(min(LONGEST, max(1, int(1e6 * seconds))))

    def figures(self) -> dict[str, Any]:
        """Percentiles in milliseconds; `rate` is of answers."""
        percentiles = {
            f"p{str(at).replace('.', '')}_ms": self.histogram.get_value_at_percentile(at) / 1e3
            for at in (50, 90, 99, 99.9)
        }
        counts = {"due": self.due, "answered": self.answered, "failed": self.failed, "late": self.late}
        told = {"error": self.last} if self.last else {}
        histogram = self.histogram.encode()
        text = histogram.decode() if isinstance(histogram, bytes) else base64.b64encode(histogram).decode()
        return {**counts, "rate": self.answered / self.seconds, **percentiles, **told, "histogram": text}


def new_histogram() -> HdrHistogram:
    return HdrHistogram(1, LONGEST, 3)


async def open_loop(send: Send, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> Open:
    """Send requests at `rate` a second on average, for so many seconds, whatever becomes of them."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, max(16, int(rate * seconds * 2)))
    arrivals = np.cumsum(gaps)
    arrivals = arrivals[arrivals < seconds]
    outcome = Open(new_histogram(), due=len(arrivals))
    waiting: dict[asyncio.Task[None], float] = {}
    started = time.perf_counter()

    async def one(request: bytes, due: float) -> None:
        try:
            await send(request)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever it is, the request had no answer
            outcome.failed += 1
            outcome.last = str(error)[:300]
        else:
            outcome.answered += 1
            outcome.add(time.perf_counter() - due)

    for number, arrival in enumerate(arrivals):
        due = started + arrival
        if (ahead := due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        if len(waiting) > MOST_WAITING:
            break
        task = asyncio.create_task(one(requests[(seed + number) % len(requests)], due))
        waiting[task] = due
        task.add_done_callback(waiting.pop)
    else:
        number = len(arrivals)
    if waiting:
        await asyncio.wait(list(waiting), timeout=DRAIN)
    outcome.seconds = time.perf_counter() - started
    now = time.perf_counter()
    for task, due in list(waiting.items()):
        task.cancel()
        outcome.late += 1
        outcome.add(now - due)
    for arrival in arrivals[number:]:  # those that were not even sent
        outcome.late += 1
        outcome.add(max(0.0, now - started - arrival))
    return outcome


async def closed_loop(send: Send, requests: Sequence[bytes], clients: int, seconds: float) -> tuple[float, int]:
    """Answers a second with so many clients that wait for theirs, and how many there were."""
    answered, numbers, finish = 0, count(), time.perf_counter() + seconds

    async def one() -> None:
        nonlocal answered
        while time.perf_counter() < finish:
            await send(requests[next(numbers) % len(requests)])
            answered += 1

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return answered / (time.perf_counter() - started), answered


async def main(address: str, file: str) -> None:
    import grpc

    with np.load(file) as stored:
        whole, offsets = stored["bytes"].tobytes(), stored["offsets"]
    requests = [whole[a:b] for a, b in pairwise(offsets)]
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
    calls = [each.unary_unary("/inference.GRPCInferenceService/ModelInfer") for each in channels]
    numbers = count()

    async def send(request: bytes) -> None:
        await calls[next(numbers) % CHANNELS](request, timeout=TIMEOUT)

    await asyncio.gather(*(send(requests[place]) for place in range(CHANNELS)))  # connections are open from here on
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked, before = json.loads(line), time.process_time()
        if asked.pop("kind") == "closed":
            rate, answered = await closed_loop(send, requests, **asked)
            answer: dict[str, Any] = {"rate": rate, "answered": answered}
        else:
            answer = (await open_loop(send, requests, **asked)).figures()
        print(json.dumps({**answer, "generator_s": time.process_time() - before}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
