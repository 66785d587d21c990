"""`builder evaluate`: quality over the test users, by exact search and through a server, beside the usual baselines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from builder.cli.options import json_option, model_option
from builder.progress import step

if TYPE_CHECKING:
    from builder.evaluation.summary import Interval, Summary


WIDE = 120  # columns where no terminal says how many it has


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--served", "address", metavar="HOST:PORT", help="Also through the server at this gRPC address.")
@model_option
@click.option("-k", type=click.IntRange(min=1), default=20, show_default=True, help="Results a user.")
@click.option("--baselines", is_flag=True, help="Also popularity, item-kNN, iALS and EASE, tuned on validation users.")
@json_option
def command(run: Path, address: str | None, model: str, k: int, baselines: bool, as_json: bool) -> None:
    """Measure the ranking of RUN over all its test users.

    Every item is a candidate but those the user already has (full ranking, no sampled metrics). Exact search ranks by
    the run's own vectors; --served asks a running server for the same, through the client, with the seen items
    excluded. Baselines learn from the same interactions. Intervals are 95% bootstrap intervals over users. The figures
    are kept in RUN/evaluation.json for `builder report`, beside those of earlier calls with the same -k.
    """
    import numpy as np

    from builder.data.lists import Lists
    from builder.evaluation.exact import exact_search
    from builder.evaluation.served import served_search
    from builder.evaluation.summary import summarise
    from builder.training.run import load
    from client._grpc import GrpcTransport

    trained = load(run)
    test, catalogue = trained.held_out("test"), trained.catalogue
    seen, targets = (Lists(ids.offsets, catalogue.find(ids.values)) for ids in (test.exclude, test.targets))
    with step(f"Exact search for {len(test):,} users"):
        found, _ = exact_search(trained.queries(test), trained.item_vectors, k, exclude=seen)
    answers = {"exact": found}
    if address is not None:
        transport = GrpcTransport(address)
        try:
            with step(f"Asking {address}", len(test)) as current:
                answers["served"] = served_search(transport, model, test, catalogue, k, on_requests=current.advance)
        finally:
            transport.close()
    notes: dict[str, str] = {}
    if baselines:
        answers |= _baselines(trained, k, notes)
    popularity = np.bincount(trained.dataset.train.items, minlength=len(catalogue))
    with step("Bootstrapping intervals"):
        results = {name: summarise(found, targets, seen, popularity) for name, found in answers.items()}
    if as_json:
        figures = {name: _figures(summary) for name, summary in results.items()}
        click.echo(json.dumps({"run": str(run), "users": len(test), "k": k, "notes": notes, **figures}))
    else:
        _show(f"{len(test):,} test users of {escape(str(run))}", results, notes, k)
    if address is not None:
        notes["served"] = f"{model} at {address}"
    _keep(run, results, notes, len(test), k)


def _keep(run: Path, results: dict[str, Summary], notes: dict[str, str], users: int, k: int) -> None:
    """What was measured was shown: a folder that cannot be written to is no failure."""
    from builder.errors import BuilderError
    from builder.evaluation.stored import store

    try:
        store(run, results, notes, users=users, k=k)
    except (OSError, BuilderError) as error:
        click.echo(f"warning: not kept for builder report: {error}", err=True)


def _baselines(trained: Any, k: int, notes: dict[str, str]) -> dict[str, Any]:
    """Answers of every baseline that the catalogue is small enough for; `notes` gets what was chosen or left out."""
    from builder.data.lists import Lists
    from builder.errors import BuilderError
    from builder.evaluation.baselines import BASELINES, fit_best, matrix

    try:
        import implicit  # noqa: F401
    except ImportError as error:
        raise BuilderError(
            "needs the library implicit", where="--baselines", remedy="pip install 'silvertriton[baselines]'"
        ) from error
    dataset, items = trained.dataset, len(trained.catalogue)
    interactions = matrix(Lists(dataset.train.offsets, dataset.train.items), items)
    validation = dataset.validation
    histories, asking = matrix(validation.seen, items), matrix(dataset.test.seen, items)
    answers = {}
    for baseline in BASELINES:
        if baseline.most_items is not None and items > baseline.most_items:
            notes[baseline.name] = f"left out: made for at most {baseline.most_items:,} items, here are {items:,}"
            continue
        with step(f"{baseline.name}, {len(baseline.settings)} setting{'s' * (len(baseline.settings) > 1)}"):
            fitted = fit_best(baseline, interactions, histories, validation.targets, k)
            answers[baseline.name] = fitted.answer(asking, k)
        if fitted.setting:
            notes[baseline.name] = ", ".join(f"{name} {value:g}" for name, value in fitted.setting.items())
    return answers


def _show(title: str, results: dict[str, Summary], notes: dict[str, str], k: int) -> None:
    from builder.evaluation.summary import FEW_SEEN, TAIL

    names = (f"Recall@{k}", f"NDCG@{k}", f"MRR@{k}", "new users", "tail items", "coverage")
    table = Table("", *names, box=None, padding=(0, 2, 0, 0))
    for name, summary in results.items():
        cells = [_cell(interval) for _, interval in summary.intervals()]
        table.add_row(name, *cells, f"{summary.coverage:.1%}")
    if "served" in results:
        exact, served = results["exact"], results["served"]
        pairs = zip(served.intervals(), exact.intervals(), strict=True)
        table.add_row("difference", *(_relative(s.mean, e.mean) for (_, s), (_, e) in pairs), "")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(title, table, sep="\n")
    console.print(
        f"±: half of a 95% interval. New users: Recall@{k} of those who have seen at most {FEW_SEEN} items. "
        f"Tail items: Recall@{k} of targets among the less popular {TAIL:.0%} of the items."
    )
    for name, note in notes.items():
        console.print(f"{name}: {note}")


def _figures(summary: Summary) -> dict[str, Any]:
    """None where there is no interval: JSON has no NaN."""
    known = {name: asdict(i) if i.mean == i.mean else None for name, i in summary.intervals()}
    return {**known, "coverage": summary.coverage}


def _cell(interval: Interval) -> str:
    return "-" if interval.mean != interval.mean else f"{interval.mean:.4f} ±{(interval.high - interval.low) / 2:.3f}"


def _relative(value: float, reference: float) -> str:
    return f"{(value - reference) / reference:+.2%}" if reference > 0 else "-"
