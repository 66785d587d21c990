"""Compiles a condition to the words of docs/filter-program.md."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client._values import instant, item_ids, key_function, number, words
from client.errors import LimitExceeded, Unsupported, invalid_value
from client.filters.conditions import AllOf, And, AnyOf, Condition, ItemIn, Not, Or, Range, Unknown
from client.filters.interpreter import filter_feature, require_kind
from client.schema import Feature, Schema

MAX_WORDS = 65_536
MAX_DEPTH = 64
MAX_STACK = 16


class Opcode(IntEnum):
    """The low byte of an instruction's head word."""

    AND = 1
    OR = 2
    NOT = 3
    ANY = 4
    ALL = 5
    RANGE = 6
    UNKNOWN = 7
    ITEMS = 8


# A fragment: its code words, and how many sets its evaluation holds at once (the Sethi-Ullman number).
Fragment = tuple[list[int], int]

# A feature: its number where it stands in a head word, itself, its place for messages, what turns a value into what
# travels, and whether that is ordered (a number or a date) or a key.
_Known = tuple[int, Feature, str, Callable[[str, Any], Any], bool]

_doubles = struct.Struct("<2d")
_int64s = struct.Struct("<2q")
_AND, _OR, _NOT, _ANY, _ALL, _RANGE, _UNKNOWN, _ITEMS = map(int, Opcode)


def compile_filter(condition: Condition, schema: Schema) -> NDArray[np.int64]:
    """Compile a condition to [2 + n] int64 words: schema fingerprint, n, code.

    Raises `UnknownName` for a feature that does not exist or has no filter, `InvalidValue` for a value or operation
    that does not go with the feature's kind, `LimitExceeded` above 65,536 words or 64 levels of nesting.
    """
    return FilterCompiler(schema).compile(condition)


class FilterCompiler:
    """`compile_filter` with the work that depends only on the schema done once.

    `opcodes`: those that the artifact runs; `max_words`: of a program, at most 65,536.
    """

    __slots__ = ("_features", "_fingerprint", "_max_words", "_missing", "_opcodes", "_schema")

    def __init__(
        self, schema: Schema, opcodes: Collection[int] = frozenset(Opcode), max_words: int = MAX_WORDS
    ) -> None:
        self._schema = schema
        self._opcodes = opcodes
        self._missing = frozenset(Opcode).difference(opcodes)
        self._max_words = min(max_words, MAX_WORDS)
        self._fingerprint = schema.fingerprint
        self._features = {
            feature.name: (
                position << 8,
                feature,
                f"filter on {feature.name!r}",
                {"number": number, "date": instant}.get(feature.kind) or key_function(feature.values),
                feature.kind in ("number", "date"),
            )
            for position, feature in enumerate(schema.filter_features)
        }

    def compile(self, condition: Condition) -> NDArray[np.int64]:
        """[2 + n] int64 words; see `compile_filter`."""
        return np.frombuffer(self.compile_bytes(condition), np.int64).copy()  # bytes are not writable

    def compile_bytes(self, condition: Condition) -> bytes:
        """The bytes of `compile`."""
        code, sets = self.code(condition)
        if not code:
            return bytes(16)
        if len(code) + 2 > self._max_words:
            raise LimitExceeded(
                f"filter: got {len(code) + 2:,} words, at most {self._max_words:,} are allowed (max_filter_words); "
                "use fewer values"
            )
        if self._missing and (lacking := self._missing.intersection(opcode for opcode, _, _ in instructions(code))):
            raise Unsupported(
                f"filter: the artifact does not know {', '.join(Opcode(opcode).name for opcode in sorted(lacking))} "
                f"(it knows {', '.join(Opcode(o).name for o in Opcode if o in self._opcodes)}); "
                "export it again with a builder of this client's release"
            )
        # Cannot happen within MAX_WORDS: 17 sets take 2^16 conditions.
        assert sets <= MAX_STACK
        return words(len(code) + 2).pack(self._fingerprint, len(code), *code)

    def code(self, condition: Condition) -> Fragment:
        """The code words of a condition, however many, and the sets held at once; no words where every item passes."""
        if type(condition) is And and not condition.operands:
            return [], 0
        return self._fragment(condition, 1)

    def _fragment(self, condition: Condition, depth: int) -> Fragment:
        if depth > MAX_DEPTH:
            raise LimitExceeded(
                f"filter: nested more than {MAX_DEPTH} deep; flatten it, for instance with is_in instead of many |"
            )
        if isinstance(condition, AnyOf):
            head, feature, where, value_of, ordered = self._features.get(condition.feature) or self._find(
                condition.feature
            )
            if ordered:
                values = [value_of(where, value) for value in condition.values]
                return self._join(_OR, [(_range(head, value, value), 1) for value in values])
            return self._keys(_ANY | head, value_of, where, condition.values)
        if isinstance(condition, Range):
            return self._bounds(condition), 1
        if isinstance(condition, And):
            return self._join(_AND, [self._fragment(operand, depth + 1) for operand in condition.operands])
        if isinstance(condition, Or):
            return self._join(_OR, [self._fragment(operand, depth + 1) for operand in condition.operands])
        if isinstance(condition, Not):
            code, sets = self._fragment(condition.operand, depth + 1)
            code.append(_NOT)
            return code, sets
        if isinstance(condition, AllOf):
            head, feature, where, value_of, _ = self._find(condition.feature)
            require_kind(condition, feature, "category", "tags")
            return self._keys(_ALL | head, value_of, where, condition.values)
        if isinstance(condition, Unknown):
            return [_UNKNOWN | self._find(condition.feature)[0]], 1
        if isinstance(condition, ItemIn):
            ids = item_ids("item_in", condition.item_ids).tolist()
            return [_ITEMS | len(ids) << 32, *ids], 1
        raise invalid_value(
            "filter", condition, "a condition made with F, such as F.year >= 1990; text is read by parse_filter"
        )

    def _join(self, opcode: int, operands: list[Fragment]) -> Fragment:
        """Join operands, the one that holds most sets first: then the others wait for it with the fewest sets held."""
        if not operands:
            return self._constant(opcode == _AND), 1
        if len({sets for _, sets in operands}) > 1:
            operands.sort(key=_held, reverse=True)
        code, sets = operands[0]
        for more, more_sets in operands[1:]:
            code += more
            code.append(opcode)
            if more_sets >= sets:
                sets = more_sets + 1
        return code, sets

    @staticmethod
    def _keys(head: int, key: Callable[[str, Any], Any], where: str, values: tuple[Any, ...]) -> Fragment:
        return [head | len(values) << 32, *[key(where, value) for value in values]], 1

    def _bounds(self, condition: Range) -> list[int]:
        head, feature, where, value_of, ordered = self._features.get(condition.feature) or self._find(condition.feature)
        if not ordered:
            require_kind(condition, feature, "number", "date")
        low = -math.inf if condition.low is None else value_of(where, condition.low)
        high = math.inf if condition.high is None else value_of(where, condition.high)
        if (condition.low_open and low == math.inf) or (condition.high_open and high == -math.inf):
            return _range(head, math.inf, -math.inf)  # nothing lies beyond an infinity
        if condition.low_open:
            low = math.nextafter(low, math.inf)
        if condition.high_open:
            high = math.nextafter(high, -math.inf)
        return _range(head, low, high)

    def _constant(self, every: bool) -> list[int]:
        """A leaf that every item, or none, satisfies: on the first feature since any one will do, or of no items."""
        if not self._features:
            return [_ITEMS, *([_NOT] if every else [])]
        head, _, _, _, ordered = next(iter(self._features.values()))
        if ordered:
            return [*_range(head, math.inf, -math.inf), *([_NOT] if every else [])]
        return [(_ALL if every else _ANY) | head]

    def _find(self, name: str) -> _Known:
        found = self._features.get(name)
        if found is None:
            filter_feature(name, self._schema)  # raises
            raise AssertionError(name)  # pragma: no cover
        return found


def _held(fragment: Fragment) -> int:
    return fragment[1]


def _range(head: int, low: float, high: float) -> list[int]:
    return [_RANGE | head | 2 << 32, *_int64s.unpack(_doubles.pack(low, high))]


def instructions(code: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Opcode, feature and count of each instruction of compiled code."""
    position = 0
    while position < len(code):
        head = code[position]
        yield head & 0xFF, head >> 8 & 0xFFFFFF, head >> 32
        position += 1 + (head >> 32)
