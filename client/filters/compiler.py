"""Compiles a condition to the words of docs/filter-program.md."""

from __future__ import annotations

import math
import struct
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from client._values import instant, key_function, number
from client.errors import LimitExceeded, invalid_value
from client.filters.conditions import AllOf, And, AnyOf, Condition, Not, Or, Range, Unknown
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


# A fragment: its code words, and how many sets its evaluation holds at once (the Sethi-Ullman number).
Fragment = tuple[list[int], int]

_double = struct.Struct("<d")
_int64 = struct.Struct("<q")
_AND, _OR, _NOT, _ANY, _ALL, _RANGE, _UNKNOWN = map(int, Opcode)


def compile_filter(condition: Condition, schema: Schema) -> NDArray[np.int64]:
    """Compile a condition to [2 + n] int64 words: schema fingerprint, n, code.

    Raises `UnknownName` for a feature that does not exist or has no filter, `InvalidValue` for a value or operation
    that does not go with the feature's kind, `LimitExceeded` above 65,536 words or 64 levels of nesting.
    """
    return FilterCompiler(schema).compile(condition)


class FilterCompiler:
    """`compile_filter` with the work that depends only on the schema done once."""

    __slots__ = ("_features", "_fingerprint", "_schema")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._fingerprint = schema.fingerprint
        self._features = {
            feature.name: (position << 8, feature, f"filter on {feature.name!r}")
            for position, feature in enumerate(schema.filter_features)
        }

    def compile(self, condition: Condition) -> NDArray[np.int64]:
        """[2 + n] int64 words; see `compile_filter`."""
        if isinstance(condition, And) and not condition.operands:
            return np.zeros(2, np.int64)
        code, sets = self._fragment(condition, 1)
        if len(code) + 2 > MAX_WORDS:
            raise _too_long(len(code) + 2)
        # Cannot happen within MAX_WORDS: 17 sets take 2^16 conditions.
        assert sets <= MAX_STACK
        return np.array([self._fingerprint, len(code), *code], np.int64)

    def _fragment(self, condition: Condition, depth: int) -> Fragment:
        if depth > MAX_DEPTH:
            raise LimitExceeded(
                f"filter: nested more than {MAX_DEPTH} deep; flatten it, for instance with is_in instead of many |"
            )
        if isinstance(condition, AnyOf):
            head, feature, where = self._find(condition.feature)
            if feature.kind in ("number", "date"):
                value_of = number if feature.kind == "number" else instant
                values = [value_of(where, value) for value in condition.values]
                return self._join(_OR, [(_range(head, value, value), 1) for value in values])
            return self._keys(_ANY, head, feature, where, condition)
        if isinstance(condition, AllOf):
            head, feature, where = self._find(condition.feature)
            require_kind(condition, feature, "category", "tags")
            return self._keys(_ALL, head, feature, where, condition)
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
        if isinstance(condition, Unknown):
            return [_UNKNOWN | self._find(condition.feature)[0]], 1
        raise invalid_value("filter", condition, "a condition made with F, such as F.year >= 1990")

    def _join(self, opcode: int, operands: list[Fragment]) -> Fragment:
        """Join operands, the one that holds most sets first: then the others wait for it with the fewest sets held."""
        if not operands:
            return self._constant(opcode == _AND), 1
        operands.sort(key=_held, reverse=True)
        code, sets = operands[0]
        for more, more_sets in operands[1:]:
            code += more
            code.append(opcode)
            sets = max(sets, more_sets + 1)
        return code, sets

    def _keys(self, opcode: int, head: int, feature: Feature, where: str, condition: AnyOf | AllOf) -> Fragment:
        values = condition.values
        if len(values) > MAX_WORDS:
            raise _too_long(len(values))
        key = key_function(feature.values)
        return [opcode | head | len(values) << 32, *[key(where, value) for value in values]], 1

    def _bounds(self, condition: Range) -> list[int]:
        head, feature, where = self._find(condition.feature)
        require_kind(condition, feature, "number", "date")
        value_of = number if feature.kind == "number" else instant
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
        """A leaf that every item, or none, satisfies, on the first feature since any one will do."""
        if not self._features:
            filter_feature("", self._schema)
        head, feature, _ = next(iter(self._features.values()))
        if feature.kind in ("number", "date"):
            return [*_range(head, math.inf, -math.inf), *([_NOT] if every else [])]
        return [(_ALL if every else _ANY) | head]

    def _find(self, name: str) -> tuple[int, Feature, str]:
        found = self._features.get(name)
        if found is None:
            filter_feature(name, self._schema)  # raises
            raise AssertionError(name)  # pragma: no cover
        return found


def _held(fragment: Fragment) -> int:
    return fragment[1]


def _range(head: int, low: float, high: float) -> list[int]:
    bits = _int64.unpack
    return [_RANGE | head | 2 << 32, bits(_double.pack(low))[0], bits(_double.pack(high))[0]]


def _too_long(words: int) -> LimitExceeded:
    return LimitExceeded(f"filter: got {words:,} words or more, at most {MAX_WORDS:,} are allowed; use fewer values")
