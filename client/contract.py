"""What a served artifact understands beside its schema: parameters of Triton's model configuration, with their rules.

docs/wire-contract.md#versions says which changes older and newer clients and artifacts bear.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from client.errors import SchemaError
from client.filters.compiler import MAX_WORDS, Opcode

CONTRACT = 1  # raised by changes that a client of the version before cannot follow
_OPCODES_UNTOLD = range(1, 8)  # of artifacts from before they told


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of diversity of the last selection. `at_most`: how many results may share a value, by feature.

    `mmr`: the share of relevance in maximal marginal relevance; 1 is relevance alone.
    """

    at_most: tuple[tuple[str, int], ...]
    mmr: float = 1.0

    def __str__(self) -> str:
        rules = [f"at most {most:,} of one {name}" for name, most in self.at_most]
        if self.mmr < 1:
            rules.append(f"maximal marginal relevance with mmr {self.mmr:g}")
        return ", ".join(rules)


@dataclass(frozen=True)
class Contract:
    """The defaults are what this release exports.

    `opcodes`: of filter programs (docs/filter-program.md), those that the artifact runs. `max_filter_words`: longer
    programs get `Status.FILTER_TOO_LONG`. `items`: how many it holds; None from artifacts that do not tell. `version`:
    of the wire contract. `rules`: of diversity, None without any.
    """

    opcodes: frozenset[int] = frozenset(map(int, Opcode))
    max_filter_words: int = MAX_WORDS
    items: int | None = None
    version: int = CONTRACT
    rules: Rules | None = None

    def parameters(self) -> dict[str, str]:
        """As parameters of the model configuration."""
        written = {
            "contract": str(self.version),
            "filter_opcodes": " ".join(map(str, sorted(self.opcodes))),
            "max_filter_words": str(self.max_filter_words),
        }
        if self.items is not None:
            written["items"] = str(self.items)
        if self.rules is not None:
            written["diversity"] = json.dumps({"at_most": dict(self.rules.at_most), "mmr": self.rules.mmr})
        return written

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> Contract:
        """From the parameters of a model configuration, also of artifacts from before there were any of these.

        Raises `SchemaError` for a version that this client does not speak, and for what is no number.
        """
        version = _number(parameters, "contract", CONTRACT)
        if version > CONTRACT:
            raise SchemaError(
                f"the artifact speaks version {version} of the wire contract, this client {CONTRACT}; "
                "update the client: pip install --upgrade silvertriton"
            )
        opcodes, items = parameters.get("filter_opcodes"), parameters.get("items")
        return cls(
            frozenset(_OPCODES_UNTOLD if opcodes is None else (_whole("filter_opcodes", w) for w in opcodes.split())),
            _number(parameters, "max_filter_words", MAX_WORDS),
            None if items is None else _whole("items", items, least=0),
            version,
            _rules(parameters.get("diversity")),
        )


def _rules(text: str | None) -> Rules | None:
    if text is None:
        return None
    try:
        raw = json.loads(text)
        return Rules(tuple((str(name), int(most)) for name, most in raw["at_most"].items()), float(raw["mmr"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SchemaError(
            f"parameter 'diversity' of the model configuration is {text[:80]!r}, expected rules such as "
            '{"at_most": {"genres": 2}, "mmr": 1.0}; export the artifact again'
        ) from None


def _number(parameters: Mapping[str, str], name: str, default: int) -> int:
    text = parameters.get(name)
    return default if text is None else _whole(name, text)


def _whole(name: str, text: str, least: int = 1) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) < least:
        raise SchemaError(
            f"parameter {name!r} of the model configuration is {text[:40]!r}, expected a whole number of at least "
            f"{least}; export the artifact again"
        )
    return int(text)
