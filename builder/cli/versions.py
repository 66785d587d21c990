"""`builder versions`: what there is, and what of it is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from builder.cli.options import (
    address_option,
    admin_key_option,
    json_option,
    model_option,
    repository_option,
    tls_options,
)
from builder.errors import BuilderError

if TYPE_CHECKING:
    from client.options import TLS


@click.command()
@repository_option
@model_option
@address_option
@admin_key_option
@json_option
@tls_options
def command(
    repository: Path, model: str, address: str | None, admin_key_file: Path | None, as_json: bool, tls: TLS | None
) -> None:
    """List the versions of a model: which one is served, a canary, or was served before, and what the server says.

    Without a server that can be reached, what the repository says. Exit code 1 where both disagree.
    """
    from builder.serving.rollout import state

    said = state(repository, model)
    try:
        loaded: dict[str, list[int]] | None = _loaded(repository, address, admin_key_file, tls)
        unreachable = ""
    except BuilderError as error:
        loaded, unreachable = None, error.what
    rows = [_row(path, said) for path in _versions(repository, model)]
    faults = [] if loaded is None else _faults(model, said, loaded)
    if as_json:
        click.echo(json.dumps({"versions": rows, "server": loaded, "faults": faults}))
    else:
        _show(rows)
        click.echo("the server " + (f"is not asked: {unreachable}" if loaded is None else "agrees")
                   if not faults else "\n".join(faults))  # fmt: skip
    if faults:
        raise click.exceptions.Exit(1)


def _versions(repository: Path, model: str) -> list[Path]:
    from builder.export.repository import versions

    return versions(repository, model)


def _loaded(
    repository: Path, address: str | None, admin_key_file: Path | None, tls: TLS | None
) -> dict[str, list[int]]:
    from builder.serving.control import reach

    with reach(repository, address, admin_key_file, tls) as control:
        return control.loaded()


def _row(version: Path, said: Any) -> dict[str, Any]:
    from builder.export.manifest import read_manifest

    number = int(version.name)
    role = ""
    if said.canary is not None and said.canary.version == number:
        role = f"canary: {said.canary.share or 0:.4g}"
    elif said.served.previous == number:
        role = "served before"
    if said.served.version == number:
        role = "served"
    row: dict[str, Any] = {"version": number, "role": role}
    try:
        manifest = read_manifest(version)
    except BuilderError as error:
        return {**row, "fault": error.what}
    return {
        **row,
        "name": manifest.name,
        "created": manifest.created,
        "items": manifest.index.items,
        "recall": manifest.recall.measured,
        "recall_at": manifest.recall.at,
        "snapshot": manifest.snapshot,
    }


def _faults(model: str, said: Any, loaded: dict[str, list[int]]) -> list[str]:
    """Where the server serves something else than the repository says."""
    from builder.export.served import canary_of
    from client.schema import RANKING_SUFFIX

    rank, canary = model + RANKING_SUFFIX, canary_of(model)
    expected = {model: said.served, rank: said.rank, canary: said.canary}
    faults = [
        f"the server serves {_named(loaded.get(name))} of {name}, the repository says {_named(wanted)}"
        for name, configured in expected.items()
        if loaded.get(name, []) != (wanted := [] if configured is None else [configured.version])
    ]
    if said.rank is not None and said.rank.version != said.served.version:
        faults.append(f"the repository says version {said.rank.version} for {rank}, {said.served.version} for {model}")
    if said.canary is not None and said.canary.share == 0:
        faults.append(f"version {said.canary.version} is loaded beside the served one, for nobody")
    if faults:
        faults.append(
            "a promotion is under way or was interrupted; "
            f"`builder promote {said.served.version}` sets it right, with another number to serve that"
        )
    return faults


def _named(versions: list[int] | None) -> str:
    return f"version {', '.join(map(str, versions))}" if versions else "no version"


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("version", "", "written", "items", "recall", "name", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        if "fault" in row:
            table.add_row(str(row["version"]), row["role"], escape(row["fault"]))
            continue
        recall = f"{row['recall']:.4f} at {row['recall_at']}"
        table.add_row(
            str(row["version"]), row["role"], row["created"], f"{row['items']:,}", recall, escape(row["name"])
        )
    Console().print(table)
