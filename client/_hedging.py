"""A second request where the first takes long: Dean and Barroso, The Tail at Scale, 2013.

Both functions wait `delay` seconds for the answer of the first endpoint, then ask a second one too. The first answer
wins. A failure decides only when no other request is left.

The other request is left to end by itself. Cancelling it, as the paper has it, comes just when its answer does, which
ends a tritonserver of 2.51.0 now and then (docs/robustness.md).
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Protocol

from client._balancer import Balancer, Endpoint
from client._steps import Infer
from client.errors import SilverTritonError
from client.transport import Answer


class Pending(Protocol):
    """A request on its way, as `GrpcTransport.start` gives it."""

    def result(self) -> Answer: ...


def race(step: Infer, delay: float, balancer: Balancer) -> tuple[Answer, Endpoint]:
    """The first answer and the endpoint that gave it; raises the first endpoint's failure if there is none."""
    finished: SimpleQueue[Endpoint] = SimpleQueue()
    ends = monotonic() + step.timeout
    done, left, lock = set[Endpoint](), set[Endpoint](), threading.Lock()

    def ended(endpoint: Endpoint) -> None:
        with lock:
            done.add(endpoint)
            if endpoint in left:
                balancer.release(endpoint)
        finished.put(endpoint)

    def start(endpoint: Endpoint) -> Pending:
        pending: Pending = endpoint.transport.start(
            step.model, step.inputs, max(1e-3, ends - monotonic()), version=step.version, headers=step.headers,
            done=lambda: ended(endpoint),
        )  # fmt: skip
        return pending

    other: Endpoint | None = None
    pending = {step.endpoint: start(step.endpoint)}
    failures: dict[Endpoint, SilverTritonError] = {}
    try:
        try:
            ready = finished.get(timeout=delay)
        except Empty:
            other = step.hedge()
            if other is not None:
                pending[other] = start(other)
            ready = finished.get()
        while True:
            try:
                answer = pending.pop(ready).result()
                if (error := failures.get(step.endpoint)) is not None:
                    balancer.report(step.endpoint, error)
                return answer, ready
            except SilverTritonError as failure:
                failures[ready] = failure
                if ready is other:
                    balancer.report(ready, failure)
            if not pending:
                raise failures[step.endpoint]
            ready = finished.get()
    finally:
        for endpoint in pending:  # left to end by itself, and busy until then
            with lock:
                if endpoint not in done:
                    left.add(endpoint)
                    balancer.hold(endpoint)
        if other is not None:
            balancer.release(other)


async def async_race(
    step: Infer, delay: float, balancer: Balancer, left: set[asyncio.Task[Answer]]
) -> tuple[Answer, Endpoint]:
    """`race` for asyncio. A request that is left to end by itself is in `left` until then."""
    ends = monotonic() + step.timeout

    def start(endpoint: Endpoint) -> asyncio.Task[Answer]:
        infer: Any = endpoint.transport.infer(
            step.model, step.inputs, max(1e-3, ends - monotonic()), version=step.version, headers=step.headers
        )
        return asyncio.create_task(infer)

    def ended(endpoint: Endpoint, task: asyncio.Task[Answer]) -> None:
        balancer.release(endpoint)
        left.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio complains that nobody asked

    other: Endpoint | None = None
    pending = {start(step.endpoint): step.endpoint}
    failures: dict[Endpoint, SilverTritonError] = {}
    try:
        ready, _ = await asyncio.wait(pending, timeout=delay)
        if not ready:
            other = step.hedge()
            if other is not None:
                pending[start(other)] = other
            ready, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        while True:
            for task in ready:
                endpoint = pending.pop(task)
                try:
                    answer = task.result()
                    if (error := failures.get(step.endpoint)) is not None:
                        balancer.report(step.endpoint, error)
                    return answer, endpoint
                except SilverTritonError as failure:
                    failures[endpoint] = failure
                    if endpoint is other:
                        balancer.report(endpoint, failure)
            if not pending:
                raise failures[step.endpoint]
            ready, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:  # by whoever waits
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        raise
    finally:
        for task, endpoint in pending.items():  # left to end by themselves, and busy until then
            balancer.hold(endpoint)
            left.add(task)
            task.add_done_callback(partial(ended, endpoint))
        if other is not None:
            balancer.release(other)
