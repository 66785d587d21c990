"""`builder rollback`: back to the version that was served before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.options import address_option, admin_key_option, model_option, repository_option, tls_options

if TYPE_CHECKING:
    from client.options import TLS


@click.command()
@repository_option
@model_option
@address_option
@admin_key_option
@tls_options
def command(repository: Path, model: str, address: str | None, admin_key_file: Path | None, tls: TLS | None) -> None:
    """End the canary, or else serve the version that was served before; no request fails meanwhile.

    A second rollback takes the first one back.
    """
    from builder.serving.control import reach
    from builder.serving.rollout import roll_back

    with reach(repository, address, admin_key_file, tls) as control:
        left, served = roll_back(repository, model, control, lambda what: click.echo(what, err=True))
    click.echo(f"version {served} of {model} is served; version {left} is not any more")
