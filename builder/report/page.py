"""The page: what was read, in sections, as one HTML file that refers to nothing outside itself."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from builder.evaluation.summary import DEEP, FEW_SEEN, TAIL
from builder.report import charts
from builder.report.artifact import Numbers, Terms
from builder.report.contents import Contents
from builder.report.svg import Drawer

TOP_VALUES = 8  # of a filter feature, by name
MOST_CHARTS = 24  # filter features with a chart; each is some 15 kB
COLOURS = ("#1d5fbf", "#d1690f", "#2c8a57", "#8256b5", "#c2384d", "#2b8ea3", "#8b95a5", "#b58a1b")


@dataclass(frozen=True)
class Missing:
    """Why a section is empty, and the command that fills it, if one does."""

    section: str
    text: str
    command: str = ""


@dataclass(frozen=True)
class Chart:
    title: str
    svg: Markup


def render(contents: Contents) -> tuple[str, tuple[Missing, ...]]:
    """The page and what it lacks."""
    draw = Drawer()
    missing: list[Missing] = []
    parts: dict[str, Any] = {}
    for name, part in _SECTIONS.items():
        found = part(contents, draw)
        if isinstance(found, Missing):
            missing.append(found)
        parts[name] = found
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": size,
        "share": share,
        "count": "{:,}".format,
        "points": "{:.4f}".format,
        "gain": "{:+.2%}".format,
        "figure": charts.two_digits,
    }
    environment.tests["missing"] = lambda found: isinstance(found, Missing)
    page = environment.get_template("page.html").render(
        head=_head(contents),
        written=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        silvertriton=installed_version("silvertriton"),
        unread=contents.unread,
        **parts,
    )
    return page, tuple(missing)


def _head(contents: Contents) -> dict[str, Any]:
    artifact, data, figures = contents.artifact, contents.data, contents.figures
    facts = [("run", str(contents.run))]
    tiles = []
    at = next((key.removeprefix("test_recall_at_") for key in figures if key.startswith("test_recall_at_")), None)
    if at is not None:
        tiles.append((f"Recall@{at}", f"{figures[f'test_recall_at_{at}']:.4f}", "test users, exact search"))
        if f"test_ndcg_at_{at}" in figures:
            tiles.append((f"NDCG@{at}", f"{figures[f'test_ndcg_at_{at}']:.4f}", "test users, exact search"))
    if at is not None and f"rerank_test_recall_at_{at}" in figures:
        tiles.append(("Reranked", f"{figures[f'rerank_test_recall_at_{at}']:.4f}", f"Recall@{at} of test users"))
    if artifact is not None:
        manifest = artifact.manifest
        recall, held = manifest.recall, sum(manifest.index.bytes.values())
        tiles.append((f"Index recall@{recall.at}", f"{recall.measured:.4f}", f"target {recall.target:g}"))
        tiles.append(("In memory", size(held), f"{held / manifest.index.items:,.1f} bytes an item"))
        facts += [
            ("version", str(artifact.version)),
            ("created", _moment(manifest.created)),
            ("written by", f"silvertriton {manifest.silvertriton}, torch {manifest.torch}"),
        ]
    if data is not None:
        tiles.append(("Items", f"{data.items:,}", ""))
        tiles.append(("Users", f"{data.users:,}", f"{data.test_users:,} of them tested"))
        tiles.append(("Interactions", f"{data.interactions:,}", "to train on"))
    elif artifact is not None:
        tiles.append(("Items", f"{artifact.manifest.index.items:,}", ""))
    if "seconds" in figures:
        facts.append(("trained in", f"{figures['seconds']:,.0f} s"))
    return {"name": contents.name, "facts": facts, "tiles": tiles}


def _moment(written: str) -> str:
    """An ISO 8601 time to the minute, UTC."""
    try:
        return datetime.datetime.fromisoformat(written).astimezone(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return written


def _training(contents: Contents, draw: Drawer) -> Any:
    log, best = contents.epochs, int(contents.figures.get("best_epoch", 0))
    if not log:
        return Missing("Training", "The run folder holds no metrics.jsonl.", _command("train", "retrieval.yaml"))
    losses = {line.epoch: line.loss for line in log if line.loss is not None}
    series: dict[str, dict[int, float]] = {"Loss": losses} if losses else {}
    validated = any(line.recall or line.ndcg for line in log)
    if validated:
        series["Validation Recall@20"] = {line.epoch: line.recall for line in log}
        series["Validation NDCG@20"] = {line.epoch: line.ndcg for line in log}
    return {
        "charts": [
            Chart(name, Markup(charts.epochs(draw, name, list(values), list(values.values()), best)))
            for name, values in series.items()
        ],
        "epochs": log[-1].epoch,
        "best": best,
        "line": next((line for line in log if line.epoch == best), None),
        "validated": validated,
    }


def _quality(contents: Contents, draw: Drawer) -> Any:
    found = contents.evaluation
    command = _command("evaluate", contents.run, "--baselines", *_where(contents))
    if found is None or not found.systems:
        return Missing("Quality", "Figures with intervals, beside the usual baselines, are not measured yet.", command)
    own = [name for name in ("exact", "index", "reranked", "served") if name in found.systems]
    names = [*own, *(name for name in found.systems if name not in own)]
    titles = {
        "recall": (f"Recall@{found.k}", ""),
        "ndcg": (f"NDCG@{found.k}", ""),
        "mrr": (f"MRR@{found.k}", ""),
        "recall_new": ("New users", f"Recall@{found.k} of those who have seen at most {FEW_SEEN} items"),
        "recall_tail": ("Tail items", f"Recall@{found.k} of targets among the less popular {TAIL:.0%} of the items"),
        f"recall_{DEEP}": (f"Recall@{DEEP}", ""),
        f"ndcg_{DEEP}": (f"NDCG@{DEEP}", ""),
    }
    known = [key for key in titles if any(found.systems[name].intervals.get(key) for name in names)]
    drawn = []
    for key in known:
        values = [found.systems[name].intervals.get(key) for name in names]
        drawn.append(Chart(titles[key][0], Markup(charts.intervals(draw, names, values, len(own)))))
    shares = [found.systems[name].coverage for name in names]
    drawn.append(Chart("Coverage of the catalogue", Markup(charts.intervals(draw, names, shares, len(own)))))
    return {
        "k": found.k,
        "users": found.users,
        "charts": drawn,
        "titles": [titles[key] for key in known],
        "rows": [
            (name, [found.systems[name].intervals.get(key) for key in known], found.systems[name], name in own)
            for name in names
        ],
        "gains": [
            (name, [found.systems[name].gain.get(key) for key in known]) for name in own if found.systems[name].gain
        ],
        "left_out": found.left_out,
        "command": "" if len(names) > len(own) or found.left_out else command,
    }


def _tradeoff(contents: Contents, draw: Drawer) -> Any:
    artifact = contents.artifact
    if artifact is None:
        return _no_version("Recall and latency", contents)
    curve, index, recall = artifact.manifest.curve, artifact.manifest.index, artifact.manifest.recall
    if curve is None or not curve.points:
        return Missing(
            "Recall and latency",
            "Not measured for this version; the next version, which is otherwise the same, will have it.",
            _command("tune", contents.run, *_where(contents)),
        )
    chosen = next((p for p in curve.points if (p.reach, p.candidates) == (index.reach[0], index.candidates)), None)

    def drawn(cost: str, label: str) -> Markup:
        return Markup(charts.tradeoff(draw, curve.points, chosen, recall.target, recall.at, cost, label))

    return {
        "recall": recall,
        "machine": curve.machine,
        "charts": [
            Chart("Time of a search", drawn("milliseconds", "ms, one query, one thread")),
            Chart("Clusters", drawn("probes", "clusters scanned, mean")),
            Chart("Candidates", drawn("candidates", "candidates rescored")),
        ],
        "rows": [(point, point == chosen) for point in curve.points],
        "flat": max(p.recall for p in curve.points) - min(p.recall for p in curve.points) < 0.01,
    }


def _clusters(contents: Contents, draw: Drawer) -> Any:
    artifact = contents.artifact
    if artifact is None:
        return _no_version("Clusters", contents)
    sizes, index = artifact.cluster_items, artifact.manifest.index
    log = bool(np.quantile(sizes, 0.99) > 20 * max(1.0, float(np.median(sizes))))
    median = float(np.median(sizes))
    spread = f"{sizes.min():,} to {sizes.max():,}, median {median:,.0f}, mean {sizes.mean():,.1f}"
    svg = charts.counts(draw, sizes, "items in a cluster", "clusters", marked=median, log=log)
    return {
        "chart": Chart("Cluster sizes; marked: the median", Markup(svg)),
        "facts": [
            ("clusters", f"{len(sizes):,}"),
            ("items in a cluster", spread),
            ("items in the largest tenth", share(_largest_tenth(sizes))),
            ("empty clusters", f"{int((sizes == 0).sum()):,}"),
            ("padding to whole blocks", share(artifact.rows / max(1, int(sizes.sum())) - 1)),
            ("scanned by default", f"{index.mean_probes:,.1f} clusters on average, {index.candidates:,} candidates"),
            ("dims", f"{index.dims:,} of vectors, {index.code_dims:,} of codes"),
        ],
    }


def _largest_tenth(sizes: Any) -> float:
    largest = np.sort(sizes)[::-1][: max(1, -(-len(sizes) // 10))]
    return float(largest.sum() / max(1, sizes.sum()))


def _filters(contents: Contents, draw: Drawer) -> Any:
    artifact = contents.artifact
    if artifact is None:
        return _no_version("Filters", contents)
    if not artifact.filters:
        return Missing("Filters", "No item feature has filter: true in retrieval.yaml.")
    items = artifact.manifest.index.items
    features = []
    for number, feature in enumerate(artifact.filters):
        here = draw if number < MOST_CHARTS else None
        features.append(_terms(feature, items, here) if isinstance(feature, Terms) else _numbers(feature, items, here))
    return {"features": features, "total": items, "charted": MOST_CHARTS}


def _terms(feature: Terms, items: int, draw: Drawer | None) -> dict[str, Any]:
    shares = feature.items / items
    facts = [("values", f"{len(shares):,}")]
    several = bool(len(shares)) and int(feature.items[0]) > 1
    if len(shares) and not several:
        facts.append(("a value passes", f"one item, {share(shares[0])}"))
    elif len(shares):
        facts.append(
            ("a value passes", f"{share(shares[-1])} to {share(shares[0])}, median {share(np.median(shares))}")
        )
    facts.append(("without a value", share(feature.unknown / items)))
    rows = [
        (value, int(count), float(count / items), float(count / feature.items[0]))
        for value, count in zip(feature.values[:TOP_VALUES], feature.items, strict=False)
        if several
    ]
    chart = None
    if draw is not None and several and len(shares) > 1:
        chart = Chart("Items that pass, by value", Markup(charts.ranks(draw, shares)))
    rest = len(shares) - len(rows) if several else 0
    return {"name": feature.name, "kind": feature.kind, "facts": facts, "chart": chart, "rows": rows, "rest": rest}


def _numbers(feature: Numbers, items: int, draw: Drawer | None) -> dict[str, Any]:
    finite, dates = feature.values[np.isfinite(feature.values)], feature.kind == "date"
    facts = [("different values", f"{len(np.unique(feature.values)):,}")]
    if len(finite):
        names = ("least", "quarter below", "half below", "three quarters below", "greatest")
        at = np.minimum(len(finite) - 1, (np.linspace(0, 1, 5) * len(finite)).astype(int))
        facts += [(name, _value(float(finite[i]), dates)) for name, i in zip(names, at, strict=True)]
    facts.append(("without a value", share(feature.unknown / items)))
    chart = None
    if draw is not None and len(finite):
        title = "Items by value" + (", the middle 99%" if charts.cut(len(finite)) else "")
        chart = Chart(title, Markup(charts.numbers(draw, finite, dates=dates)))
    return {"name": feature.name, "kind": feature.kind, "facts": facts, "chart": chart, "rows": [], "rest": 0}


def _value(value: float, date: bool) -> str:
    if date and charts.YEARS[0] <= value < charts.YEARS[1]:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=value)
        return moment.date().isoformat() if not value % 86_400 else moment.isoformat(" ", "seconds")
    return f"{int(value)}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def _data(contents: Contents, draw: Drawer) -> Any:
    data = contents.data
    if data is None:
        return Missing("Data", f"The data of the run cannot be read: {contents.unread.get('data', 'it is not there')}")
    lengths, popular = data.user_items[data.user_items > 0], np.sort(data.item_users)[::-1]
    drawn = []
    if len(lengths):
        log = bool(lengths.max() > 10 * np.median(lengths))
        marked = float(data.history) if data.history else None
        svg = charts.counts(draw, lengths, "interactions of a user", "users", marked=marked, log=log)
        title = "History lengths" + ("; marked: what the model reads" if data.history else "")
        drawn.append(Chart(title, Markup(svg)))
    svg = charts.counts(draw, popular[popular > 0], "interactions of an item", "items", log=True)
    drawn.append(Chart("Item popularity, where there is any", Markup(svg)))
    drawn.append(Chart("Interactions of the most popular items", Markup(charts.popularity(draw, popular))))
    first = popular[: max(1, len(popular) // 100)].sum() / max(1, popular.sum())
    return {
        "charts": drawn,
        "facts": [
            ("interactions to train on", f"{data.interactions:,}"),
            ("users", f"{data.users:,}, {len(lengths):,} of them to train on"),
            ("a user has", f"{np.median(lengths):,.0f} interactions (median)" if len(lengths) else "none"),
            ("held-out users", f"{data.validation_users:,} for validation, {data.test_users:,} for the test"),
            ("the most popular 1% of the items", f"{share(first)} of the interactions"),
            ("items without an interaction", f"{int((popular == 0).sum()):,} of {data.items:,}"),
        ],
    }


def _calibration(contents: Contents, draw: Drawer) -> Any:
    if not contents.calibration:
        if "calibration" in contents.unread:
            return Missing("Calibration", f"Cannot be read: {contents.unread['calibration']}")
        return Missing(
            "Calibration",
            "The run has no reranker, whose probabilities this would show: rerank in retrieval.yaml.",
            _command("train", "retrieval.yaml"),
        )
    return {
        "tasks": [
            (Chart(task, Markup(charts.reliability(draw, found))), found.ece, sum(found.count), len(found.counts()))
            for task, found in contents.calibration.items()
        ]
    }


def _weight(contents: Contents, draw: Drawer) -> Any:
    artifact = contents.artifact
    if artifact is None:
        return _no_version("Artifact", contents)
    manifest = artifact.manifest
    index, schema = manifest.index, manifest.read_schema()
    held = sum(index.bytes.values())
    groups = sorted(index.bytes.items(), key=lambda group: -group[1])
    user = f"query vector of {schema.query_dims} dims" if schema.query_dims else ", ".join(
        [*(f"{feature.name} ({feature.kind})" for feature in schema.user_features)]
        + ([f"history of {schema.history_length}"] if schema.history_length else [])
    )  # fmt: skip
    return {
        "groups": [
            (name, count, count / index.items, count / max(1, held), COLOURS[place % len(COLOURS)])
            for place, (name, count) in enumerate(groups)
        ],
        "held": held,
        "total": index.items,
        "files": manifest.files,
        "facts": [
            ("a request brings", user),
            (
                "limits",
                f"{schema.max_results:,} results, {schema.max_candidates:,} candidates, "
                f"{index.max_filter_words:,} words of a filter",
            ),
            ("tasks", ", ".join(schema.tasks)),
            ("value", manifest.value or "sum of the tasks, each times its weight"),
            ("item features", ", ".join(f"{f.name} ({f.kind})" for f in schema.item_features) or "none"),
            ("operators, fingerprint", f"{manifest.operators}, {manifest.fingerprint}"),
        ],
    }


_SECTIONS: dict[str, Callable[[Contents, Drawer], Any]] = {
    "training": _training,
    "quality": _quality,
    "tradeoff": _tradeoff,
    "clusters": _clusters,
    "filters": _filters,
    "data": _data,
    "calibration": _calibration,
    "weight": _weight,
}


def _no_version(section: str, contents: Contents) -> Missing:
    return Missing(
        section,
        f"{contents.repository / contents.model} holds no version that was exported from this run.",
        _command("export", contents.run, *_where(contents)),
    )


def _where(contents: Contents) -> Sequence[str]:
    return ("--repository", str(contents.repository), "--model", contents.model)


def _command(*words: object) -> str:
    return shlex.join(["builder", *map(str, words)])


def size(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point; powers of 1,000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def share(value: float) -> str:
    """A share as percent: one digit after the point from 1% on, two that count below."""
    percent = 100 * float(value)
    return f"{percent:.1f}%" if percent >= 0.995 else f"{charts.two_digits(percent)}%"
