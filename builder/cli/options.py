"""Options that several subcommands share."""

from __future__ import annotations

from pathlib import Path

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
