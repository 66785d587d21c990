"""`builder tune`: other defaults for the newest version, chosen for a recall."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from builder.cli.options import json_option, model_option, repository_option
from builder.progress import stages


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@repository_option
@model_option
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the exact results to find [the version's target].",
)
@click.option("--dry-run", is_flag=True, help="Show the settings and write nothing.")
@json_option
def command(source: Path, repository: Path, model: str, recall: float | None, dry_run: bool, as_json: bool) -> None:
    """Choose the defaults of the newest version of a model for another recall.

    SOURCE is what the version was exported from: its held-out queries measure recall against exact search. Shows what
    less and more reach and fewer and more candidates find, and how long a search takes for one query on one thread. The
    chosen defaults become those of the next version, which is otherwise equal and keeps what was measured for `builder
    report`; the version before stays, to return to. Nothing is trained or built again.
    """
    from builder.export.sources import read_source
    from builder.export.tune import tune

    with stages() as step:
        tuned = tune(read_source(source), repository, model=model, recall=recall, write=not dry_run, step=step)
    found = tuned.recall
    if as_json:
        figures = {
            "version": None if tuned.version is None else str(tuned.version),
            "recall": found.model_dump(),
            "chosen": tuned.chosen.model_dump(),
            "curve": [point.model_dump() for point in tuned.curve],
        }
        click.echo(json.dumps(figures))
    else:
        columns = ("reach", "candidates", "clusters", f"recall@{found.at}", "ms", "")
        table = Table(*columns, box=None, padding=(0, 2, 0, 0))
        for point in tuned.curve:
            mark = "chosen" if point == tuned.chosen else ""
            table.add_row(
                f"{point.reach:.3f}",
                f"{point.candidates:,}",
                f"{point.probes:,.1f}",
                f"{point.recall:.4f}",
                f"{point.milliseconds:.3f}",
                mark,
            )
        Console().print(table)
        if tuned.keeps_candidates:
            click.echo(
                f"candidates stay {tuned.chosen.candidates:,}, as a reranker, a formula or rules choose among them; "
                "index.candidates and another export change them"
            )
        click.echo(
            f"{tuned.version or 'nothing written'}: recall@{found.at} {found.measured:.4f} (target {found.target}) "
            f"over {found.queries} queries ({found.source})"
        )
    if found.measured < found.target:
        click.echo(
            f"warning: below the target of {found.target}, whatever is probed; "
            "export again with more index.candidates or index.code_dims",
            err=True,
        )
