"""Filter programs (docs/filter-program.md) run in plain Python: leaves by the interpreter, connectives on sets."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.filters.compiler import MAX_STACK, MAX_WORDS, Opcode
from client.filters.conditions import AllOf, AnyOf, Condition, Range, Unknown
from client.filters.interpreter import item_values, matches
from client.hashing import UNKNOWN_KEY
from client.schema import Feature, Schema


class MalformedProgram(ValueError):
    """A program that breaks a rule of docs/filter-program.md."""


class OtherFingerprint(ValueError):
    """A program that was compiled for another schema."""


class ProgramRunner:
    """Runs programs over given items; what depends only on them is computed once.

    `items`: as `client.matches` takes them; `opcodes`: those that are known.
    """

    def __init__(
        self, schema: Schema, items: Sequence[Mapping[str, Any]], opcodes: Collection[int] = frozenset(Opcode)
    ) -> None:
        self._opcodes = opcodes
        self._fingerprint = schema.fingerprint
        self._ids = [item.get("item_id") for item in items]
        # What travels is keys and seconds: the interpreter is given the items so, and a schema that says so.
        features = [_as_it_travels(feature) for feature in schema.filter_features]
        self._schema = replace(schema, item_features=tuple(features))
        self._features = features
        self._items: list[dict[str, Any]] = []
        for item in items:
            keys: dict[str, Any] = {}
            for feature in schema.filter_features:
                values = item_values(feature, item.get(feature.name))
                keys[feature.name] = values if feature.kind == "tags" else values[0] if values else None
            self._items.append(keys)

    def passing(self, words: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[N] bool: the items that a program of [F] int64 words lets through.

        Raises `OtherFingerprint`, and `MalformedProgram` for every other fault.
        """
        program = [int(word) for word in words]
        if len(program) < 2:
            raise MalformedProgram("fewer than two words")
        if program[1] == 0:
            return np.ones(len(self._ids), np.bool_)
        if program[0] != self._fingerprint:
            raise OtherFingerprint
        if program[1] < 0 or program[1] + 2 > min(len(program), MAX_WORDS):
            raise MalformedProgram(f"{program[1]} code words")
        code = program[2 : 2 + program[1]]
        stack: list[NDArray[np.bool_]] = []
        position = 0
        while position < len(code):
            head = code[position]
            opcode, feature, count = head & 0xFF, head >> 8 & 0xFFFFFF, head >> 32
            operands = code[position + 1 : position + 1 + count] if count > 0 else []
            if head < 0 or opcode not in self._opcodes or len(operands) != count:
                raise MalformedProgram(f"word {position + 2}")
            position += 1 + count
            if opcode in (Opcode.AND, Opcode.OR, Opcode.NOT):
                if feature or count or len(stack) < (1 if opcode == Opcode.NOT else 2):
                    raise MalformedProgram(f"a connective before word {position + 2}")
                top = stack.pop()
                if opcode == Opcode.NOT:
                    stack.append(~top)
                else:
                    stack.append(stack.pop() & top if opcode == Opcode.AND else stack.pop() | top)
                continue
            if opcode == Opcode.ITEMS:
                if feature:
                    raise MalformedProgram("feature of ITEMS")
                ids = frozenset(operands)
                stack.append(np.array([item_id in ids for item_id in self._ids], np.bool_))
            else:
                condition = self._leaf(opcode, feature, operands)
                stack.append(np.array([matches(condition, item, self._schema) for item in self._items], np.bool_))
            if len(stack) > MAX_STACK:
                raise MalformedProgram("more sets than the stack holds")
        if len(stack) != 1:
            raise MalformedProgram(f"{len(stack)} sets are left")
        return stack[0]

    def _leaf(self, opcode: int, number: int, operands: list[int]) -> Condition:
        if number >= len(self._features):
            raise MalformedProgram(f"feature {number}")
        feature = self._features[number]
        if opcode == Opcode.UNKNOWN:
            if operands:
                raise MalformedProgram("operands of UNKNOWN")
            return Unknown(feature.name)
        if (opcode == Opcode.RANGE) != (feature.kind == "number"):
            raise MalformedProgram(f"{Opcode(opcode).name} of feature {number}")
        if opcode == Opcode.RANGE:
            if len(operands) != 2:
                raise MalformedProgram("bounds of RANGE")
            low, high = struct.unpack("<2d", struct.pack("<2q", *operands))
            if low != low or high != high:
                raise MalformedProgram("a bound that is NaN")
            return Range(feature.name, low, high)
        if opcode == Opcode.ALL:
            return AnyOf(feature.name, ()) if UNKNOWN_KEY in operands else AllOf(feature.name, tuple(operands))
        return AnyOf(feature.name, tuple(key for key in operands if key != UNKNOWN_KEY))  # which no item has


def _as_it_travels(feature: Feature) -> Feature:
    if feature.kind in ("category", "tags"):
        return replace(feature, values="integer")
    return replace(feature, kind="number")
