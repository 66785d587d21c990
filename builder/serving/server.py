"""Starts, watches and stops one stock tritonserver process."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.request import ProxyHandler, build_opener

from builder.errors import BuilderError
from builder.serving.distribution import find_distribution

_PREFIX = "silvertriton-server-"  # of temporary directories and shared memory
READY_TIMEOUT = 300.0  # seconds; a model of a few GB takes tens of seconds to load
STOP_TIMEOUT = 30.0  # seconds until a server that ignores SIGTERM is killed
_SHARED_MEMORY = Path("/dev/shm")
LOG_TAIL = 15  # lines of the log shown with an early exit


class StockServer:
    """A stock tritonserver serving a model repository; a context manager.

    Ports of 0 are chosen free. The server listens on loopback unless `address` says otherwise. Its log is kept in
    `log`. Entering the context returns once the server is ready; it raises `BuilderError` when a port is taken, the
    repository is empty, or the server exits early or is not ready in `ready_timeout` seconds, with the reason from the
    log. `cancelled` is asked while it waits; when true, the server is stopped and KeyboardInterrupt raised.
    """

    def __init__(
        self,
        repository: Path,
        *,
        log: Path | None = None,
        address: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        ready_timeout: float = READY_TIMEOUT,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.repository = repository
        self.address = address
        self.log = log
        self._ports = (grpc_port, http_port, metrics_port)
        self._ready_timeout = ready_timeout
        self._cancelled = cancelled
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None
        self.grpc_port = self.http_port = self.metrics_port = 0

    @property
    def url(self) -> str:
        """`host:port` of the gRPC endpoint."""
        return f"{_connectable(self.address)}:{self.grpc_port}"

    def __enter__(self) -> StockServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        distribution = find_distribution()
        if not any(self.repository.glob("*/config.pbtxt")):
            raise BuilderError(
                f"{self.repository} holds no model (no */config.pbtxt); "
                f"write one with: builder export ... --repository {self.repository}"
            )
        self.grpc_port, self.http_port, self.metrics_port = _choose_ports(self.address, self._ports)
        self._scratch = Path(tempfile.mkdtemp(prefix=_PREFIX))
        if self.log is None:
            self.log = self._scratch / "server.log"
        backends = self._scratch / "backends"
        command = [
            str(distribution.binary),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={backends}",
            f"--grpc-address={self.address}",
            f"--grpc-port={self.grpc_port}",
            f"--http-address={self.address}",
            f"--http-port={self.http_port}",
            f"--metrics-address={self.address}",
            f"--metrics-port={self.metrics_port}",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",  # what `builder promote` needs
            "--load-model=*",
            "--allow-gpu-metrics=false",
            # The stubs' shared memory carries requests; names of its own keep servers side by side apart.
            f"--backend-config=python,shm-region-prefix-name={self._scratch.name}-",
        ]
        try:
            distribution.write_backend_directory(backends)
            with self._open_log(self.log) as log:
                # A session of its own: a Ctrl-C in the terminal reaches us alone, and we stop the server in order.
                self._process = subprocess.Popen(
                    command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=distribution.environment(),
                    start_new_session=True,
                )  # fmt: skip
            self._await_ready()
        except BaseException:
            self.stop(keep_log=True)
            raise

    def poll(self) -> int | None:
        """The exit code if the server has ended, else None."""
        return self._process.poll() if self._process else None

    def stop(self, *, keep_log: bool = False) -> None:
        """Stop the server in order (SIGTERM, then SIGKILL) and remove its scratch directory, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT)
            # Its session: the stubs of a server that was killed or crashed live on for a while.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            for region in _SHARED_MEMORY.glob(f"{scratch.name}-*"):
                region.unlink(missing_ok=True)
            keep = keep_log and self.log is not None and self.log.parent == scratch
            shutil.rmtree(scratch / "backends" if keep else scratch, ignore_errors=True)

    def failure(self) -> str:
        """What the log says about an early end: the model's own error if there is one, else the last lines."""
        assert self.log is not None
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        errors = [line for line in text.splitlines() if re.match(r"E\d{4} |error:", line)]
        lines = errors[:LOG_TAIL] or text.splitlines()[-LOG_TAIL:]
        return "\n".join([*lines, f"(whole log: {self.log})"])

    @staticmethod
    def _open_log(path: Path) -> BinaryIO:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")
        except OSError as error:
            raise BuilderError(
                f"cannot write the server's log {path}: {error.strerror}; choose another file with --log"
            ) from error

    def _await_ready(self) -> None:
        assert self._process is not None
        started = time.monotonic()
        ask = build_opener(ProxyHandler({})).open  # never through the proxy of the environment
        url = f"http://{_connectable(self.address)}:{self.http_port}/v2/health/ready"
        while time.monotonic() - started < self._ready_timeout:
            if self._process.poll() is not None:
                raise BuilderError(f"tritonserver exited with code {self._process.returncode}:\n{self.failure()}")
            with contextlib.suppress(HTTPException, OSError), ask(url, timeout=1.0) as response:
                if response.status == 200:
                    return
            if self._cancelled():
                raise KeyboardInterrupt
            time.sleep(0.05)
        raise BuilderError(f"tritonserver was not ready after {self._ready_timeout:.0f} s:\n{self.failure()}")


def _choose_ports(address: str, wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """Check the given ports and choose free ones for 0. All are held until all are chosen, so that they differ."""
    with contextlib.ExitStack() as held:
        chosen = []
        for port, purpose in zip(wanted, ("gRPC", "HTTP", "metrics"), strict=True):
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, port))
                listener.listen()  # with SO_REUSEADDR, only a listening port is taken
            except OSError as error:
                raise BuilderError(
                    f"cannot listen on {address}:{port} for {purpose}: {error.strerror}; "
                    f"stop what uses it, or choose another with --{purpose.lower()}-port (0: any free one)"
                ) from error
            chosen.append(listener.getsockname()[1])
    return chosen[0], chosen[1], chosen[2]


def _connectable(address: str) -> str:
    return "127.0.0.1" if address in ("0.0.0.0", "") else address
