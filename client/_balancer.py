"""Which endpoint a request goes to: the less busy of two drawn at random, among those that work. No IO.

The power of two choices: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from client.errors import ConnectionFailed, DeadlineExceeded, ModelUnavailable, QueueFull, ServerError

if TYPE_CHECKING:
    from client._steps import Served

SUSPENDED_FIRST = 0.1  # seconds that an endpoint is left alone after its first failure; doubled with each more
SUSPENDED_MOST = 10.0
DOUBTFUL = 3  # failures in a row that may be the request's fault, or the timeout's, until they count as the endpoint's


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server, or one connection to it, and what is known of it. `transport` is a Transport or AsyncTransport."""

    name: str
    transport: Any
    served: dict[str, Served] = field(default_factory=dict)  # by model
    share: float = 0.0  # of the requests, for its canary
    canary_read_at: float = -math.inf
    busy: int = 0  # requests on their way
    failures: int = 0  # in a row, each of which suspended it
    doubts: int = 0
    resumes: float = 0.0  # on the monotonic clock; suspended until then


class Balancer:
    """Chooses among endpoints and learns from what becomes of requests. Threads may share it."""

    def __init__(self, endpoints: Sequence[Endpoint], clock: Callable[[], float] = monotonic) -> None:
        self.endpoints = tuple(endpoints)
        self._clock = clock
        self._lock = threading.Lock()
        self._random = random.Random()

    def take(self, avoid: Container[Endpoint] = (), *, only_other: bool = False) -> Endpoint | None:
        """An endpoint for one more request, to be given back with `release`.

        One not in `avoid` while such a one works. If none works, the one whose suspension ends first: a request is
        worth more than a rule. With `only_other`, None where no other one works.
        """
        with self._lock:
            chosen = self._choose(avoid, only_other)
            if chosen is not None:
                chosen.busy += 1
        return chosen

    def hold(self, endpoint: Endpoint) -> None:
        """Count a request that goes on at this endpoint, to be given back with `release`."""
        with self._lock:
            endpoint.busy += 1

    def release(self, endpoint: Endpoint) -> None:
        """Give back what `take` returned or `hold` counted."""
        with self._lock:
            endpoint.busy -= 1

    def report(self, endpoint: Endpoint, error: Exception | None) -> None:
        """Note how a request ended: `error`, or None for an answer."""
        with self._lock:
            if isinstance(error, QueueFull):
                return  # busy, not broken
            if isinstance(error, DeadlineExceeded | ServerError):
                endpoint.doubts += 1
                failed = endpoint.doubts >= DOUBTFUL
            else:
                failed = isinstance(error, ConnectionFailed | ModelUnavailable)
                if not failed:
                    endpoint.failures = endpoint.doubts = 0
                    endpoint.resumes = 0.0
            if failed:
                for served in list(endpoint.served.values()):  # other threads add to them
                    served.read_at = -math.inf  # what comes back may be another artifact of the same version
                endpoint.failures += 1
                endpoint.doubts = 0
                self._suspend(endpoint)

    def working(self) -> list[Endpoint]:
        """Endpoints that are not suspended."""
        now = self._clock()
        return [endpoint for endpoint in self.endpoints if endpoint.resumes <= now]

    def _choose(self, avoid: Container[Endpoint], only_other: bool) -> Endpoint | None:
        if len(self.endpoints) == 1:
            return None if only_other else self.endpoints[0]
        working = self.working()
        others = [endpoint for endpoint in working if endpoint not in avoid]
        if only_other and not others:
            return None
        choice = others or working
        if not choice:
            return min(self.endpoints, key=lambda endpoint: endpoint.resumes)
        chosen = min(self._random.sample(choice, min(2, len(choice))), key=lambda endpoint: endpoint.busy)
        if chosen.failures:
            self._suspend(chosen)  # one request tries it, the others wait for what becomes of that one
        return chosen

    def _suspend(self, endpoint: Endpoint) -> None:
        pause = min(SUSPENDED_MOST, SUSPENDED_FIRST * 2.0 ** min(endpoint.failures - 1, 20))
        endpoint.resumes = self._clock() + pause * self._random.uniform(0.5, 1.0)
