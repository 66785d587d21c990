"""Tables and plots of scripts/bench/mesh, from its figures, into docs/benchmarks.md and docs/images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures of scripts/bench/mesh -->", "<!-- end of figures -->"
NAMES = {"unified": "one model", "mesh": "mesh of services", "ensemble": "Triton ensemble"}
COLOURS = {"unified": "#1f77b4", "mesh": "#d62728", "ensemble": "#ff7f0e"}
MAIN = ("synthetic-1m", 1_000)  # the line that the detailed plots show; the first line where it was not measured
Line = dict[str, Any]


def write_docs(document: dict[str, Any], dollars: float, docs: Path) -> None:
    """Replace what stands between the two markers in `docs`/benchmarks.md and draw the plots in `docs`/images.

    `dollars`: of an hour of the cores that were measured on. Raises ValueError where a marker is missing.
    """
    page = docs / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} lacks the markers {BEGIN!r} and {END!r}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{tables(document, dollars)}\n\n{END}{after}", encoding="utf-8")
    plots(document, dollars, docs / "images")


def tables(document: dict[str, Any], dollars: float) -> str:
    lines: list[Line] = document["lines"]
    told = f"{document['machine']}; {document['cores']} of its cores; commit {document['commit'][:10]}."
    parts = [
        told,
        "### Highest rate with p99 within 100 ms",
        _table(
            ["workload", "candidates", *NAMES.values(), "ratio to the best mesh"],
            [[_label(line), f"{line['candidates']:,}", *map(_rate, _each(line)), _ratio(line)] for line in lines],
        ),
        "### Latency at light load, milliseconds (p50, p99)",
        _table(
            ["workload", "candidates", "requests a second", *NAMES.values(), "ratio of p99"],
            [
                [
                    _label(line),
                    f"{line['candidates']:,}",
                    f"{line['systems']['unified']['light']['asked_rate']:.0f}",
                    *(f"{s['light']['p50_ms']:.1f}, {s['light']['p99_ms']:.1f}" for s in _each(line)),
                    f"{_light(line, 'p99_ms'):.2f}",
                ]
                for line in lines
            ],
        ),
        *_candidates(lines),
        "### What the answers are",
        _table(
            ["workload", "candidates", "Faiss index", "filter", "recall of candidates, one model", "Faiss",
             *(f"same as exact: {name}, looking at all; as served" for name in NAMES.values())],
            [
                [_label(line), f"{line['candidates']:,}", _index(line),
                 "in Faiss" if line["systems"]["mesh"]["choice"]["variant"].get("inside", True) else "after",
                 _recalls(line["retrieval"]["unified_recall"]), _recalls(line["retrieval"]["recall"]),
                 *(f"{s['choice']['exact']:.4f}; {s['choice']['as_served']:.3f}" for s in _each(line))]
                for line in lines
            ],
        ),
        f"### Cost of a million requests at the highest rate, at {dollars:.3f} USD an hour for the cores",
        _table(
            ["workload", "candidates", *NAMES.values()],
            [[_label(line), f"{line['candidates']:,}", *(_cost(s, dollars) for s in _each(line))] for line in lines],
        ),
        "### Processor time of a request under full load, milliseconds, by process",
        *(_spent(line) for line in lines),
        "### Memory, MB (resident, shared pages counted in part)",
        _table(
            ["workload", *NAMES.values()],
            [
                [_label(line), *(f"{sum(s['memory_bytes'].values()) / 1e6:,.0f}" for s in _each(line))]
                for line in lines
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _label(line: Line) -> str:
    return str(line["workload"]["name"])


def _index(line: Line) -> str:
    return str(line["retrieval"]["index"]).removeprefix("faiss-").removesuffix(".index").replace("_", ",")


def _each(line: Line) -> list[dict[str, Any]]:
    return [line["systems"][name] for name in NAMES]


def _best(system: dict[str, Any]) -> float:
    return float(system["best"]["rate"]) if system["best"] else 0.0


def _rate(system: dict[str, Any]) -> str:
    return f"{_best(system):,.0f}" if system["best"] else "none"


def _ratio(line: Line) -> str:
    others = max(_best(line["systems"][name]) for name in NAMES if name != "unified")
    return f"**{_best(line['systems']['unified']) / others:.2f}**" if others else "-"


def _light(line: Line, at: str) -> float:
    least = min(line["systems"][name]["light"][at] for name in NAMES if name != "unified")
    return float(least / line["systems"]["unified"]["light"][at])


def _recalls(recalls: dict[str, float]) -> str:
    """Of the classes of filters, the widest first."""
    return ", ".join(f"{recalls[place]:.3f}" for place in sorted(recalls))


def _cost(system: dict[str, Any], dollars: float) -> str:
    rate = _best(system)
    return f"{dollars / 3600 / rate * 1e6:.3f}" if rate else "-"


def _typical(system: dict[str, Any]) -> dict[str, float]:
    """Processor time of a request by process, where there is always work."""
    spent: dict[str, float] = system["busy_processor_ms"]
    return spent


def _spent(line: Line) -> str:
    rows = []
    for name, system in zip(NAMES.values(), _each(line), strict=True):
        spent = _typical(system)
        rows.append(
            [name, ", ".join(f"{part} {value:.2f}" for part, value in spent.items()), f"{sum(spent.values()):.2f}"]
        )
    inside = ", ".join(f"{stage} {value:.2f}" for stage, value in line["unified_stages_ms"].items())
    title = (
        f"{_label(line)}, {line['candidates']:,} candidates. Inside the one model, one request on one thread: {inside}."
    )
    return f"{title}\n\n{_table(['', 'by process', 'sum'], rows)}"


def _candidates(lines: list[Line]) -> list[str]:
    told = [_afforded(line) for line in lines if line.get("afforded_at_best_mesh_rate") or line.get("recall_at_20")]
    return ["### More candidates in the same budget", *told] if told else []


def _afforded(line: Line) -> str:
    """What the one model does at the best mesh's highest rate with more candidates, and what they are worth."""
    points = line.get("afforded_at_best_mesh_rate", [])
    recalls = line.get("recall_at_20", {})
    counts = sorted({line["candidates"], *(p["candidates"] for p in points), *map(int, recalls)})
    p99 = {p["candidates"]: f"{p['p99_ms']:.1f}" for p in points}
    head = ["candidates", *(f"{count:,}" for count in counts)]
    rows = [["p99 of the one model, ms", *(p99.get(count, "") for count in counts)]] if points else []
    if recalls:
        rows.append(["Recall@20", *(f"{recalls[str(count)]:.4f}" if str(count) in recalls else "" for count in counts)])
    rate = max(_best(line["systems"][name]) for name in NAMES if name != "unified")
    title = f"{_label(line)}: the best mesh reranks {line['candidates']:,} candidates of {rate:,.0f} requests a second."
    return f"{title}\n\n{_table(head, rows)}"


def plots(document: dict[str, Any], dollars: float, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: list[Line] = document["lines"]
    main = next((each for each in lines if (_label(each), each["candidates"]) == MAIN), lines[0])
    title = f"{_label(main)}, {main['candidates']:,} candidates"

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 0.55 * len(lines) + 2), sharey=True)
    height = 0.8 / len(NAMES)
    for place, name in enumerate(NAMES):
        at = [i + place * height for i in range(len(lines))]
        rates = [_best(line["systems"][name]) for line in lines]
        costs = [dollars / 3600 / rate * 1e6 if rate else 0.0 for rate in rates]
        for axis, values in zip(axes, (rates, costs), strict=True):
            axis.barh(at, values, height, color=COLOURS[name], label=NAMES[name])
    axes[0].set_yticks(
        [i + height for i in range(len(lines))], [f"{_label(line)}, {line['candidates']:,}" for line in lines]
    )
    axes[0].invert_yaxis()
    axes[0].set_xlabel("requests a second with p99 within 100 ms")
    axes[1].set_xlabel(f"USD a million requests, at {dollars:.3f} USD an hour")
    axes[0].legend()
    _save(figure, folder / "mesh-throughput.png")

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), sharex=True, sharey=True)
    for axis, at in zip(axes, ("p50_ms", "p99_ms"), strict=True):
        for name in NAMES:
            points = sorted((p["asked_rate"], p[at]) for p in main["systems"][name]["points"])
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=COLOURS[name], label=NAMES[name])
        axis.axhline(document["budget_ms"], color="grey", linewidth=0.8, linestyle="--")
        axis.set(xlabel="requests a second", ylabel=f"{at[:3]}, ms", yscale="log", xscale="log")
    axes[0].legend()
    figure.suptitle(title)
    _save(figure, folder / "mesh-latency.png")

    figure, axis = pyplot.subplots(figsize=(13, 3))
    parts = list(dict.fromkeys(part for system in _each(main) for part in _typical(system)))
    palette = pyplot.get_cmap("tab20")
    for row, system in enumerate(_each(main)):
        left = 0.0
        for number, part in enumerate(parts):
            width = _typical(system).get(part, 0.0)
            label = part if row == next(i for i, s in enumerate(_each(main)) if part in _typical(s)) else None
            axis.barh(row, width, left=left, color=palette(number), label=label)
            left += width
    axis.set_yticks(range(len(NAMES)), list(NAMES.values()))
    axis.invert_yaxis()
    axis.set(xlabel="processor time of a request, ms", title=title)
    axis.legend(ncols=2, fontsize=8)
    _save(figure, folder / "mesh-stages.png")


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
