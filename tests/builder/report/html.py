"""Reads a page as a person would: sections, their tables and facts, and the charts in them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """`text`, `tables`, `facts`, `titles` by section id ("" before the first); raises where tags are not nested."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.section = ""
        self.text: dict[str, str] = {"": ""}
        self.tables: dict[str, list[list[list[str]]]] = {"": []}
        self.facts: dict[str, dict[str, str]] = {"": {}}
        self.titles: dict[str, list[str]] = {"": []}
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self._open: list[str] = []
        self._words: list[str] = []
        self._term = ""
        self.feed(source)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
            self.text[self.section], self.facts[self.section] = "", {}
            self.tables[self.section], self.titles[self.section] = [], []
        elif tag == "table":
            self.tables[self.section].append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        if tag in ("th", "td", "dt", "dd", "figcaption"):
            self._words = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        opened = self._open.pop()
        assert opened == tag, (opened, tag, self.getpos())
        said = " ".join("".join(self._words).split())
        if tag in ("th", "td"):
            self.tables[self.section][-1][-1].append(said)
        elif tag == "dt":
            self._term = said
        elif tag == "dd":
            self.facts[self.section][self._term] = said
        elif tag == "figcaption":
            self.titles[self.section].append(said)

    def handle_data(self, data: str) -> None:
        self._words.append(" " + data if self._open and self._open[-1] == "small" else data)
        if self._open and self._open[-1] != "style":
            self.text[self.section] += " " + " ".join(data.split())

    @property
    def charts(self) -> list[ElementTree.Element]:
        """Every SVG, as an XML parser reads it."""
        return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", self.source, flags=re.DOTALL)]


def lines(svg: str) -> list[np.ndarray]:
    """The paths of straight lines in a chart, each [points, 2] with y upwards."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        numbers = path.get("d", "")
        if re.fullmatch(r"M [-\d.]+ [-\d.]+( L [-\d.]+ [-\d.]+)+( z)?", numbers.strip()):
            points = np.array([float(word) for word in re.findall(r"-?[\d.]+", numbers)]).reshape(-1, 2)
            found.append(points * [1, -1])
    return found


def words(svg: str) -> list[str]:
    """The text in a chart."""
    return ["".join(text.itertext()).strip() for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
