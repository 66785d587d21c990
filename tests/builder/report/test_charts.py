"""Charts show the values they are given, as SVG that stands in a page."""

from __future__ import annotations

import re

import numpy as np
import pytest

from builder.evaluation.stored import StoredInterval
from builder.export.manifest import Point
from builder.report import charts
from builder.report.contents import Calibration
from builder.report.svg import NAMESPACE, Drawer
from tests.builder.report.html import lines, words


def linear(drawn: np.ndarray, values: np.ndarray) -> bool:
    """Whether drawn positions are the values times a positive factor plus an offset, to a hundredth of a point."""
    factor, offset = np.polyfit(values, drawn, 1)
    return bool(factor > 0 and np.abs(factor * values + offset - drawn).max() < 0.02)


def line_of(svg: str, points: int) -> np.ndarray:
    found = [line for line in lines(svg) if len(line) == points]
    assert found, [len(line) for line in lines(svg)]
    return found[0]


def test_curves_by_epoch() -> None:
    values = [5.0, 3.5, 3.0, 2.9, 2.95]
    svg = charts.epochs(Drawer(), "Loss", [1, 2, 3, 4, 5], values, 4)
    line = line_of(svg, 5)
    assert linear(line[:, 0], np.arange(1.0, 6))
    assert linear(line[:, 1], np.array(values))
    marked = [dashed for dashed in lines(svg) if len(dashed) == 2 and abs(dashed[0, 0] - line[3, 0]) < 0.02]
    assert any(abs(dashed[0, 0] - dashed[1, 0]) < 0.02 for dashed in marked)
    assert "epoch" in words(svg)
    assert 'aria-label="Loss by epoch, from 5 to 2.95; best epoch 4"' in svg


def test_one_epoch_and_a_best_that_is_not_there() -> None:
    assert "<svg" in charts.epochs(Drawer(), "Loss", [1], [2.0], 0)


def test_intervals() -> None:
    values = [StoredInterval(mean=0.2, low=0.1, high=0.4), None, StoredInterval(mean=0.1, low=0.05, high=0.15)]
    svg = charts.intervals(Drawer(), ["exact", "served", "EASE"], values, 2)
    level = [line for line in lines(svg) if len(line) == 2 and abs(line[0, 1] - line[1, 1]) < 0.01]
    ours, other = (next(line for line in level if style_of(svg, line, colour)) for colour in ("#1d5fbf", "#8b95a5"))
    drawn = np.concatenate([ours[:, 0], other[:, 0]])
    assert linear(drawn, np.array([0.1, 0.4, 0.05, 0.15]))
    assert ours[0, 1] > other[0, 1]
    assert {"exact", "served", "EASE"} <= set(words(svg))


def style_of(svg: str, line: np.ndarray, colour: str) -> bool:
    path = " L ".join(f"{x:g} {-y:g}" for x, y in line)
    return any(f'd="M {path}"' in found and colour in found for found in re.findall(r"<path[^>]*>", svg))


@pytest.mark.parametrize("log", [False, True])
def test_histograms_count_everything_once(log: bool) -> None:
    rng = np.random.default_rng(0)
    for values in (rng.geometric(0.01, 5000), np.array([7]), np.array([3, 3, 3]), np.arange(1, 400)):
        edges = charts._edges(int(values.min()), int(values.max()), log)
        heights = np.histogram(values, edges)[0]
        assert heights.sum() == len(values)
        assert not np.isin(values, edges).any()
        assert len(heights) <= charts.BINS
        assert "<svg" in charts.counts(Drawer(), values, "items", "clusters", marked=5.0, log=log)


def test_popularity() -> None:
    svg = charts.popularity(Drawer(), np.array([60, 30, 10, 0]))
    line = line_of(svg, 5)
    assert linear(line[:, 1], np.array([0, 0.6, 0.9, 1.0, 1.0]))
    assert linear(line[:, 0], np.array([0, 0.25, 0.5, 0.75, 1.0]))


def test_shares_by_rank() -> None:
    shares = np.array([0.5, 0.25, 0.1, 0.05])
    assert linear(line_of(charts.ranks(Drawer(), shares), 4)[:, 1], shares)
    many = 0.5 / np.arange(1, 2001)
    svg = charts.ranks(Drawer(), many)  # both axes are logarithmic
    line = max(lines(svg), key=len)
    assert len(line) <= charts.CURVE_POINTS
    assert linear(-line[:, 1], line[:, 0])


@pytest.mark.parametrize("dates", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [5.0],
        [2.5, 2.5],
        [1.0, 2.0, 9.0],
        [-1e300, 1e300],
        [-1e15, 0.0, 1e15],
        [0.0, 1e9, 1.5e9],
        [1e12] * 3,
        [1e-9, 2e-9],
        [1.6725e9, 1.6725e9 + 890 * 86400],  # 29 months
        [1.6725e9, 1.6725e9 + 170],
    ],
)
def test_numbers_and_dates_of_any_size(values: list[float], dates: bool) -> None:
    svg = charts.numbers(Drawer(), np.array(values), dates=dates)
    assert f"{len(values)} of {len(values)} known values" in svg


def test_the_middle_of_many_numbers() -> None:
    values = np.sort(np.concatenate([np.random.default_rng(0).normal(size=1000), [1e9]]))
    svg = charts.numbers(Drawer(), values, dates=False)
    assert charts.cut(1001) == 5
    assert "items by value, 991 of 1,001 known values" in svg
    assert all(abs(float(word.replace("−", "-"))) < 10 for word in words(svg)[:3])


def point(reach: float, candidates: int, recall: float, milliseconds: float) -> Point:
    return Point(reach=reach, candidates=candidates, probes=5.0 * (3 + reach), recall=recall, milliseconds=milliseconds)


def test_recall_by_cost() -> None:
    points = [
        point(0.0, 100, 0.9, 0.2),
        point(0.5, 100, 0.95, 0.3),
        point(0.5, 200, 0.96, 0.5),
        point(1.0, 100, 0.99, 0.6),
    ]
    svg = charts.tradeoff(Drawer(), points, points[1], 0.97, 100, "milliseconds", "ms")
    reach = line_of(svg, 3)
    assert linear(reach[:, 0], np.array([0.2, 0.3, 0.6]))
    assert linear(reach[:, 1], np.array([0.9, 0.95, 0.99]))
    assert {"ms", "recall@100"} <= set(words(svg))
    assert "target 0.97" in svg
    assert "<svg" in charts.tradeoff(Drawer(), points, None, 0.97, 100, "probes", "clusters")


def test_the_wilson_interval() -> None:
    """Newcombe (1998), method 3: 81 of 263 gives .2553 to .3662, 0 of 20 gives 0 to .1611."""
    low, high = charts.wilson(np.array([81 / 263, 0.0, 1.0]), np.array([263.0, 20.0, 29.0]))
    assert low == pytest.approx([0.2553, 0.0, 0.8830], abs=2e-4)
    assert high == pytest.approx([0.3662, 0.1611, 1.0], abs=2e-4)


def test_reliability() -> None:
    found = Calibration(predicted=(0.1, 0.5, None), observed=(0.2, 0.4, None), count=(100, 10, 0), ece=0.1)
    svg = charts.reliability(Drawer(), found)
    assert "observed by predicted probability in 2 bins, error 0.1" in svg
    two = [line for line in lines(svg) if len(line) == 2]
    diagonal = next(line for line in two if (line[0] != line[1]).all())
    whiskers = sorted((line for line in two if style_of(svg, line, "#1d5fbf")), key=lambda line: line[0, 0])
    most = 1.1 * charts.wilson(np.array([0.4]), np.array([10.0]))[1][0]
    low, high = charts.wilson(np.array([0.2, 0.4]), np.array([100.0, 10.0]))
    across = np.concatenate([diagonal[:, 0], [line[0, 0] for line in whiskers]])
    assert linear(across, np.array([0.0, most, 0.1, 0.5]))
    upwards = np.concatenate([diagonal[:, 1], [y for line in whiskers for y in line[:, 1]]])
    assert linear(upwards, np.array([0.0, most, low[0], high[0], low[1], high[1]]))


def test_small_probabilities_get_logarithmic_axes() -> None:
    shares = (0.0001, 0.001, 0.01)
    svg = charts.reliability(
        Drawer(), Calibration(predicted=shares, observed=(0.0, 0.002, 0.01), count=(999,) * 3, ece=0)
    )
    whiskers = sorted((line for line in lines(svg) if style_of(svg, line, "#1d5fbf")), key=lambda line: line[0, 0])
    assert linear(np.array([line[0, 0] for line in whiskers]), np.log(shares))
    high = charts.wilson(np.array([0.0, 0.002, 0.01]), np.full(3, 999.0))[1]
    assert linear(np.array([line[1, 1] for line in whiskers]), np.log(high))
    assert {"0.1%", "1%"} <= set(words(svg))


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25"), (0.000226, "0.00023"), (3e-9, "0.000000003"), (1, "1"), (0, "0"), (41.2, "41")]
)
def test_two_digits(value: float, text: str) -> None:
    assert charts.two_digits(value) == text


def test_charts_of_a_page_share_no_ids_and_refer_to_their_own() -> None:
    draw = Drawer()
    drawn = [charts.epochs(draw, "Loss", [1, 2], [2.0, 1.0], 2) for _ in range(3)]
    page = "".join(drawn)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    for svg in drawn:
        own = set(re.findall(r'\sid="([^"]+)"', svg))
        assert set(re.findall(r"(?:url\(|href=\")#([\w-]+)", svg)) == own
    assert set(re.findall(r"https?://[^\"' <]+", page)) == {NAMESPACE}
    assert "metadata" not in page
    assert "font-family" not in page
    assert drawn[0] == charts.epochs(Drawer(), "Loss", [1, 2], [2.0, 1.0], 2)
