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
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts instead of a table.")

address_option = click.option(
    "--address", default="127.0.0.1:8001", show_default=True, help="The server's gRPC endpoint."
)


def _headers(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise click.BadParameter(f"got {name!r}, expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


header_option = click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_headers,
    help="Sent with every call, such as the key of a restricted protocol; repeat for more.",
)
