"""`builder query`: one request to a running server, from the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from builder.cli.options import json_option, model_option
from client import Explanation, Ranking, Request, RequestError, Retrieval, RetrievalClient, Schema
from client.filters.text import parse_filter

DEFAULT_RESULTS = 10


@click.command()
@click.option("--address", default="127.0.0.1:8001", show_default=True, help="host:port of the gRPC endpoint.")
@model_option
@click.option("--user", "features", multiple=True, metavar="NAME=VALUE", help="A user feature; repeat for more.")
@click.option("--history", metavar="ID,ID,...", help="Item ids, newest last.")
@click.option("--query", type=click.Path(path_type=Path), help=".npy file of one query vector [D].")
@click.option("--filter", "text", metavar="CONDITION", help="""E.g. 'F.genres.any_of("Drama") & (F.year >= 1990)'.""")
@click.option("--exclude", metavar="ID,ID,...", help="Item ids never to return.")
@click.option("--rank", "items", metavar="ID,ID,...", help="Score these items instead of searching.")
@click.option("--explain", "explained", type=int, metavar="ID", help="Say why this item is, or is not, returned.")
@click.option("-k", type=click.IntRange(min=1), help="Results wanted [10; all that --rank names].")
@click.option("--probes", type=click.IntRange(min=1), help="Clusters to probe [the artifact's].")
@click.option("--candidates", type=click.IntRange(min=1), help="Candidates to rescore [the artifact's].")
@click.option("--timeout", type=float, default=2.0, show_default=True, help="Seconds.")
@json_option
def command(
    address: str,
    model: str,
    features: tuple[str, ...],
    history: str | None,
    query: Path | None,
    text: str | None,
    exclude: str | None,
    items: str | None,
    explained: int | None,
    k: int | None,
    probes: int | None,
    candidates: int | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Retrieve items for one user, or score given ones, and print them; or explain one item."""
    condition = parse_filter(text) if text else None
    with RetrievalClient(address, model=model, timeout=timeout) as client:
        if items is not None:
            if explained is not None:
                raise click.UsageError("--explain is about a search, --rank searches nothing: leave one of them out")
            if text or exclude or probes or candidates:
                raise click.UsageError("--rank searches nothing: leave out --filter, --exclude, --probes, --candidates")
            ranking = client.rank(
                user=_user(features, client.schema),
                history=_ids("--history", history),
                query=_vector(query),
                items=_ids("--rank", items) or [],
                k=k,
            )
            _print_ranking(ranking, as_json)
            return
        request = Request(
            user=_user(features, client.schema),
            history=_ids("--history", history),
            query=_vector(query),
            filter=condition,
            exclude=_ids("--exclude", exclude),
            k=DEFAULT_RESULTS if k is None else k,
            probes=probes,
            candidates=candidates,
        )
        if explained is not None:
            explanation = client.explain(explained, request)
            click.echo(json.dumps(_explanation(explanation)) if as_json else str(explanation))
            return
        (result,) = client.retrieve_many([request])
    if isinstance(result, RequestError):
        raise result
    if as_json:
        click.echo(json.dumps(_as_json(result)))
    else:
        _show(result)


def _user(features: tuple[str, ...], schema: Schema) -> dict[str, Any] | None:
    """Values typed as the schema says; the client checks the names."""
    kinds = {feature.name: feature for feature in schema.user_features}
    user: dict[str, Any] = {}
    for text in features:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"got {text!r}, expected NAME=VALUE", param_hint="--user")
        feature = kinds.get(name)
        try:
            if feature is not None and feature.values == "integer":
                user[name] = int(value)
            elif feature is not None and feature.kind == "number":
                user[name] = float(value)
            else:
                user[name] = value
        except ValueError as error:
            kind = "an integer" if feature and feature.values == "integer" else "a number"
            raise click.BadParameter(f"{name}: got {value!r}, expected {kind}", param_hint="--user") from error
    return user or None


def _ids(option: str, text: str | None) -> list[int] | None:
    if not text:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"got {text!r}, expected item ids with commas between", param_hint=option) from error


def _vector(path: Path | None) -> np.ndarray[Any, np.dtype[Any]] | None:
    if path is None:
        return None
    try:
        vector: np.ndarray[Any, np.dtype[Any]] = np.load(path, allow_pickle=False)
    except Exception as error:  # for a damaged header NumPy raises tokenizer and type errors too
        raise click.BadParameter(f"{path} is no .npy array: {error}", param_hint="--query") from error
    return vector


def _explanation(explanation: Explanation) -> dict[str, Any]:
    return {
        "item_id": explanation.item_id,
        "outcome": explanation.outcome,
        "reasons": explanation.reasons,
        "k": explanation.k,
        "position": explanation.position,
        "score": explanation.score,
        "kth_score": explanation.kth_score,
        "gap": explanation.gap,
        "failing": [str(part) for part in explanation.failing],
        "probes": explanation.probes,
        "candidates": explanation.candidates,
        "certain": explanation.certain,
        "version": explanation.version,
        "text": str(explanation),
    }


def _print_ranking(result: Ranking, as_json: bool) -> None:
    if as_json:
        answer = {"hits": _hits(result), "unknown": result.unknown.tolist(), "latency_ms": result.latency * 1e3}
        click.echo(json.dumps(answer))
        return
    console = Console()
    console.print(_table(result))
    unknown = f"; unknown: {', '.join(map(str, result.unknown.tolist()))}" if len(result.unknown) else ""
    console.print(f"{result.count} items ranked in {result.latency * 1e3:.2f} ms{unknown}")


def _hits(result: Retrieval | Ranking) -> list[dict[str, Any]]:
    return [{"item_id": hit.item_id, "score": hit.score, "tasks": hit.tasks} for hit in result]


def _as_json(result: Retrieval) -> dict[str, Any]:
    stats = result.stats
    return {
        "hits": _hits(result),
        "stats": {
            "clusters_probed": stats.clusters_probed,
            "rows_passing": stats.rows_passing,
            "rows_scanned": stats.rows_scanned,
            "exact": stats.exact,
        },
        "latency_ms": result.latency * 1e3,
    }


def _table(result: Retrieval | Ranking) -> Table:
    table = Table("", "item", "score", box=None, padding=(0, 2, 0, 0))
    for place, hit in enumerate(result, start=1):
        table.add_row(str(place), str(hit.item_id), f"{hit.score:.4f}")
    return table


def _show(result: Retrieval) -> None:
    console = Console()
    console.print(_table(result))
    stats = result.stats
    console.print(
        f"{result.count} results in {result.latency * 1e3:.2f} ms: {stats.rows_passing:,} items pass, "
        f"{stats.rows_scanned:,} scanned in {stats.clusters_probed:,} clusters{', exact' if stats.exact else ''}"
    )
