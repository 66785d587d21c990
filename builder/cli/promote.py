"""`builder promote`: another version is served, or starts as a canary, while the server answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.options import address_option, admin_key_option, model_option, repository_option, tls_options

if TYPE_CHECKING:
    from client.options import TLS


@click.command()
@click.argument("version", type=click.IntRange(min=1), required=False)
@repository_option
@model_option
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    help="Start it as a canary: this share of the requests goes there, the others to the served version.",
)
@click.option("--offline", is_flag=True, help="No server runs: only write down what is served at the next start.")
@address_option
@admin_key_option
@tls_options
def command(
    version: int | None,
    repository: Path,
    model: str,
    share: float | None,
    offline: bool,
    address: str | None,
    admin_key_file: Path | None,
    tls: TLS | None,
) -> None:
    """Serve VERSION, the newest if left out, in place of the one that is served; no request fails meanwhile.

    With --share the version is a canary: repeat it with another share, leave --share out to serve the version to all,
    or end the canary with `builder rollback`.
    """
    from builder.serving.control import reach
    from builder.serving.rollout import choose, promote, start_canary

    if offline:
        if share is not None:
            raise click.UsageError("--share needs a server: leave out --offline")
        number = choose(repository, model, version)
        click.echo(f"version {number} of {model} is served from the next start on")
        return
    with reach(repository, address, admin_key_file, tls) as control:
        if share is None:
            number = promote(repository, model, version, control, _say)
            click.echo(f"version {number} of {model} is served")
        else:
            number = start_canary(repository, model, version, share, control, _say)
            click.echo(f"version {number} of {model} is a canary for {share:.4g} of the requests")


def _say(what: str) -> None:
    click.echo(what, err=True)
