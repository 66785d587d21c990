"""Keeps a server running: what ends by itself is started again, after waits that grow.

So is a server that has lost the process of a model. The stock server does not start one anew: it goes on, says that it
is ready and fails every request to that model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from builder.errors import BuilderError
from builder.serving.server import StockServer

# Seconds, as Docker has them for `restart: unless-stopped`.
FIRST_WAIT = 0.1
MOST_WAIT = 60.0
STEADY = 10.0  # a server that ran so long begins with the first wait again
_POLL = 0.05
_LOOK = 0.5  # between two looks at the processes of the models


def supervise(server: StockServer, stopping: threading.Event, say: Callable[[str], None], *, restart: bool) -> None:
    """Return when `stopping` is set. Restart a server that ends by itself or loses a model, until it is ready again.

    `say` is told of each end, with its reason, and of each return. Without `restart` the reason is raised as a
    BuilderError.
    """
    wait = FIRST_WAIT
    while True:
        ready_at = time.monotonic()
        reason = _end(server, stopping)
        if reason is None:
            return
        if not restart:
            raise BuilderError(reason)
        if time.monotonic() - ready_at >= STEADY:
            wait = FIRST_WAIT
        while True:
            say(f"{reason}\nstarting it again in {wait:.1f} s")
            if stopping.wait(wait):
                return
            wait = min(2 * wait, MOST_WAIT)
            try:
                server.restart()
                break
            except BuilderError as error:
                reason = str(error)
            except KeyboardInterrupt:  # `stopping` was set while the server was loading
                return
        say(f"serving again on {server.url}")


def _end(server: StockServer, stopping: threading.Event) -> str | None:
    """Why the server has to be started again, when it has to; None when `stopping` is set."""
    dead, looked_at = set[int](), time.monotonic()
    while (code := server.poll()) is None:
        if stopping.wait(_POLL):
            return None
        if time.monotonic() - looked_at >= _LOOK:
            before, dead, looked_at = dead, server.dead_models(), time.monotonic()
            # Twice: the process of a model that is unloaded has ended a moment before the server takes notice.
            if lost := before & dead:
                return f"tritonserver has lost the process of a model, {min(lost)}"
    return f"tritonserver ended by itself with code {code}:\n{server.failure()}"
