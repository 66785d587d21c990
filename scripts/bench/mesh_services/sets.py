"""Filter programs (docs/filter-program.md) over an inverted index, on dense or on Roaring bitmaps.

Both keep a set of item positions for each term: `DenseSets` whole bitmaps of frequent terms and lists of rare ones, as
Faiss's selector reads bitmaps; `RoaringSets` Roaring bitmaps. Numbers have cumulative sets at quantiles (range-encoded
bitmaps), made exact at the edges from the sorted values.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
from pyroaring import BitMap

from client.filters.compiler import Opcode

FREQUENT = 32  # a term of more than one in so many items has a whole bitmap
BUCKETS = 256  # of a number
SCATTERED = 4096  # up to so many positions are set one by one

ONES = np.array([bin(i).count("1") for i in range(1 << 16)], np.uint8)
S = TypeVar("S")


class Sets(Protocol[S]):
    """What a program needs of a kind of set."""

    def everything(self) -> S: ...
    def term(self, feature: int, key: int) -> S: ...
    def union(self, feature: int, keys: np.ndarray) -> S: ...
    def between(self, feature: int, low: float, high: float) -> S: ...
    def unknown(self, feature: int) -> S: ...
    def both(self, a: S, b: S) -> S: ...
    def either(self, a: S, b: S) -> S: ...
    def without(self, a: S) -> S: ...


def evaluate(program: np.ndarray, sets: Any) -> Any:
    """The set that a program leaves; `program [F] int64` as the client compiles it."""
    if program[1] == 0:
        return sets.everything()
    stack: list[Any] = []
    code = program[2 : 2 + int(program[1])]
    at = 0
    while at < len(code):
        head = int(code[at])
        opcode, feature, count = head & 0xFF, head >> 8 & 0xFFFFFF, head >> 32
        operands = code[at + 1 : at + 1 + count]
        at += 1 + count
        if opcode == Opcode.AND:
            top = stack.pop()
            stack.append(sets.both(stack.pop(), top))
        elif opcode == Opcode.OR:
            top = stack.pop()
            stack.append(sets.either(stack.pop(), top))
        elif opcode == Opcode.NOT:
            stack.append(sets.without(stack.pop()))
        elif opcode == Opcode.ANY:
            stack.append(sets.union(feature, operands))
        elif opcode == Opcode.ALL:
            found = sets.everything()
            for key in operands:
                found = sets.both(found, sets.term(feature, int(key)))
            stack.append(found)
        elif opcode == Opcode.RANGE:
            low, high = operands.view(np.float64)
            stack.append(sets.between(feature, float(low), float(high)))
        else:
            stack.append(sets.unknown(feature))
    return stack.pop()


class Terms:
    """Of one feature: positions by key, those without a value first, and sorted values if it is a number."""

    def __init__(self, columns: Any, prefix: str) -> None:
        self.items = int(columns["items"])
        self.is_number = f"{prefix}values" in columns
        if self.is_number:
            values = columns[f"{prefix}values"]
            order = np.argsort(values, kind="stable").astype(np.uint32)  # NaN last
            known = int(np.sum(~np.isnan(values)))
            self.missing = np.sort(order[known:])
            self.order, self.values = order[:known], values[order[:known]]
            return
        keys, owners = columns[f"{prefix}keys"], columns[f"{prefix}owners"]
        order = np.argsort(keys, kind="stable")
        self.keys, starts = np.unique(keys[order], return_index=True)
        self.positions, self.bounds = owners[order].astype(np.uint32), np.append(starts, len(keys))
        self.missing = np.setdiff1d(np.arange(self.items, dtype=np.uint32), owners)

    def slots(self, keys: np.ndarray) -> np.ndarray:
        """Of the keys that there are, their places."""
        if not len(self.keys):
            return np.empty(0, np.int64)
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return places[self.keys[places] == keys]

    def of(self, slot: int) -> np.ndarray:
        return self.positions[self.bounds[slot] : self.bounds[slot + 1]]

    def ranks(self, low: float, high: float) -> tuple[int, int]:
        """Values from `low` to `high` have these ranks, the second one excluded."""
        first = int(np.searchsorted(self.values, low, "left"))
        return first, max(first, int(np.searchsorted(self.values, high, "right")))


def read_terms(columns: Any) -> list[Terms]:
    return [Terms(columns, f"{feature}.") for feature in range(int(columns["features"]))]


class DenseSets:
    """Bitmaps `[W] uint64`, bit i of word w for position 64 w + i."""

    def __init__(self, columns: Any) -> None:
        self.terms = read_terms(columns)
        self.items = int(columns["items"])
        self.words = -(-self.items // 64)
        self.all = self.bits(np.arange(self.items))
        self.frequent: list[dict[int, np.ndarray]] = []
        self.cumulative: list[list[np.ndarray]] = []
        self.step: list[int] = []
        self.places: list[tuple[np.ndarray, np.ndarray]] = []  # words and bits of sorted values
        for terms in self.terms:
            sizes = np.diff(terms.bounds) if not terms.is_number else []
            self.frequent.append(
                {slot: self.bits(terms.of(slot)) for slot, size in enumerate(sizes) if size * FREQUENT > self.items}
            )
            step = max(1, -(-len(terms.order) // BUCKETS)) if terms.is_number else 1
            ends = range(0, len(terms.order) + 1, step) if terms.is_number else []
            self.cumulative.append([self.bits(terms.order[:end]) for end in ends])
            self.step.append(step)
            order = terms.order.astype(np.uint64) if terms.is_number else np.empty(0, np.uint64)
            self.places.append(((order >> np.uint64(6)).astype(np.int64), np.uint64(1) << (order & np.uint64(63))))

    def bits(self, positions: np.ndarray) -> np.ndarray:
        if len(positions) <= SCATTERED:
            words = np.zeros(self.words, np.uint64)
            at = positions.astype(np.uint64)
            np.bitwise_or.at(words, (at >> np.uint64(6)).astype(np.int64), np.uint64(1) << (at & np.uint64(63)))
            return words
        each = np.zeros(64 * self.words, np.bool_)
        each[positions] = True
        return np.packbits(each, bitorder="little").view(np.uint64)

    @staticmethod
    def count(words: np.ndarray) -> int:
        return int(ONES[words.view(np.uint16)].sum(dtype=np.int64))

    def positions(self, words: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))

    def everything(self) -> np.ndarray:
        return self.all

    def term(self, feature: int, key: int) -> np.ndarray:
        return self.union(feature, np.array([key]))

    def union(self, feature: int, keys: np.ndarray) -> np.ndarray:
        frequent, rare = None, []
        for slot in self.terms[feature].slots(keys):
            whole = self.frequent[feature].get(int(slot))
            if whole is None:
                rare.append(self.terms[feature].of(slot))
            else:
                frequent = whole if frequent is None else frequent | whole
        if not rare:
            return np.zeros(self.words, np.uint64) if frequent is None else frequent
        found = self.bits(np.concatenate(rare))
        return found if frequent is None else found | frequent

    def between(self, feature: int, low: float, high: float) -> np.ndarray:
        first, end = self.terms[feature].ranks(low, high)
        return self.below(feature, end) & ~self.below(feature, first)

    def below(self, feature: int, rank: int) -> np.ndarray:
        """The positions of the `rank` smallest values."""
        bucket = rank // self.step[feature]
        words = self.cumulative[feature][bucket].copy()
        at, bits = (each[bucket * self.step[feature] : rank] for each in self.places[feature])
        np.bitwise_or.at(words, at, bits)
        return words

    def unknown(self, feature: int) -> np.ndarray:
        return self.bits(self.terms[feature].missing)

    def both(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a & b

    def either(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a | b

    def without(self, a: np.ndarray) -> np.ndarray:
        return self.all & ~a


class RoaringSets:
    def __init__(self, columns: Any) -> None:
        self.terms = read_terms(columns)
        self.items = int(columns["items"])
        self.all = BitMap(range(self.items))
        self.of: list[list[BitMap]] = []
        self.step: list[int] = []
        for terms in self.terms:
            if terms.is_number:
                step = max(1, -(-len(terms.order) // BUCKETS))
                ends = range(0, len(terms.order) + 1, step)
                self.of.append([BitMap(np.sort(terms.order[:end])) for end in ends])
            else:
                step = 1
                self.of.append([BitMap(terms.of(slot)) for slot in range(len(terms.keys))])
            self.step.append(step)
        self.missing = [BitMap(terms.missing) for terms in self.terms]

    def everything(self) -> BitMap:
        return self.all

    def term(self, feature: int, key: int) -> BitMap:
        return self.union(feature, np.array([key]))

    def union(self, feature: int, keys: np.ndarray) -> BitMap:
        return BitMap.union(BitMap(), *(self.of[feature][slot] for slot in self.terms[feature].slots(keys)))

    def between(self, feature: int, low: float, high: float) -> BitMap:
        first, end = self.terms[feature].ranks(low, high)
        return self.below(feature, end) - self.below(feature, first)

    def below(self, feature: int, rank: int) -> BitMap:
        bucket = rank // self.step[feature]
        return self.of[feature][bucket] | BitMap(self.terms[feature].order[bucket * self.step[feature] : rank])

    def unknown(self, feature: int) -> BitMap:
        return self.missing[feature]

    def both(self, a: BitMap, b: BitMap) -> BitMap:
        return a & b

    def either(self, a: BitMap, b: BitMap) -> BitMap:
        return a | b

    def without(self, a: BitMap) -> BitMap:
        return self.all - a
