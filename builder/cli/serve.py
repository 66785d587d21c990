"""`builder serve`: the stock server, embedded, until it is interrupted."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

import click

from builder.cli.options import repository_option
from builder.errors import BuilderError
from builder.progress import step
from client.schema import RANKING_SUFFIX


@click.command()
@repository_option
@click.option("--address", default="127.0.0.1", show_default=True, help="0.0.0.0 listens on all.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="0: any free port.")
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free port.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=8002, show_default=True, help="0: any free.")
@click.option("--log", type=click.Path(path_type=Path), help="File for the server's log [REPOSITORY/.server.log].")
@click.option("--no-verify", is_flag=True, help="Skip checking every file against its manifest.")
def command(
    repository: Path,
    address: str,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    log: Path | None,
    no_verify: bool,
) -> None:
    """Serve every model of a repository until Ctrl-C or SIGTERM.

    The server is the stock tritonserver of the PyPI wheel `nvidia-pytriton`; nothing of ours runs in it but the model.
    """
    from builder.serving.rollout import tidy
    from builder.serving.server import StockServer

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
        cancelled=stopping.is_set,
    )
    with step("Loading models"):
        server.start()
    try:
        click.echo(f"serving {repository} on {server.url} (gRPC), log in {server.log}; Ctrl-C stops it")
        while not stopping.wait(0.2):
            if (code := server.poll()) is not None:
                raise BuilderError(f"tritonserver ended by itself with code {code}:\n{server.failure()}")
    finally:
        server.stop()
    click.echo("stopped")


def _verify(repository: Path) -> None:
    from builder.export.manifest import read_manifest, verify
    from builder.export.repository import find_version
    from builder.export.served import configured

    served = []
    for path in sorted(repository.glob("*/config.pbtxt")):
        if (says := configured(path.parent)) is not None:
            served.append(find_version(repository, path.parent.name, says.version))
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
