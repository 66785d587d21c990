"""The grammar of docs/filters.md is what `parse_filter` reads: sentences are drawn from the page itself."""

from __future__ import annotations

import keyword
import random
import re
from pathlib import Path

import pytest

from client import InvalidValue, parse_filter

PAGE = Path(__file__).parents[3] / "docs" / "filters.md"
SEED = 20
SENTENCES = 1500
METHODS = ("any_of", "all_of", "is_in", "not_in", "between", "is_unknown", "item_in")
DEEPEST = 12  # rules in one another, beyond which the first alternative that ends is taken

# Of ISO 14977 what the page uses. A node: ("or", nodes), ("and", nodes), ("many", node), ("maybe", node),
# ("text", string), ("rule", name), ("any", string of characters).
Node = tuple
TOKEN = re.compile(r"""\s+|"[^"]*"|'[^']*'|\?[^?]*\?|\w+|[=,|;{}\[\]()]""")
CHARACTERS = {
    'a printable character but " and \\': " aZ0_'#&|~()[]{},.é語😀",
    "a printable character but ' and \\": ' aZ0_"#&|~()[]{},.é語😀',
    "a letter of A to Z or a to z, or _": "aZq_F",
}


class Grammar:
    """The rules of an EBNF text, by name."""

    def __init__(self, text: str) -> None:
        spans = [match.group() for match in TOKEN.finditer(text)]
        assert "".join(spans) == text, "something is no EBNF"
        self._tokens = [span for span in spans if not span.isspace()]
        self.rules: dict[str, Node] = {}
        while self._tokens:
            name = self._tokens.pop(0)
            self._expect("=")
            assert name not in self.rules
            self.rules[name] = self._alternatives()
            self._expect(";")
        self._least: dict[str, int] = {}

    def _expect(self, token: str) -> None:
        got = self._tokens.pop(0)
        assert got == token, f"got {got!r}, expected {token!r}"

    def _alternatives(self) -> Node:
        choices = [self._sequence()]
        while self._tokens[0] == "|":
            self._tokens.pop(0)
            choices.append(self._sequence())
        return ("or", choices)

    def _sequence(self) -> Node:
        parts = [self._part()]
        while self._tokens[0] == ",":
            self._tokens.pop(0)
            parts.append(self._part())
        return ("and", parts)

    def _part(self) -> Node:
        token = self._tokens.pop(0)
        if token in "{[(":
            inner = self._alternatives()
            self._expect({"{": "}", "[": "]", "(": ")"}[token])
            return {"{": ("many", inner), "[": ("maybe", inner), "(": inner}[token]
        if token[0] in "\"'":
            return ("text", token[1:-1])
        if token[0] == "?":
            return ("any", CHARACTERS[token[1:-1].strip()])
        return ("rule", token)

    def sentence(self, rng: random.Random) -> str:
        """One of `filter`, with spaces where they may stand."""
        return self._draw(("rule", "filter"), rng, 0, spaces=True)

    def _draw(self, node: Node, rng: random.Random, depth: int, *, spaces: bool) -> str:
        kind, content = node
        if kind == "text":
            return str(content)
        if kind == "any":
            return rng.choice(content)
        if kind == "rule":
            if content.isupper():
                drawn = self._draw(self.rules[content], rng, depth, spaces=False)
                return f"{drawn}_" if content == "NAME" and keyword.iskeyword(drawn) else drawn
            return self._draw(self.rules[content], rng, depth + 1, spaces=spaces)
        if kind == "or":
            if depth > DEEPEST:
                content = [min(content, key=lambda choice: self._height(choice, ()))]
            return self._draw(rng.choice(content), rng, depth, spaces=spaces)
        if kind == "and":
            drawn = [self._draw(part, rng, depth, spaces=spaces) for part in content]
            return "".join(rng.choice(["", "", " ", "  "]) + part for part in drawn) if spaces else "".join(drawn)
        often = 0 if depth > DEEPEST else rng.choice([0, 1, 1, 2, 4]) if kind == "many" else rng.randrange(2)
        drawn = [self._draw(content, rng, depth, spaces=spaces) for _ in range(often)]
        return (" " if spaces else "").join(drawn)

    def _height(self, node: Node, inside: tuple[str, ...]) -> float:
        """Rules in one another that a sentence takes at least."""
        kind, content = node
        if kind == "or":
            return min(self._height(choice, inside) for choice in content)
        if kind == "and":
            return max(self._height(part, inside) for part in content)
        if kind == "rule":
            if content in inside:
                return float("inf")
            if content not in self._least:
                least = 1 + self._height(self.rules[content], (*inside, content))
                if inside:
                    return least
                self._least[content] = int(least)
            return self._least[content]
        return 0


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    (text,) = re.findall(r"```ebnf\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return Grammar(text)


def test_every_sentence_is_read_and_its_text_means_the_same(grammar: Grammar) -> None:
    rng = random.Random(SEED)
    drawn = [grammar.sentence(rng) for _ in range(SENTENCES)]
    for sentence in drawn:
        condition = parse_filter(sentence)
        assert parse_filter(str(condition)) == condition, f"seed {SEED}: {sentence}"
    together = "\n".join(drawn)
    for part in (*METHODS, "everything", "False", "F[", "~", "!=", "<=", "\\", "e-", "😀"):
        assert part in together, "the sentences do not show all of the grammar"
    assert len(set(drawn)) > SENTENCES * 0.9


def test_what_is_changed_is_read_or_refused_with_the_place(grammar: Grammar) -> None:
    """Nothing else ever happens; and most changes make no filter."""
    rng = random.Random(SEED)
    refused = 0
    for _ in range(SENTENCES):
        sentence = grammar.sentence(rng)
        at = rng.randrange(len(sentence))
        inserted = rng.choice(["", "", *'()]"&~,.F0é\\=\n\0', " and "])
        changed = sentence[:at] + inserted + sentence[at + rng.randrange(3) :]
        try:
            condition = parse_filter(changed)
        except InvalidValue as refusal:
            refused += 1
            error = str(refusal)
        else:
            assert parse_filter(str(condition)) == condition, f"seed {SEED}: {changed}"
            continue
        place = re.match(r"filter: .*?at character (\d+): ", error, flags=re.DOTALL)
        assert place, f"seed {SEED}: {changed!r}: {error}"
        assert 1 <= int(place[1]) <= len(changed) + 1, f"seed {SEED}: {changed!r}: {error}"
    assert refused > SENTENCES / 3


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("F.year", 1),
        ("  F.year", 3),
        ("(F.a == 'é語') & F.year", 17),
        ('F.genres.any_of("😀", F.b)', 22),
        ("F.a.is_in(7)", 1),
        ("(F.a == 1) & (F.b == None)", 22),
        ("F.a == ", 7),
        (" F.a == \0", 9),
        (" (F.a == 1) & (F.b = 2)", 16),
        ("(F.a == 1) &\n", 13),
        ("F.a.any_of(1,\n  F.b)", 17),
    ],
)
def test_the_place_is_counted_in_characters(text: str, place: int) -> None:
    with pytest.raises(InvalidValue, match=rf"at character {place}:"):
        parse_filter(text)


@pytest.mark.parametrize("example", re.findall(r"^\| [^|`]+ \| `([^`]*F[^`]*)`", PAGE.read_text(), flags=re.MULTILINE))
def test_the_examples_of_the_page_are_read(example: str) -> None:
    parse_filter(example.replace("\\|", "|"))


def test_there_are_examples() -> None:
    assert len(re.findall(r"^\| [^|`]+ \| `([^`]*F[^`]*)`", PAGE.read_text(), flags=re.MULTILINE)) == 6
