"""Options that several subcommands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

DEFAULT_REPOSITORY = Path("model_repository")
DEFAULT_MODEL = "retrieval"

repository_option = click.option(
    "--repository",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_REPOSITORY,
    show_default=True,
    help="Triton model repository.",
)
model_option = click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of the served model.")
admin_key_option = click.option(
    "--admin-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the key of the server's administration [the variable SILVERTRITON_ADMIN_KEY].",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts instead of a table.")

address_option = click.option(
    "--address", help="host:port of the server's gRPC endpoint [that which REPOSITORY/.server.json tells of]."
)


def tls_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of a gRPC endpoint that is encrypted, as one argument `tls`: a `client.TLS`, or None.

    Their names are those of `builder query`.
    """

    @click.option("--tls", "encrypt", is_flag=True, help="The gRPC endpoint is encrypted.")
    @click.option("--ca", help="It is, and these certificates (a PEM file) are trusted instead of the system's.")
    @click.option("--certificate", help="Our own (a PEM file), with --key, where the server asks for one.")
    @click.option("--key", help="The private key of --certificate (a PEM file).")
    @wraps(command)
    def with_tls(encrypt: bool, ca: str | None, certificate: str | None, key: str | None, **options: Any) -> None:
        from client.options import TLS

        encrypt = encrypt or any(file is not None for file in (ca, certificate, key))
        command(tls=TLS(ca, certificate, key) if encrypt else None, **options)

    return with_tls
