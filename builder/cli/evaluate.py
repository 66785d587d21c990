"""`builder evaluate`: quality over the test users, by exact search and through a server."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from builder.cli.options import json_option, model_option
from builder.progress import step


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--served", "address", metavar="HOST:PORT", help="Also through the server at this gRPC address.")
@model_option
@click.option("-k", type=click.IntRange(min=1), default=20, show_default=True, help="Results a user.")
@json_option
def command(run: Path, address: str | None, model: str, k: int, as_json: bool) -> None:
    """Measure Recall@K and NDCG@K of RUN over all its test users.

    Every item is a candidate but those the user already has (full ranking, no sampled metrics). Exact search ranks by
    the run's own vectors; --served asks a running server for the same, through the client, with the seen items
    excluded.
    """
    from builder.data.lists import Lists
    from builder.evaluation.exact import exact_search
    from builder.evaluation.metrics import Quality, quality
    from builder.evaluation.served import served_search
    from builder.training.run import load
    from client._grpc import GrpcTransport

    trained = load(run)
    test = trained.held_out("test")
    find = trained.catalogue.find
    seen, targets = (Lists(ids.offsets, find(ids.values)) for ids in (test.exclude, test.targets))
    with step(f"Exact search for {len(test):,} users"):
        found, _ = exact_search(trained.queries(test), trained.item_vectors, k, exclude=seen)
    results: dict[str, Quality] = {"exact": quality(found, targets)}
    if address is not None:
        transport = GrpcTransport(address)
        try:
            with step(f"Asking {address}", len(test)) as current:
                answers = served_search(transport, model, test, trained.catalogue, k, on_requests=current.advance)
        finally:
            transport.close()
        results["served"] = quality(answers, targets)
    if as_json:
        figures = {name: {"recall": q.recall, "ndcg": q.ndcg} for name, q in results.items()}
        click.echo(json.dumps({"run": str(run), "users": len(test), "k": k, **figures}))
        return
    table = Table("", f"Recall@{k}", f"NDCG@{k}", box=None, padding=(0, 2, 0, 0))
    for name, measured in results.items():
        table.add_row(name, f"{measured.recall:.4f}", f"{measured.ndcg:.4f}")
    if "served" in results:
        exact, served = results["exact"], results["served"]
        table.add_row("difference", _relative(served.recall, exact.recall), _relative(served.ndcg, exact.ndcg))
    Console().print(f"{len(test):,} test users of {escape(str(run))}", table, sep="\n")


def _relative(value: float, reference: float) -> str:
    return f"{(value - reference) / reference:+.2%}" if reference else "-"
