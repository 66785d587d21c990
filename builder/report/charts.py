"""The charts of the report. What they say in words comes from here; names from the data stand in the page beside them,
never inside a chart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator, PercentFormatter
from numpy.typing import NDArray

from builder.evaluation.stored import StoredInterval
from builder.export.manifest import Point
from builder.report.contents import Calibration
from builder.report.svg import BLUE, GREY, INK, ORANGE, Drawer

BINS = 30
LOG_BINS = 16  # growing bins of whole numbers: more would be as narrow as the numbers themselves
CURVE_POINTS = 160  # of a line by rank; more cannot be told apart at this size
OUTER = 0.005  # of the values of a number, on either side, that its histogram leaves out
YEARS = (-62_135_596_800, 253_370_764_800)  # seconds from 1970 to the years 1 and 9999: what the date axis takes


def epochs(draw: Drawer, name: str, numbers: Sequence[int], values: Sequence[float], best: int) -> str:
    """A figure by epoch with the best epoch marked."""
    with draw.axes() as (axes, finish):
        axes.plot(numbers, values, color=BLUE, marker="o" if len(numbers) <= 40 else None, markersize=2.6)
        if best in numbers:
            chosen = values[list(numbers).index(best)]
            axes.axvline(best, color=ORANGE, linewidth=0.8, linestyle=(0, (3, 3)))
            axes.plot([best], [chosen], color=ORANGE, marker="o", markersize=5, linestyle="none")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(_ticks(8, whole=True))
        axes.yaxis.set_major_locator(_ticks(5))
        return finish(f"{name} by epoch, from {values[0]:.4g} to {values[-1]:.4g}; best epoch {best}")


def intervals(draw: Drawer, names: Sequence[str], values: Sequence[StoredInterval | float | None], own: int) -> str:
    """A mean and its interval a line, or a share alone; the first `own` lines are ours."""
    with draw.axes(height=0.55 + 0.22 * len(names)) as (axes, finish):
        known = [(line, value) for line, value in enumerate(values) if value is not None]
        for line, value in known:
            colour = BLUE if line < own else GREY
            if isinstance(value, StoredInterval):
                axes.plot([value.low, value.high], [line, line], color=colour, linewidth=2.2, solid_capstyle="round")
            mean = value.mean if isinstance(value, StoredInterval) else value
            axes.plot([mean], [line], color=colour, marker="o", markersize=5.5, linestyle="none", clip_on=False)
        axes.set_yticks(range(len(names)), labels=list(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        most = max((v.high if isinstance(v, StoredInterval) else v for _, v in known), default=0.0)
        axes.set_xlim(-0.03 * (most or 1), 1.08 * (most or 1))
        axes.xaxis.set_major_locator(_ticks(5))
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        return finish("; ".join(f"{names[line]} {_in_words(value)}" for line, value in known) or "nothing known")


def _in_words(value: StoredInterval | float) -> str:
    if isinstance(value, StoredInterval):
        return f"{value.mean:.4f}, from {value.low:.4f} to {value.high:.4f}"
    return f"{value:.1%}"


def tradeoff(
    draw: Drawer, points: Sequence[Point], chosen: Point | None, target: float, at: int, cost: str, label: str
) -> str:
    """Recall by `cost`, a field of the points; one line for those that differ in reach, one in candidates."""
    with draw.axes(height=2.6) as (axes, finish):
        axes.axhline(target, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        for colour, line in _sweeps(points, chosen):
            costs, recalls = [getattr(point, cost) for point in line], [point.recall for point in line]
            axes.plot(costs, recalls, color=colour, marker="o", markersize=3, linewidth=1.1)
        if chosen is not None:
            at_default = [getattr(chosen, cost)], [chosen.recall]
            axes.plot(*at_default, color=INK, marker="D", markersize=5.5, linestyle="none")
        axes.set_xlabel(label)
        axes.set_ylabel(f"recall@{at}")
        axes.set_xlim(left=0)
        recalls = [*(point.recall for point in points), target]
        room = max(0.05 * (max(recalls) - min(recalls)), 0.002)
        axes.set_ylim(min(recalls) - room, min(1.0, max(recalls)) + room)
        axes.xaxis.set_major_locator(_ticks(6))
        axes.yaxis.set_major_locator(_ticks(5))
        span = f"{min(recalls):.4f} to {max(recalls):.4f}"
        return finish(f"recall@{at} from {span} by {label}, target {target}")


def _sweeps(points: Sequence[Point], chosen: Point | None) -> list[tuple[str, list[Point]]]:
    if chosen is None:
        return [(BLUE, list(points))]
    reach = [point for point in points if point.candidates == chosen.candidates]
    candidates = [point for point in points if point.reach == chosen.reach]
    return [(BLUE, reach), (ORANGE, candidates)]


def counts(
    draw: Drawer, values: NDArray[np.int64], label: str, owners: str, *, marked: float | None = None, log: bool = False
) -> str:
    """A histogram of whole numbers [N] >= 0; `marked`: a line there; `log`: bins that grow, for long tails above 0."""
    with draw.axes() as (axes, finish):
        least, most = int(values.min()), int(values.max())
        edges = _edges(least, most, log)
        heights = np.histogram(values, edges)[0]
        axes.stairs(heights, edges, fill=True, color=BLUE, alpha=0.85)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(_count))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(_ticks(6, whole=True))
            axes.xaxis.set_major_formatter(FuncFormatter(_count))
        if marked is not None:
            axes.axvline(marked, color=ORANGE, linewidth=1.1, linestyle=(0, (3, 2)))
        axes.set_xlabel(label)
        axes.set_ylabel(owners)
        _count_axis(axes)
        return finish(f"{owners} by {label}: from {least:,} to {most:,}, median {float(np.median(values)):,g}")


def _edges(least: int, most: int, log: bool) -> NDArray[np.float64]:
    if log and most > 4 * max(1, least):
        grown = np.geomspace(max(1, least), most + 1, LOG_BINS + 1)
        starts: NDArray[np.float64] = np.unique(np.floor(grown)) - 0.5
        return starts
    step = max(1, -(-(most - least + 1) // BINS))
    return np.arange(least, most + step + 1, step, dtype=np.float64) - 0.5


def popularity(draw: Drawer, item_users: NDArray[np.int64]) -> str:
    """Share of the interactions that the most popular share of the items has; `item_users` [N], most popular first."""
    share = np.cumsum(item_users) / max(1, int(item_users.sum()))
    at = np.unique(np.linspace(0, len(share) - 1, CURVE_POINTS).astype(int))
    with draw.axes() as (axes, finish):
        across = np.concatenate([[0.0], (at + 1) / len(share)])
        axes.plot(across, np.concatenate([[0.0], share[at]]), color=BLUE)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="items, most popular first", ylabel="interactions")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, 0))
        return finish("share of the interactions by share of the items, most popular first")


def ranks(draw: Drawer, shares: NDArray[np.float64]) -> str:
    """Share of the items that each value passes; `shares` [V] > 0, largest first."""
    at = np.unique(np.geomspace(1, len(shares), CURVE_POINTS).astype(int)) - 1
    with draw.axes() as (axes, finish):
        axes.plot(at + 1, shares[at], color=BLUE, marker="o" if len(at) <= 40 else None, markersize=2.6)
        if len(shares) > BINS:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(_count))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(_ticks(6, whole=True))
        if shares[0] > 100 * shares[-1]:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.set_xlabel("value, most frequent first")
        axes.set_ylabel("items that pass")
        return finish(f"share of the items that a value passes, from {_percent(shares[0])} to {_percent(shares[-1])}")


def cut(count: int) -> int:
    """Of `count` values, how many a histogram leaves out on either side."""
    return int(OUTER * count)


def numbers(draw: Drawer, values: NDArray[np.float64], *, dates: bool) -> str:
    """A histogram of `values` [K] ascending and finite, the outermost 0.5% on either side left out."""
    inside = values[cut(len(values)) : len(values) - cut(len(values))]
    low, high = float(inside[0]), float(inside[-1])
    whole = high - low <= 2 * BINS and bool((inside == np.floor(inside)).all())
    edges = _edges(int(low), int(high), False) if whole else np.linspace(low, high if high > low else low + 1, BINS + 1)
    heights = np.histogram(inside, edges)[0]
    with draw.axes() as (axes, finish):
        if dates and YEARS[0] < edges[0] and edges[-1] < YEARS[1]:
            days = date2num(edges.astype("datetime64[s]"))
            locator = AutoDateLocator(minticks=2, maxticks=6)  # with 3, no interval fits some ranges, such as 29 months
            axes.stairs(heights, days, fill=True, color=BLUE, alpha=0.85)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
        else:
            axes.stairs(heights, edges, fill=True, color=BLUE, alpha=0.85)
            axes.xaxis.set_major_locator(_ticks(6, whole=whole))
        axes.set_ylabel("items")
        _count_axis(axes)
        return finish(f"items by value, {len(inside):,} of {len(values):,} known values")


def reliability(draw: Drawer, calibration: Calibration) -> str:
    """Observed share of positives by mean predicted probability, each with a 95% Wilson interval (Wilson, 1927).

    Logarithmic where predictions span more than a power of ten; what was never observed then lies at the lower edge.
    """
    predicted, observed = (np.array(values) for values in calibration.shares())
    count = np.array(calibration.counts(), dtype=np.float64)
    low, high = wilson(observed, count)
    log = bool(0 < 10 * predicted.min() < predicted.max())
    least = 0.5 * min(float(values[values > 0].min(initial=1.0)) for values in (predicted, observed)) if log else 0.0
    most = min(1.0, (1.5 if log else 1.1) * max(float(predicted.max()), float(high.max())))
    with draw.axes(height=3.0) as (axes, finish):
        if log:
            axes.set(xscale="log", yscale="log")
        axes.plot([least, most], [least, most], color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.vlines(predicted, np.maximum(low, least), high, color=BLUE, linewidth=1.4, alpha=0.6)
        axes.scatter(
            predicted, np.maximum(observed, least), s=8 + 24 * count / count.max(), color=BLUE, linewidths=0, zorder=3
        )
        axes.set(xlim=(least, most), ylim=(least, most), xlabel="mean predicted probability", ylabel="observed share")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_percent))
            axis.set_minor_formatter(NullFormatter())
        return finish(f"observed by predicted probability in {len(count)} bins, error {calibration.ece:.4g}")


def wilson(share: NDArray[np.float64], count: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95% score interval of shares [B] of counts [B] > 0."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return np.maximum(0.0, middle - half), np.minimum(1.0, middle + half)


def _ticks(most: int, *, whole: bool = False) -> MaxNLocator:
    """At most so many steps between ticks, of 1, 2, 2.5 or 5 times a power of ten."""
    return MaxNLocator(most, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole)


def _count_axis(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(_ticks(4, whole=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_count))
    axes.grid(axis="x", visible=False)


def _count(value: float, position: int | None = None) -> str:
    return f"{value:,.0f}" if value == round(value) else ""


def _percent(value: float, position: int | None = None) -> str:
    """12%, 1.2%, 0.012%: two digits whatever the size."""
    percent = 100 * value
    return f"{percent:.0f}%" if percent >= 10 or percent == round(percent) else f"{two_digits(percent)}%"


def two_digits(value: float) -> str:
    """The first two digits that count, never with an exponent: 0.000084."""
    return np.format_float_positional(float(f"{value:.2g}"), trim="-")
