"""matplotlib figures as SVG that can stand in an HTML page: text as text, ids that do not collide, nothing external."""

from __future__ import annotations

import io
import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NAMESPACE = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"

BLUE, ORANGE, GREEN, GREY = "#1d5fbf", "#d1690f", "#2c8a57", "#8b95a5"
INK, FAINT = "#39424e", "#dfe3e8"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "silvertriton",  # the same figure gives the same text
    "text.parse_math": False,
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#aab3bf",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": "#aab3bf",
    "ytick.color": "#aab3bf",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": INK,
    "path.simplify": True,
}


class Drawer:
    """Draws the figures of one page; the ids of each figure start with a name of its own."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    @contextmanager
    def axes(self, width: float = 3.7, height: float = 2.3) -> Iterator[tuple[Axes, Callable[[str], str]]]:
        """Axes of `width` x `height` inches, and the function that ends the drawing: description -> SVG."""
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(width, height), layout="constrained", frameon=False)
            axes = figure.add_subplot()
            axes.patch.set_visible(False)  # the page is the background
            yield axes, lambda description: self.finish(figure, description)

    def finish(self, figure: Figure, description: str) -> str:
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return embeddable(file.getvalue(), f"c{next(self._numbers)}-", description)


def embeddable(text: str, prefix: str, description: str) -> str:
    """An SVG document of matplotlib as an element for a page, read out as `description`.

    The font becomes the page's, and ids that nothing refers to go.
    """
    ElementTree.register_namespace("", NAMESPACE)
    root = ElementTree.fromstring(text)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{NAMESPACE}}}metadata", f"{{{NAMESPACE}}}title"):
                parent.remove(child)
    for element in root.iter():
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
    wanted = set(re.findall(r"#([\w-]+)", " ".join(_references(root))))
    for element in root.iter():
        if element.get("id") in wanted:
            element.set("id", prefix + element.attrib["id"])
        else:
            element.attrib.pop("id", None)
        for name, value in list(element.attrib.items()):
            if name == "href" or "url(#" in value:
                element.set(name, value.replace("#", f"#{prefix}"))
            elif name == "style":
                element.set(name, _without_family(value))
            elif name in ("d", "points", "x", "y", "transform"):
                element.set(name, _rounded(" ".join(value.split())))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _references(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "href" or "url(#" in value:
                yield value


def _without_family(style: str) -> str:
    """matplotlib 3.8 writes `font: 8px 'A', 'B'`, later ones `font-size` and `font-family`."""
    style = re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", style)
    return re.sub(r"\s*font-family: [^;]*;", "", style)


def _rounded(path: str) -> str:
    """Coordinates to a hundredth of a point."""
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), path)
