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
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.request import ProxyHandler, build_opener

from builder.errors import BuilderError
from builder.export.served import CONFIGS
from builder.serving.distribution import Distribution, find_distribution
from builder.serving.options import METRICS_OPTIONS, restricting_options
from builder.serving.state import ServerState, admin_headers, checked_key, new_key, remove_state

_PREFIX = "silvertriton-server-"  # of temporary directories and shared memory
READY_TIMEOUT = 300.0  # seconds; a model of a few GB takes tens of seconds to load
STOP_TIMEOUT = 30.0  # seconds until a server that ignores SIGTERM is killed
_SHARED_MEMORY = Path("/dev/shm")
_ON_GPUS = "python-gpu"  # of the configurations of a model, that of the embedded server with GPUs
_DIRECT = [("grpc.enable_http_proxy", 0)]
LOG_TAIL = 15  # lines of the log shown with an early exit


class StockServer:
    """A stock tritonserver serving a model repository; a context manager.

    Ports of 0 are chosen free, a port of None switches its protocol off. The server listens on loopback unless
    `address` says otherwise. Its log is kept in `log`. Calls that administer it (options.py) want `admin_key`, by
    default a random one; `state` is a file that tells it to other commands of this user while the server runs. `gpu`:
    compute on the GPUs of this machine. `options`: further ones of tritonserver.

    Entering the context returns once the server is ready; it raises `BuilderError` when a port is taken, the
    repository is empty or, with `gpu`, a model has no configuration for it, or the server exits early or is not ready
    in `ready_timeout` seconds, with the reason from the log. `cancelled` is asked while it waits; when true, the server
    is stopped and KeyboardInterrupt raised.
    """

    def __init__(
        self,
        repository: Path,
        *,
        log: Path | None = None,
        address: str = "127.0.0.1",
        grpc_port: int | None = 0,
        http_port: int | None = 0,
        metrics_port: int | None = 0,
        admin_key: str | None = None,
        state: Path | None = None,
        gpu: bool = False,
        options: Sequence[str] = (),
        ready_timeout: float = READY_TIMEOUT,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        if grpc_port is None and http_port is None:
            raise BuilderError("neither gRPC nor HTTP is on, so that nothing could be asked", remedy="Leave one on.")
        self.repository = repository
        self.address = address
        self.log = log
        self.admin_key = new_key() if admin_key is None else checked_key(admin_key, "admin_key")
        self.grpc_port, self.http_port, self.metrics_port = grpc_port, http_port, metrics_port
        self._wanted = (grpc_port, http_port, metrics_port)
        self._state = state
        self._gpu = gpu
        self._options = tuple(options)
        self._ready_timeout = ready_timeout
        self._cancelled = cancelled
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None
        self._log_start = 0  # where the log of the running process begins

    @property
    def url(self) -> str:
        """`host:port` of the gRPC endpoint, or of HTTP where gRPC is off."""
        url = self._reached(self.grpc_port) or self._reached(self.http_port)
        assert url is not None
        return url

    @property
    def admin_headers(self) -> dict[str, str]:
        """The gRPC header that restricted calls want."""
        return admin_headers(self.admin_key)

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
        if not self._homes():
            raise BuilderError(
                f"{self.repository} holds no model (no */config.pbtxt); "
                f"write one with: builder export ... --repository {self.repository}"
            )
        if self._gpu:
            _require_configurations(self._homes())
        self.grpc_port, self.http_port, self.metrics_port = _choose_ports(self.address, self._wanted)
        self._scratch = Path(tempfile.mkdtemp(prefix=_PREFIX))
        if self.log is None:
            self.log = self._scratch / "server.log"
        try:
            distribution.write_backend_directory(self._scratch / "backends")
            self._launch(distribution)
        except BaseException:
            self.stop(keep_log=True)
            raise

    def restart(self) -> None:
        """Start the server again, on the same ports with the same key, and wait until it is ready.

        One that still runs is killed. The log goes on. Raises as `start` does, and may then be called again.
        """
        assert self._process is not None
        self._process.kill()
        self._end_process()
        _choose_ports(self.address, (self.grpc_port, self.http_port, self.metrics_port))  # another may have taken one
        try:
            self._launch(find_distribution())
        except BaseException:
            self._end_process()
            raise

    def _homes(self) -> list[Path]:
        """The folders of the models."""
        return [path.parent for path in sorted(self.repository.glob("*/config.pbtxt"))]

    def _launch(self, distribution: Distribution) -> None:
        assert self._scratch is not None
        assert self.log is not None
        command = [
            str(distribution.binary),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={self._scratch / 'backends'}",
            *_endpoint("grpc", self.address, self.grpc_port),
            *_endpoint("http", self.address, self.http_port),
            *_endpoint("metrics", self.address, self.metrics_port),
            *restricting_options(self.admin_key),
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",  # what `builder promote` needs
            # Not `*`: a folder whose first version is being written, or was when the export was killed, would end it.
            *(f"--load-model={home.name}" for home in self._homes()),
            *([f"--model-config-name={_ON_GPUS}"] if self._gpu else ()),
            f"--allow-gpu-metrics={str(self._gpu).lower()}",
            *METRICS_OPTIONS,
            # The stubs' shared memory carries requests; names of its own keep servers side by side apart.
            f"--backend-config=python,shm-region-prefix-name={self._scratch.name}-",
            *self._options,
        ]
        with self._open_log(self.log) as log:
            self._log_start = log.tell()
            # A session of its own: a Ctrl-C in the terminal reaches us alone, and we stop the server in order.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=distribution.environment(),
                start_new_session=True,
            )  # fmt: skip
        self._await_ready()
        if self._state is not None:
            grpc, http, metrics = map(self._reached, (self.grpc_port, self.http_port, self.metrics_port))
            ServerState(grpc, http, metrics, self._process.pid, self.admin_key).write(self._state)

    def poll(self) -> int | None:
        """The exit code if the server has ended, else None."""
        return self._process.poll() if self._process else None

    def dead_models(self) -> set[int]:
        """Process ids of models that have ended while the server runs."""
        assert self._process is not None
        return {pid for pid, parent, state in _processes() if parent == self._process.pid and state == "Z"}

    def stop(self, *, keep_log: bool = False) -> None:
        """Stop the server in order (SIGTERM, then SIGKILL) and remove its scratch directory, if it runs."""
        self._end_process()
        self._process = None
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            keep = keep_log and self.log is not None and self.log.parent == scratch
            shutil.rmtree(scratch / "backends" if keep else scratch, ignore_errors=True)

    def _end_process(self) -> None:
        """End the process and its stubs, in order if it runs; remove the shared memory and the state file it leaves."""
        process = self._process
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT)
            # Its session: the stubs of a server that was killed or crashed live on for a while.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if self._state is not None:
                remove_state(self._state, process.pid)
        if self._scratch is not None:
            for region in _SHARED_MEMORY.glob(f"{self._scratch.name}-*"):
                region.unlink(missing_ok=True)

    def failure(self) -> str:
        """What the log says about an early end: the model's own error if there is one, else the last lines."""
        assert self.log is not None
        text = self.log.read_bytes()[self._log_start :].decode(errors="replace") if self.log.exists() else ""
        errors = [line for line in text.splitlines() if re.match(r"E\d{4} |error:|.*unrecognized option", line)]
        lines = errors[:LOG_TAIL] or text.splitlines()[-LOG_TAIL:]
        return "\n".join([*lines, f"(whole log: {self.log})"])

    def _open_log(self, path: Path) -> BinaryIO:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb" if self._process is None else "ab")  # a restart keeps what led to it
        except OSError as error:
            raise BuilderError(
                f"cannot write the server's log {path}: {error.strerror}; choose another file with --log"
            ) from error

    def _await_ready(self) -> None:
        assert self._process is not None
        started = time.monotonic()
        while time.monotonic() - started < self._ready_timeout:
            if self._process.poll() is not None:
                raise BuilderError(f"tritonserver exited with code {self._process.returncode}:\n{self.failure()}")
            if self._is_ready():
                return
            if self._cancelled():
                raise KeyboardInterrupt
            time.sleep(0.05)
        raise BuilderError(f"tritonserver was not ready after {self._ready_timeout:.0f} s:\n{self.failure()}")

    def _is_ready(self) -> bool:
        if (http := self._reached(self.http_port)) is None:
            if any(option.startswith("--grpc-use-ssl") for option in self._options):
                return _listens(self.url)
            return _answers_grpc(self.url)
        ask = build_opener(ProxyHandler({})).open  # never through the proxy of the environment
        with (
            contextlib.suppress(HTTPException, OSError),
            ask(f"http://{http}/v2/health/ready", timeout=1.0) as response,
        ):
            return bool(response.status == 200)
        return False

    def _reached(self, port: int | None) -> str | None:
        if port is None:
            return None
        return f"{'127.0.0.1' if self.address in ('0.0.0.0', '') else self.address}:{port}"


def _require_configurations(homes: Sequence[Path]) -> None:
    """Raise BuilderError for a model without a configuration for GPUs: the server would serve it on the CPU instead."""
    for home in homes:
        if not (home / CONFIGS[_ON_GPUS]).exists():
            raise BuilderError(
                f"the version that is served has no configuration for GPUs (no {CONFIGS[_ON_GPUS]}): it was exported "
                "by an earlier release or without nvcc",
                where=str(home),
                remedy="Export it again where there is nvcc (docs/gpu.md) and promote it, or serve without --gpu.",
            )


def _answers_grpc(url: str) -> bool:
    from tritonclient.grpc import InferenceServerClient, InferenceServerException

    with contextlib.suppress(InferenceServerException), InferenceServerClient(url, channel_args=_DIRECT) as client:
        return bool(client.is_server_ready(client_timeout=1.0))
    return False


def _listens(url: str) -> bool:
    """Of a server that we have no certificate to ask: it listens once its models are loaded."""
    host, _, port = url.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
        return True
    return False


def _endpoint(name: str, address: str, port: int | None) -> list[str]:
    """The options of a protocol."""
    if port is None:
        return [f"--allow-{name}=false"]
    return [f"--{name}-address={address}", f"--{name}-port={port}"]


def _choose_ports(
    address: str, wanted: tuple[int | None, int | None, int | None]
) -> tuple[int | None, int | None, int | None]:
    """Check the given ports and choose free ones for 0. All are held until all are chosen, so that they differ."""
    with contextlib.ExitStack() as held:
        chosen: list[int | None] = []
        for port, purpose in zip(wanted, ("gRPC", "HTTP", "metrics"), strict=True):
            if port is None:
                chosen.append(None)
                continue
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


def _processes() -> Iterator[tuple[int, int, str]]:
    """Process id, parent and state of every process, see proc(5)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]  # after the name, which may hold anything
            yield int(stat.parent.name), int(parent), state
