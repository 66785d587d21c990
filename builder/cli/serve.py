"""`builder serve`: the stock server, embedded, until it is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import click

from builder.cli.options import admin_key_option, repository_option
from builder.progress import step
from builder.serving.state import STATE_FILE, one_server, read_key
from client.schema import RANKING_SUFFIX


def _port(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    return None if value == "off" else click.IntRange(0, 65535)(value, parameter, context)


def _port_option(name: str, default: str, protocol: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        f"--{name}-port", callback=_port, default=default, show_default=True, metavar="PORT|off",
        help=f"Port of {protocol}; 0 is any free one, off switches it off.",
    )  # fmt: skip


@click.command()
@repository_option
@click.option("--address", default="127.0.0.1", show_default=True, help="0.0.0.0 listens on all.")
@_port_option("grpc", "8001", "gRPC")
@_port_option("http", "8000", "HTTP")
@_port_option("metrics", "8002", "Prometheus metrics")
@admin_key_option
@click.option("--gpu", is_flag=True, help="Compute on the GPUs of this machine; needs versions exported with nvcc.")
@click.option("--restart/--no-restart", default=True, show_default=True, help="Start a server that crashed again.")
@click.option(
    "--trace",
    metavar="URL",
    help="OTLP/HTTP endpoint for OpenTelemetry spans of requests that bring a traceparent (http://HOST:4318/v1/traces).",
)
@click.option(
    "--trace-rate",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Trace one in so many of the requests without a traceparent too.",
)
@click.option("--log", type=click.Path(path_type=Path), help="File for the server's log [REPOSITORY/.server.log].")
@click.option("--no-verify", is_flag=True, help="Skip checking every file against its manifest.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- TRITONSERVER_OPTIONS]")
def command(
    repository: Path,
    address: str,
    grpc_port: int | None,
    http_port: int | None,
    metrics_port: int | None,
    admin_key_file: Path | None,
    gpu: bool,
    restart: bool,
    trace: str | None,
    trace_rate: int,
    log: Path | None,
    no_verify: bool,
    options: tuple[str, ...],
) -> None:
    """Serve every model of a repository until Ctrl-C or SIGTERM.

    The server is the stock tritonserver of the PyPI wheel `nvidia-pytriton`; nothing of ours runs in it but the model.
    While it runs, REPOSITORY/.server.json tells other commands of this user its addresses and the key of its
    administration, a random one unless a file or the environment gives one. What follows `--` goes to tritonserver as
    it is; docs/serving.md names what is useful.
    """
    if trace is None and trace_rate:
        raise click.UsageError("--trace-rate goes with --trace URL, which says where spans are sent")
    from builder.serving.options import tracing_options
    from builder.serving.rollout import tidy
    from builder.serving.server import StockServer
    from builder.serving.supervise import supervise

    admin_key = read_key(admin_key_file)
    writable = os.access(repository, os.W_OK)
    if repository.exists() and not writable:
        click.echo(f"warning: {repository} is not writable; no {STATE_FILE} tells of this server", err=True)
    with one_server(repository) if writable else contextlib.nullcontext():
        tidy(repository)
        if not no_verify:
            _verify(repository)
        stopping = threading.Event()

        def stop(number: int, frame: FrameType | None) -> None:
            stopping.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        server = StockServer(
            repository,
            log=log or repository / ".server.log",
            address=address,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            admin_key=admin_key,
            state=repository / STATE_FILE if writable else None,
            gpu=gpu,
            options=[*(tracing_options(trace, trace_rate) if trace is not None else ()), *options],
            cancelled=stopping.is_set,
        )
        with step("Loading models"):
            server.start()
        try:
            protocol = "gRPC" if grpc_port is not None else "HTTP"
            click.echo(f"serving {repository} on {server.url} ({protocol}), log in {server.log}; Ctrl-C stops it")
            supervise(server, stopping, lambda text: click.echo(text, err=True), restart=restart)
        finally:
            server.stop()
    click.echo("stopped")


def _verify(repository: Path) -> None:
    from builder.export.manifest import read_manifest, verify
    from builder.export.repository import find_version
    from builder.export.served import configured

    homes = [path.parent for path in sorted(repository.glob("*/config.pbtxt"))]
    served = [find_version(repository, home.name, says.version) for home in homes if (says := configured(home))]
    size = sum(entry.bytes for version in served for entry in read_manifest(version).files.values())
    with step("Checking files", size, count=False) as current:
        manifests = {version.parent.name: verify(version, current.advance) for version in served}
    for model, manifest in manifests.items():
        ranks = manifest.ranks
        if ranks is None or model != ranks.model + RANKING_SUFFIX or ranks.model not in manifests:
            continue
        if manifests[ranks.model].snapshot != manifest.snapshot:
            click.echo(
                f"warning: {model} ranks items of another version than {ranks.model} retrieves; "
                f"clients refuse to use both. Stop, and: builder promote {ranks.version} --offline",
                err=True,
            )
