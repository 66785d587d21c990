"""`builder quickstart`: data, training, export, the stock server and two queries, in one go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from builder import ops
from builder.cli.options import DEFAULT_MODEL
from builder.config import USER_ID, Config
from builder.data.columns import NumberColumn, TagsColumn
from builder.data.tables import read_table
from builder.data.vocabularies import string_values
from builder.errors import DownloadError
from builder.export.artifact import export
from builder.export.sources import from_run
from builder.progress import stages, step
from builder.serving.rollout import choose
from builder.serving.server import StockServer
from builder.serving.supervise import supervise
from builder.training.run import TrainedRun, load, train
from client import Condition, F, Retrieval, RetrievalClient
from client.hashing import string_key

RESULTS = 10
RESULTS_BEFORE = 5  # of the history
SHOWN_COLUMNS = ("title", "genres", "year", "category", "tags", "price")  # of the item table, those that there are


@click.command()
@click.option(
    "--dataset",
    type=click.Choice(["movielens-100k", "gowalla", "synthetic"]),
    default="movielens-100k",
    show_default=True,
    help="What to train on.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with the published files of the dataset; without it they are downloaded and verified.",
)
@click.option("--keep-serving", is_flag=True, help="Leave the server running until Ctrl-C.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="Where datasets/, runs/ and model_repository/ are written [the current folder].",
)
def command(dataset: str, data: Path | None, keep_serving: bool, work_dir: Path) -> None:
    """Go from raw data to filtered recommendations over gRPC, printing what comes back.

    A second run keeps the trained towers and is done in seconds.
    """
    ops.load()  # compiled, if need be, before anything else
    config = Config.load(_dataset(dataset, data, work_dir / "datasets"))
    run = load(train(config, work_dir / "runs" / config.name, resume=True))
    repository = work_dir / "model_repository"
    with stages() as stage:
        version = export(from_run(run), repository, model=DEFAULT_MODEL, step=stage)
    choose(repository, DEFAULT_MODEL, int(version.name))
    # SIGTERM unwinds like Ctrl-C, so that the server is stopped either way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = StockServer(repository, log=work_dir / "runs" / "quickstart-server.log")
    with step("Starting the stock Triton Inference Server"):
        server.start()
    console = Console()
    try:
        console.print(f"\n[bold]{escape(str(version))}[/bold] is served on {server.url} (gRPC)")
        with RetrievalClient(server.url, model=DEFAULT_MODEL, timeout=10.0) as client:
            _show_queries(console, client, run)
        if keep_serving:
            console.print(f"serving on {server.url} until Ctrl-C; ask it: builder query --address {server.url} --help")
            supervise(server, threading.Event(), lambda text: click.echo(text, err=True), restart=False)
    finally:
        server.stop()
        console.print("server stopped")


def _dataset(name: str, source: Path | None, folder: Path) -> Path:
    """Write the dataset and return its retrieval.yaml; without a network, MovieLens gives way to the synthetic set."""
    from builder.data.public import gowalla, movielens_100k

    with step(f"Reading {name}"):
        try:
            if name == "movielens-100k":
                return movielens_100k(source, folder / name)
            if name == "gowalla":
                return gowalla(source, folder / name)
        except DownloadError as error:
            if name != "movielens-100k":
                raise
            click.echo(f"{error}\nGoing on with the synthetic dataset instead.", err=True)
        from builder.data.synthetic import synthetic

        return synthetic(folder / "synthetic", users=1500, items=3000, seed=0)


def _show_queries(console: Console, client: RetrievalClient, run: TrainedRun) -> None:
    """Ask for one held-out user: as they are, and with a filter (or, without filter features, fewer exclusions)."""
    asking = run.held_out("test")
    position = int(np.argmax((asking.history >= 0).sum(axis=1)))
    user_key = int(run.dataset.user_keys[run.dataset.test.users[position]])
    user = _user(run, user_key)
    history = [int(item) for item in asking.history[position] if item >= 0]
    seen = asking.exclude[position]
    items = _Items(run)
    told = ", ".join(f"{name}={value}" for name, value in user.items())
    console.print(f"a user: {escape(told)}; the last of {len(history)} items in the history:")
    console.print(items.table(history[: -RESULTS_BEFORE - 1 : -1]))

    result = client.retrieve(user=user, history=history, exclude=seen, k=RESULTS)
    _show(console, "what they have not seen", result, items)
    condition = example_filter(run)
    if condition is not None:
        result = client.retrieve(user=user, history=history, exclude=seen, filter=condition, k=RESULTS)
        _show(console, str(condition), result, items)


def _show(console: Console, title: str, result: Retrieval, items: _Items) -> None:
    stats = result.stats
    console.print(f"\n[bold]{escape(title)}[/bold]")
    console.print(items.table(result.item_ids.tolist(), result.scores.tolist()))
    console.print(
        f"{result.latency * 1e3:.2f} ms over gRPC: {stats.rows_passing:,} items pass, "
        f"{stats.rows_scanned:,} scanned in {stats.clusters_probed:,} clusters{', exact' if stats.exact else ''}"
    )


class _Items:
    """The item table as it is in the file, for titles and the like."""

    def __init__(self, run: TrainedRun) -> None:
        whole = pq.read_table(run.config.items.path)
        self._columns = [name for name in SHOWN_COLUMNS if name in whole.column_names]
        rows = whole.select(self._columns).to_pylist() if self._columns else [{} for _ in range(len(whole))]
        self._rows = dict(zip(whole.column(run.config.items.id).to_pylist(), rows, strict=True))

    def table(self, ids: Sequence[int], scores: Sequence[float] | None = None) -> Table:
        table = Table("item", *self._columns, *(["score"] if scores else []), box=None, padding=(0, 2, 0, 0))
        for place, item in enumerate(ids):
            cells = [escape(_text(self._rows[item][name])) for name in self._columns]
            table.add_row(str(item), *cells, *([f"{scores[place]:.3f}"] if scores else []))
        return table


def _user(run: TrainedRun, key: int) -> dict[str, Any]:
    """The features of a user as the user table has them; users without one have only their id."""
    users = run.config.data.users
    user: dict[str, Any] = {}
    if run.config.network.user_id and run.user_features[0].values == "integer":
        user[USER_ID] = key
    if users is not None and users.path is not None and users.id is not None:
        table = read_table(users.path, [users.id, *(feature.source for feature in users.features)])
        row = table.filter(pc.equal(table.column(users.id), key)).to_pylist()
        if row:
            user |= {feature.name: row[0][feature.source] for feature in users.features}
    return user


def example_filter(run: TrainedRun) -> Condition | None:
    """A filter that leaves a fair part: either of the two most frequent tags, and at least the median of a number."""
    names = string_values(run.config.items, run.catalogue)
    parts: list[Condition] = []
    filtered = [column for column in run.catalogue.columns if column.feature.filter]
    for column in filtered:
        if isinstance(column, TagsColumn) and column.feature.name in names:
            keys, counts = np.unique(column.keys, return_counts=True)
            words = {string_key(word): word for word in names[column.feature.name]}
            common = [words[int(key)] for key in keys[np.argsort(-counts, kind="stable")[:2]]]
            parts.append(F[column.feature.name].any_of(*common))
            break
    for column in filtered:
        if isinstance(column, NumberColumn) and column.feature.kind == "number":
            middle = float(np.nanmedian(column.values))
            parts.append(F[column.feature.name] >= (int(middle) if middle.is_integer() else middle))
            break
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else parts[0] & parts[1]


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
