"""What a filter costs the server, known before it is sent."""

from __future__ import annotations

from dataclasses import dataclass

from client.contract import Contract
from client.filters.compiler import FilterCompiler, Opcode, instructions
from client.filters.conditions import Condition
from client.schema import Schema

BLOCK = 32  # items of a block, whose word of a set has a bit for each


@dataclass(frozen=True, slots=True)
class FilterCost:
    """The size of a filter's program, and bounds of the work that it causes.

    `words`: of the program, what `max_filter_words` limits. `terms`: values and ids looked up, ranges and tests for no
    value. `sets`: of items, held at once. `passes`: at most so many times is a set of all items gone through. `blocks`:
    `passes` times the blocks of the artifact, and one for each id of `item_in`: how many words of sets are read or
    written at most; None where the artifact does not tell how many items it holds. What a filter takes is often far
    less: one that few items pass is not run over all of them.
    """

    words: int
    terms: int
    sets: int
    passes: int
    blocks: int | None


def filter_cost(condition: Condition, schema: Schema, contract: Contract = Contract()) -> FilterCost:  # noqa: B008
    """The cost of a condition for an artifact of that schema and contract, which may be more than it takes.

    Raises `UnknownName` and `InvalidValue` as `compile_filter` does, and `LimitExceeded` above 64 levels of nesting.
    """
    code, sets = FilterCompiler(schema).code(condition)
    terms = passes = ids = 0
    for opcode, _, count in instructions(code):
        match opcode:
            case Opcode.AND | Opcode.OR | Opcode.NOT:
                passes += 1
            case Opcode.ANY:  # into an empty set; a key's bitmap, or its rows, which are fewer than words of a bitmap
                terms += count
                passes += 1 + count
            case Opcode.ALL:  # each of them is made a set first
                terms += count
                passes += 1 + 2 * count
            case Opcode.RANGE:  # what is between the nearest cumulative bitmaps, and the rows up to the exact ends
                terms += 1
                passes += 3
            case Opcode.ITEMS:  # a row each, found by its id
                terms += count
                ids += count
                passes += 1
            case Opcode.UNKNOWN:
                terms += 1
                passes += 1
    if code:
        passes += 1  # what passes is counted
    blocks = None if contract.items is None else passes * (contract.items // BLOCK + schema.clusters) + ids
    return FilterCost(len(code) + 2, terms, sets, passes, blocks)
