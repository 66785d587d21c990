"""`builder evaluate`: quality over the test users, by exact search, through the index, reranked and through a server,
beside the usual baselines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from builder.cli.options import json_option, model_option, repository_option, tls_options
from builder.progress import step

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from builder.evaluation.summary import Interval, Summary
    from builder.training.run import Requests, TrainedRun
    from client.options import TLS


WIDE = 150  # columns where no terminal says how many it has
GAINS = ("index", "reranked", "served")  # what is compared with exact search


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--served", "address", metavar="HOST:PORT", help="Also through the server at this gRPC address.")
@repository_option
@model_option
@click.option("-k", type=click.IntRange(min=1), default=20, show_default=True, help="Results a user.")
@click.option("--baselines", is_flag=True, help="Also popularity, item-kNN, iALS and EASE, tuned on validation users.")
@json_option
@tls_options
def command(
    run: Path,
    address: str | None,
    repository: Path,
    model: str,
    k: int,
    baselines: bool,
    as_json: bool,
    tls: TLS | None,
) -> None:
    """Measure the ranking of RUN over all its test users.

    Every item is a candidate but those the user already has (full ranking, no sampled metrics).

    \b
    exact     the towers alone: exact search over the run's vectors
    index     the towers through the index of the newest version that was exported from RUN
    reranked  what that version answers, where it reranks, has a value formula or rules of diversity
    served    what a running server answers (--served), through the client

    Gains are relative to exact. Baselines learn from the same interactions. Intervals are 95% bootstrap intervals over
    users. The figures are kept in RUN/evaluation.json for `builder report`, beside those of earlier calls with the same
    -k.
    """
    import numpy as np

    from builder.data.lists import Lists
    from builder.evaluation.exact import exact_search
    from builder.evaluation.served import served_search
    from builder.evaluation.summary import DEEP, measure, summarise
    from builder.training.run import load
    from client._grpc import GrpcTransport

    trained = load(run)
    depth = max(k, DEEP)
    test, catalogue = trained.held_out("test"), trained.catalogue
    seen, targets = (Lists(ids.offsets, catalogue.find(ids.values)) for ids in (test.exclude, test.targets))
    with step(f"Exact search for {len(test):,} users"):
        found, _ = exact_search(trained.queries(test), trained.item_vectors, depth, exclude=seen)
    answers = {"exact": found}
    notes: dict[str, str] = {}
    answers |= _of_version(trained, test, repository, model, k, notes)
    if address is not None:
        transport = GrpcTransport(address, tls=tls)
        try:
            with step(f"Asking {address}", len(test)) as current:
                answers["served"] = served_search(
                    transport, model, test, catalogue, k, depth=depth, on_requests=current.advance
                )
        finally:
            transport.close()
    if baselines:
        answers |= _baselines(trained, k, depth, notes)
    popularity = np.bincount(trained.dataset.train.items, minlength=len(catalogue))
    with step("Bootstrapping intervals"):
        measured = {name: measure(found, targets, seen, popularity, k) for name, found in answers.items()}
        results = {
            name: summarise(part, measured["exact"] if name in GAINS else None) for name, part in measured.items()
        }
    if as_json:
        figures = {name: _figures(summary) for name, summary in results.items()}
        click.echo(json.dumps({"run": str(run), "users": len(test), "k": k, "notes": notes, **figures}))
    else:
        _show(f"{len(test):,} test users of {escape(str(run))}", results, notes, k)
    if address is not None:
        notes["served"] = f"{model} at {address}"
    _keep(run, results, notes, len(test), k)


def _of_version(
    trained: TrainedRun, test: Requests, repository: Path, model: str, k: int, notes: dict[str, str]
) -> dict[str, NDArray[np.int64]]:
    """Answers of the newest version of the run; `notes` says which it is, or that there is none."""
    from builder.evaluation.in_process import artifact_search
    from builder.export.repository import version_of_run

    version = version_of_run(repository, model, trained.config.name, trained.figures)
    if version is None:
        notes["index"] = f"left out: {repository / model} holds no version of this run; add it with builder export"
        return {}
    with step(f"Asking {version} in this process", len(test)) as current:
        found = artifact_search(version, test, trained.catalogue, on_requests=current.advance)
    answers = {"index": (found.index, str(version))}
    if found.orders:
        answers["reranked"] = (found.results, f"{version}: {', '.join(found.orders)}")
    for name, (positions, note) in list(answers.items()):
        notes[name] = note
        if positions.shape[1] < k:
            notes[name] = f"left out: {note} gives {positions.shape[1]} results, fewer than -k {k}"
            del answers[name]
    return {name: positions for name, (positions, _) in answers.items()}


def _keep(run: Path, results: dict[str, Summary], notes: dict[str, str], users: int, k: int) -> None:
    """What was measured was shown: a folder that cannot be written to is no failure."""
    from builder.errors import BuilderError
    from builder.evaluation.stored import store

    try:
        store(run, results, notes, users=users, k=k)
    except (OSError, BuilderError) as error:
        click.echo(f"warning: not kept for builder report: {error}", err=True)


def _baselines(trained: TrainedRun, k: int, depth: int, notes: dict[str, str]) -> dict[str, Any]:
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
            answers[baseline.name] = fitted.answer(asking, depth)
        if fitted.setting:
            notes[baseline.name] = ", ".join(f"{name} {value:g}" for name, value in fitted.setting.items())
    return answers


def _show(title: str, results: dict[str, Summary], notes: dict[str, str], k: int) -> None:
    from builder.evaluation.summary import DEEP, FEW_SEEN, TAIL

    titles = {
        "recall": f"Recall@{k}",
        "ndcg": f"NDCG@{k}",
        "mrr": f"MRR@{k}",
        "recall_new": "new users",
        "recall_tail": "tail items",
    }
    if any(_known(summary.intervals[f"recall_{DEEP}"]) for summary in results.values()):
        titles |= {f"recall_{DEEP}": f"Recall@{DEEP}", f"ndcg_{DEEP}": f"NDCG@{DEEP}"}
    table = Table("", *titles.values(), "coverage", box=None, padding=(0, 2, 0, 0))
    for name, summary in results.items():
        table.add_row(name, *(_cell(summary.intervals[key]) for key in titles), f"{summary.coverage:.1%}")
    gains = Table("gain over exact", *titles.values(), box=None, padding=(0, 2, 0, 0))
    for name, summary in results.items():
        if summary.gain:
            gains.add_row(name, *(_percent(summary.gain[key]) for key in titles))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(title, table, sep="\n")
    if gains.row_count:
        console.print(gains)
    console.print(
        f"±: half of a 95% interval. New users: Recall@{k} of those who have seen at most {FEW_SEEN} items. "
        f"Tail items: Recall@{k} of targets among the less popular {TAIL:.0%} of the items."
    )
    for name, note in notes.items():
        console.print(f"{name}: {note}")


def _figures(summary: Summary) -> dict[str, Any]:
    """None where there is no interval: JSON has no NaN."""
    figures: dict[str, Any] = {name: asdict(i) if _known(i) else None for name, i in summary.intervals.items()}
    if summary.gain:
        figures["gain"] = {name: asdict(i) if _known(i) else None for name, i in summary.gain.items()}
    return {**figures, "coverage": summary.coverage}


def _known(interval: Interval) -> bool:
    return interval.mean == interval.mean


def _cell(interval: Interval) -> str:
    return f"{interval.mean:.4f} ±{(interval.high - interval.low) / 2:.3f}" if _known(interval) else "-"


def _percent(gain: Interval) -> str:
    return f"{gain.mean:+.2%} ±{(gain.high - gain.low) / 2:.2%}" if _known(gain) else "-"
