"""`builder inspect`: what a version contains."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from builder.cli.options import json_option, model_option, repository_option
from builder.config import Diversity
from builder.export.items import item_values
from builder.export.manifest import Manifest, verify
from builder.export.repository import find_version, versions
from builder.progress import step


@click.command()
@repository_option
@model_option
@click.option("--version", type=click.IntRange(min=1), help="Version to show [the newest].")
@click.option("--item", type=click.IntRange(0, 2**63 - 1), help="Show what the version knows of this item id instead.")
@json_option
def command(repository: Path, model: str, version: int | None, item: int | None, as_json: bool) -> None:
    """Show schema, sizes, measured recall and hashes of a version, after checking its files against the hashes."""
    path = find_version(repository, model, version)
    with step("Checking files"):
        manifest = verify(path)
    if item is not None:
        values = item_values(path, manifest, item)
        if as_json:
            click.echo(json.dumps(values))
        else:
            for name, value in values.items():
                click.echo(f"{name}: {value}")
        return
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    there = ", ".join(found.name for found in versions(repository, model))
    _show(manifest, f"{path} (versions: {there})")


def _show(manifest: Manifest, title: str) -> None:
    console = Console()
    schema, index, recall = manifest.read_schema(), manifest.index, manifest.recall
    console.print(f"[bold]{escape(title)}[/bold]")
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_row("name", manifest.name)
    facts.add_row("written", f"{manifest.created} by silvertriton {manifest.silvertriton}, torch {manifest.torch}")
    facts.add_row("items", f"{index.items:,} of {index.dims} dims, found by codes of {index.code_dims}")
    fewest, median, most = index.cluster_items
    facts.add_row("clusters", f"{index.clusters:,} of {fewest:,} to {most:,} items, median {median:,}")
    facts.add_row("default", f"{index.mean_probes:,.1f} clusters probed on average, {index.candidates:,} candidates")
    facts.add_row(
        "recall",
        f"{recall.measured:.4f} at {recall.at}, target {recall.target}: {recall.queries:,} queries, "
        + escape(recall.source),
    )
    facts.add_row(
        "limits",
        f"{schema.max_results:,} results, {schema.max_candidates:,} candidates, "
        f"{index.max_filter_words:,} words of a filter",
    )
    facts.add_row("tasks", ", ".join(schema.tasks))
    facts.add_row("value", escape(manifest.value or "sum of the tasks, each times its weight"))
    if manifest.task_groups is not None:
        facts.add_row("vectors of", escape("; ".join(", ".join(group) for group in manifest.task_groups)))
    if manifest.diversity is not None:
        facts.add_row("diversity", escape(_rules(manifest.diversity)))
        if index.mean_results is not None:
            facts.add_row("", f"{index.mean_results:,.1f} of {schema.max_results:,} results pass on average")
    if schema.query_dims:
        facts.add_row("user", f"query vector of {schema.query_dims} dims")
    else:
        names = [f"{feature.name} ({feature.kind})" for feature in schema.user_features]
        if schema.history_length:
            names.append(f"history of {schema.history_length}")
        facts.add_row("user", ", ".join(names))
    for name, value in manifest.training.items():
        facts.add_row(name, f"{value:.4g}")
    if manifest.ranks is not None:
        facts.add_row("ranks for", f"version {manifest.ranks.version} of {manifest.ranks.model}")
    facts.add_row("fingerprint", str(manifest.fingerprint))
    facts.add_row("snapshot", manifest.snapshot)
    console.print(facts)
    if schema.item_features:
        features = Table("item feature", "kind", "values", "filter", box=None, padding=(0, 2, 0, 0))
        for feature in schema.item_features:
            known = manifest.vocabularies.get(feature.name)
            values: str = feature.values or ""
            if known is not None:
                values = f"{len(known):,}: {escape(', '.join(known[:4]))}{', ...' if len(known) > 4 else ''}"
            features.add_row(feature.name, feature.kind, values, "yes" if feature.filter else "")
        console.print(features)
    sizes = Table("in memory", "bytes", "an item", box=None, padding=(0, 2, 0, 0))
    for group, size in index.bytes.items():
        sizes.add_row(group, f"{size:,}", f"{size / index.items:.1f}")
    console.print(sizes)
    files = Table("file", "bytes", "SHA-256", box=None, padding=(0, 2, 0, 0))
    for name, entry in manifest.files.items():
        files.add_row(name, f"{entry.bytes:,}", entry.sha256)
    console.print(files)


def _rules(diversity: Diversity) -> str:
    limits = ", ".join(f"{most:,} of one {name}" for name, most in diversity.at_most.items())
    rules = [f"at most {limits}"] if limits else []
    if diversity.mmr is not None:
        rules.append(f"mmr {diversity.mmr:g}")
    return "; ".join(rules)
