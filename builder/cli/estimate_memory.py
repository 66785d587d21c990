"""`builder estimate-memory`: what an artifact will take in memory, before it is deployed."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from builder.cli.options import json_option


@click.command("estimate-memory")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--items", type=click.IntRange(1, 2**31 - 1), help="As if SOURCE had so many items, alike in all else.")
@click.option("--instances", type=click.IntRange(1, 64), default=1, show_default=True, help="As for builder export.")
@click.option("--batch", type=click.IntRange(1, 1024), default=64, show_default=True, help="Requests at once.")
@json_option
def command(source: Path, items: int | None, instances: int, batch: int, as_json: bool) -> None:
    """Estimate the bytes that SOURCE takes in the memory of a server and of a GPU.

    \b
    SOURCE is what `builder export` takes, or a version folder that it wrote. Nothing is built or written; of a source
    the dims of the codes are chosen as an export chooses them, which takes some seconds.
    """
    from builder.errors import BuilderError
    from builder.export.manifest import MANIFEST, read_manifest
    from builder.export.memory import of_source, of_version
    from builder.export.sources import read_source

    if (source / MANIFEST).is_file():
        if items is not None:
            raise BuilderError(
                "a version has the items that it has", where="--items", remedy="Give what it was exported from."
            )
        estimate = of_version(read_manifest(source))
    else:
        estimate = of_source(read_source(source), items)
    requests = batch * estimate.request
    figures = {
        "model.pt": estimate.tensors,
        "host, served": estimate.resident(instances) + instances * requests,
        "host, while it loads": estimate.loading(instances),
        "GPU, its tensors": estimate.tensors,
    }
    if as_json:
        click.echo(json.dumps({"items": estimate.items, "parts": estimate.parts, "requests": requests, **figures}))
        return
    table = Table("", "bytes", "an item", box=None, padding=(0, 2, 0, 0))
    for name, size in [*estimate.parts.items(), (f"{batch} requests", requests), *figures.items()]:
        table.add_row(name, f"{size:,}", f"{size / estimate.items:.1f}")
    console = Console()
    console.print(f"{estimate.items:,} items, codes of {estimate.code_dims} dims, {instances} instance(s)")
    console.print(table)
