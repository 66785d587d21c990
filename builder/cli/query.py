"""`builder query`: one request to a running server, from the terminal. It is the client's own command."""

from __future__ import annotations

import click

from client._query import query


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    query(arguments, program="builder query")
