"""`builder report`: one HTML page about a trained run and the version exported from it."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli.options import model_option, repository_option
from builder.progress import step


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@repository_option
@model_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write [RUN/report.html].")
def command(run: Path, repository: Path, model: str, out: Path | None) -> None:
    """Write a page about RUN and the newest version of a model that was exported from it.

    \b
    Key figures, training curves, quality beside baselines, recall by latency, clusters, filters, data, calibration
    and what the artifact weighs. The page is one file that loads nothing; a part that was not measured yet says
    which command measures it.
    """
    from builder.report.contents import read_contents
    from builder.report.page import render
    from builder.training.checkpoint import write_text

    contents = read_contents(run, repository, model)
    with step("Drawing"):
        page, missing = render(contents)
    out = out or run / "report.html"
    write_text(page, out)
    about = contents.artifact.version if contents.artifact is not None else "no version"
    click.echo(f"{out}: {run} and {about}, {len(page.encode()) / 1000:,.0f} kB")
    for part in missing:
        remedy = f" Add it: {part.command}" if part.command else ""
        click.echo(f"without {part.section.lower()}: {part.text}{remedy}")
