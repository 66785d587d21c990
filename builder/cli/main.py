"""The `builder` command: its subcommands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

import click

# Imported when it is run, so that `builder --help` does not wait for torch.
COMMANDS = {
    "data": "Write a dataset as Parquet files with a retrieval.yaml.",
    "train": "Train the towers that a retrieval.yaml describes.",
    "export": "Build index and network and add a version to a model repository.",
    "tune": "Choose other defaults for the newest version, for a recall.",
    "estimate-memory": "Estimate what a source or version takes in memory.",
    "serve": "Serve a model repository with the stock Triton Inference Server.",
    "promote": "Serve another version, or start it as a canary.",
    "rollback": "End a canary, or serve the version that was served before.",
    "versions": "List versions and which one is served.",
    "evaluate": "Measure Recall and NDCG of a run: exact and served.",
    "report": "Write an HTML page about a run and its version.",
    "inspect": "Show what a version contains and check its files.",
    "query": "Ask a running server for recommendations.",
    "quickstart": "All of it: data, training, export, serving and queries.",
}

EXIT_FAILED = 1  # what was asked for cannot be done: bad input, a missing file, a server that is down
EXIT_INTERRUPTED = 130


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"builder.cli.{name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            from builder.errors import did_you_mean

            raise click.UsageError(f"{error.message}\n{did_you_mean(args[0], COMMANDS)}", ctx=context) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="silvertriton")
def cli() -> None:
    """Retrieval, filters and ranking as one network, served by a stock Triton Inference Server.

    \b
    A first run, from nothing to answers:
      builder quickstart
    Step by step:
      builder data movielens-100k --out datasets/movielens-100k
      builder train datasets/movielens-100k/retrieval.yaml --out runs/movielens-100k
      builder export runs/movielens-100k
      builder serve
      builder query --user user_id=42 --filter 'F.genres.any_of("Drama") & (F.year >= 1990)'

    Exit codes: 0 done, 1 it cannot be done (the message says why), 2 wrong usage, 130 interrupted.
    """


def main() -> None:
    """Run the command line; errors a person can act on are printed without a traceback."""
    from builder.errors import BuilderError
    from client.errors import SilverTritonError

    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (BuilderError, SilverTritonError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read the output, such as head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush at exit
            sys.exit(EXIT_FAILED)
        click.echo(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", err=True)
        sys.exit(EXIT_FAILED)
