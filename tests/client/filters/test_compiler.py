"""Golden programs, bounds, and hundreds of random filters against the interpreter."""

from __future__ import annotations

import datetime as dt
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client import (
    AllOf,
    And,
    AnyOf,
    Condition,
    F,
    Feature,
    LimitExceeded,
    Not,
    Or,
    Range,
    Schema,
    Unknown,
    UnknownName,
    compile_filter,
    everything,
    item_in,
    matches,
)
from client.filters.compiler import MAX_STACK, MAX_WORDS
from client.hashing import UNKNOWN_KEY, string_key

FINGERPRINT = -3879996596485562582  # tests/client/test_schema.py
DRAMA, WAR = -3780808780974187119, string_key("War")
ONE, TWO, INF = 0x3FF0000000000000, 0x4000000000000000, 0x7FF0000000000000
MINUS_INF = INF - 2**63
TITLE, STUDIO, GENRES, CAST, YEAR, RELEASED = (position << 8 for position in range(6))
AND, OR, NOT, ANY, ALL, RANGE, UNKNOWN, ITEMS = 1, 2, 3, 4, 5, 6, 7, 8
NONE, KEY, KEYS = 0, 1 << 32, 2 << 32


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        (F.genres == "Drama", [ANY | GENRES | KEY, DRAMA]),
        (F.genres.any_of("Drama", "War"), [ANY | GENRES | KEYS, DRAMA, WAR]),
        (F.genres.all_of("Drama", "War"), [ALL | GENRES | KEYS, DRAMA, WAR]),
        (F.title_id.is_in([-1, 2]), [ANY | TITLE | KEYS, -1, 2]),
        (F.title_id.is_in([]), [ANY | TITLE | NONE]),
        (F.title_id != 5, [ANY | TITLE | KEY, 5, NOT]),
        (F.year.between(1, 2), [RANGE | YEAR | KEYS, ONE, TWO]),
        (F.year >= 1, [RANGE | YEAR | KEYS, ONE, INF]),
        (F.year > 1, [RANGE | YEAR | KEYS, ONE + 1, INF]),
        (F.year < 1, [RANGE | YEAR | KEYS, MINUS_INF, ONE - 1]),
        (F.year > math.inf, [RANGE | YEAR | KEYS, INF, MINUS_INF]),
        (F.year < -math.inf, [RANGE | YEAR | KEYS, INF, MINUS_INF]),
        (F.year == -0.0, [RANGE | YEAR | KEYS, 0, 0]),
        (F.year > -0.0, [RANGE | YEAR | KEYS, 1, INF]),
        (F.year.is_in([1, 2]), [RANGE | YEAR | KEYS, ONE, ONE, RANGE | YEAR | KEYS, TWO, TWO, OR]),
        (F.year.is_in([]), [ANY | TITLE | NONE]),
        (F.released == dt.date(1970, 1, 1), [RANGE | RELEASED | KEYS, 0, 0]),
        (F.released == "1970-01-01T00:00:01Z", [RANGE | RELEASED | KEYS, ONE, ONE]),
        (F.studio.is_unknown(), [UNKNOWN | STUDIO]),
        (~everything(), [ALL | TITLE, NOT]),
        (item_in([7, 5, 7]), [ITEMS | 3 << 32, 7, 5, 7]),
        (item_in([]), [ITEMS]),
        (item_in([5]) & (F.cast == 3), [ITEMS | KEY, 5, ANY | CAST | KEY, 3, AND]),
        (everything() | (F.cast == 3), [ALL | TITLE, ANY | CAST | KEY, 3, OR]),
        ((F.cast == 1) & (F.cast == 2) & (F.cast == 3),
         [ANY | CAST | KEY, 1, ANY | CAST | KEY, 2, AND, ANY | CAST | KEY, 3, AND]),
        # The operand that needs two sets comes first, so that the whole never needs three.
        ((F.cast == 1) | (F.cast == 2) & F.year.is_unknown(),
         [ANY | CAST | KEY, 2, UNKNOWN | YEAR, AND, ANY | CAST | KEY, 1, OR]),
    ],
    ids=str,
)  # fmt: skip
def test_golden_programs(schema: Schema, condition: Condition, code: list[int]) -> None:
    program = compile_filter(condition, schema)
    assert program.dtype == np.int64
    assert program.tolist() == [FINGERPRINT, len(code), *code]


def test_golden_bytes(schema: Schema) -> None:
    condition = F.genres.any_of("Drama") & (F.year >= 1990) & ~F.title_id.is_in([1, 2])
    expected = (
        "2adfc010a77b27ca 0b00000000000000 0402000001000000 911d5bfe71de87cb 0604000002000000"
        "000000000018 9f40 000000000000f07f 0100000000000000 0400000002000000 0100000000000000"
        "0200000000000000 0300000000000000 0100000000000000"
    )
    assert compile_filter(condition, schema).astype("<i8").tobytes().hex() == expected.replace(" ", "")


def test_everything_is_the_neutral_program(schema: Schema) -> None:
    assert compile_filter(everything(), schema).tolist() == [0, 0]


def test_constants_on_a_schema_of_numbers(query_schema: Schema) -> None:
    empty = [RANGE | KEYS, INF, MINUS_INF]
    assert compile_filter(Or(()), query_schema).tolist()[1:] == [3, *empty]
    assert compile_filter(~everything(), query_schema).tolist()[1:] == [5, *empty, NOT, NOT]


def test_no_filter_features() -> None:
    schema = Schema("x", (), (Feature("poster", "number"),), ("t",), 0, 4, 5, 5, 5)
    assert compile_filter(everything(), schema).tolist() == [0, 0]
    assert compile_filter(Or(()), schema).tolist()[1:] == [1, ITEMS]
    assert compile_filter(~everything(), schema).tolist()[1:] == [3, ITEMS, NOT, NOT]
    assert compile_filter(item_in([5]), schema).tolist()[1:] == [2, ITEMS | KEY, 5]
    with pytest.raises(UnknownName, match="this artifact has none"):
        compile_filter(F.a == 1, schema)


def test_words_are_limited(schema: Schema) -> None:
    most = compile_filter(F.title_id.is_in(range(MAX_WORDS - 3)), schema)
    assert len(most) == MAX_WORDS
    with pytest.raises(LimitExceeded, match=r"got 65,537 words, at most 65,536 are allowed"):
        compile_filter(F.title_id.is_in(range(MAX_WORDS - 2)), schema)
    with pytest.raises(LimitExceeded):
        compile_filter(F.title_id.is_in(range(MAX_WORDS * 4)), schema)
    assert len(compile_filter(item_in(range(MAX_WORDS - 3)), schema)) == MAX_WORDS
    with pytest.raises(LimitExceeded, match=r"got 65,537 words, at most"):
        compile_filter(item_in(range(MAX_WORDS - 2)), schema)
    with pytest.raises(LimitExceeded):
        compile_filter(F.year.is_in(range(MAX_WORDS // 4 + 1)), schema)


def _nested(depth: int) -> Condition:
    condition: Condition = F.cast == 0
    for level in range(1, depth):
        leaf = F.cast == level
        condition = And((leaf, condition)) if level % 2 else Or((leaf, condition))
    return condition


def test_nesting_is_limited(schema: Schema) -> None:
    assert run_depth(compile_filter(_nested(64), schema)) == 2
    for condition in (_nested(65), _nested(50_000), Not(Not(_nested(63)))):
        with pytest.raises(LimitExceeded, match="nested more than 64 deep"):
            compile_filter(condition, schema)


def _full_tree(levels: int) -> Condition:
    if levels == 0:
        return Unknown("year")
    connective = And if levels % 2 else Or
    return connective((_full_tree(levels - 1), _full_tree(levels - 1)))


def test_a_full_tree_needs_one_set_more_each_level(schema: Schema) -> None:
    for levels in range(8):
        assert run_depth(compile_filter(_full_tree(levels), schema)) == levels + 1
    # 2^14 leaves fit; the next level has more words than a program, before it has more sets than the stack.
    program = compile_filter(_full_tree(14), schema)
    assert run_depth(program) == 15 <= MAX_STACK
    assert run_program(program, schema, [{}]) == {0}


# A machine of its own, straight from docs/filter-program.md, that shares nothing with the compiler.


def run_depth(program: NDArray[np.int64]) -> int:
    """The largest number of sets on the stack."""
    words, depth, most, at = program.tolist(), 0, 0, 2
    while at < 2 + words[1]:
        opcode, count = words[at] & 0xFF, words[at] >> 32
        depth += {AND: -1, OR: -1, NOT: 0}.get(opcode, 1)
        most = max(most, depth)
        at += 1 + count
    assert depth == 1
    return most


def run_program(program: NDArray[np.int64], schema: Schema, items: list[dict[str, Any]]) -> set[int]:
    """Positions of the items that a program lets through."""
    words = program.tolist()
    every = set(range(len(items)))
    if words[1] == 0:
        return every
    assert words[0] == schema.fingerprint
    columns = [[_known(feature, item.get(feature.name)) for item in items] for feature in schema.filter_features]
    stack: list[set[int]] = []
    at, end = 2, 2 + words[1]
    while at < end:
        opcode, feature, count = words[at] & 0xFF, words[at] >> 8 & 0xFFFFFF, words[at] >> 32
        operands = words[at + 1 : at + 1 + count]
        at += 1 + count
        if opcode in (AND, OR, NOT):
            assert feature == count == 0
            top = stack.pop()
            stack.append(every - top if opcode == NOT else stack.pop() & top if opcode == AND else stack.pop() | top)
        elif opcode == ITEMS:
            assert feature == 0
            stack.append({row for row in every if items[row]["item_id"] in operands})
        elif opcode == RANGE:
            assert count == 2
            assert schema.filter_features[feature].kind in ("number", "date")
            low, high = struct.unpack("<2d", struct.pack("<2q", *operands))
            assert low == low
            assert high == high
            stack.append({row for row in every if any(low <= value <= high for value in columns[feature][row])})
        else:
            assert opcode in (ANY, ALL, UNKNOWN)
            if opcode == UNKNOWN:
                assert count == 0
                stack.append({row for row in every if not columns[feature][row]})
                continue
            assert schema.filter_features[feature].kind in ("category", "tags")
            test: Callable[[Any], bool] = any if opcode == ANY else all
            stack.append({row for row in every if test([key in columns[feature][row] for key in operands])})
        assert len(stack) <= MAX_STACK
    assert at == end
    (result,) = stack
    return result


def _known(feature: Feature, value: Any) -> list[Any]:
    if value is None:
        return []
    if feature.kind == "date":
        return [(value - dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)).total_seconds()]
    if feature.kind == "number":
        return [] if math.isnan(value) else [float(value)]
    values = value if feature.kind == "tags" else [value]
    keys = [string_key(value) if feature.values == "string" else value for value in values]
    assert UNKNOWN_KEY not in keys
    return keys


STUDIOS = ("Mosfilm", "Pathé", "A24", "")
GENRE_NAMES = ("Drama", "War", "Comedy", "Noir", "戦争")
YEARS = (-1.5, 0.0, 1990, 1990.5, 1991, math.nextafter(1991, math.inf), 2000)
DAYS = tuple(dt.datetime(1969, 12, 30, tzinfo=dt.timezone.utc) + dt.timedelta(hours=6 * step) for step in range(16))


def _random_item(rng: random.Random) -> dict[str, Any]:
    item = {
        "title_id": rng.randrange(6),
        "studio": rng.choice(STUDIOS),
        "genres": rng.sample(GENRE_NAMES, rng.randrange(4)),
        "cast": [rng.randrange(5) for _ in range(rng.randrange(3))],
        "year": rng.choice((*YEARS, math.nan)),
        "released": rng.choice(DAYS),
    }
    return {"item_id": rng.randrange(30)} | {name: value for name, value in item.items() if rng.random() < 0.85}


def _random_leaf(rng: random.Random) -> Condition:
    some = range(rng.randrange(4))
    year, day = (lambda: rng.choice((*YEARS, -math.inf, math.inf))), (lambda: _random_spelling(rng, rng.choice(DAYS)))
    number: Callable[[], Any] = rng.choice((year, day))
    name = "year" if number is year else "released"
    flag = rng.random() < 0.5
    return rng.choice(
        (
            lambda: AnyOf("title_id", tuple(rng.randrange(8) for _ in some)),
            lambda: AnyOf("studio", tuple(rng.choice((*STUDIOS, "nobody")) for _ in some)),
            lambda: AllOf("studio", tuple(rng.choice(STUDIOS) for _ in some)),
            lambda: AnyOf("genres", tuple(rng.choice(GENRE_NAMES) for _ in some)),
            lambda: AllOf("genres", tuple(rng.choice(GENRE_NAMES) for _ in some)),
            lambda: AllOf("cast", tuple(rng.randrange(5) for _ in some)),
            lambda: AnyOf(name, tuple(number() for _ in some)),
            lambda: Range(name, number(), number(), flag, rng.random() < 0.5),
            lambda: Range(name, low=number(), low_open=flag),
            lambda: Range(name, high=number(), high_open=flag),
            lambda: Range(name),
            lambda: Unknown(rng.choice(("title_id", "studio", "genres", "cast", "year", "released"))),
            everything,
            lambda: item_in(rng.randrange(40) for _ in range(rng.randrange(20))),
        )
    )()


def _random_spelling(rng: random.Random, day: dt.datetime) -> Any:
    """One of the forms in which a date can be given."""
    naive = day.replace(tzinfo=None)
    spellings: list[Any] = [
        day,
        naive,
        naive.isoformat(),
        f"{naive.isoformat()}Z",
        day.astimezone(dt.timezone(dt.timedelta(hours=-3, minutes=-30))),
        np.datetime64(naive),
        np.datetime64(naive, "s"),
    ]
    if naive.hour == 0:
        spellings += [naive.date(), naive.date().isoformat(), np.datetime64(naive.date())]
    return rng.choice(spellings)


def _random_condition(rng: random.Random, depth: int) -> Condition:
    if depth == 0 or rng.random() < 0.2:
        return _random_leaf(rng)
    kind = rng.random()
    if kind < 0.2:
        return Not(_random_condition(rng, depth - 1))
    operands = tuple(_random_condition(rng, depth - 1) for _ in range(rng.randrange(5)))
    return And(operands) if kind < 0.6 else Or(operands)


@pytest.mark.parametrize("start", range(10))
def test_random_filters_mean_the_same_compiled_and_interpreted(schema: Schema, start: int) -> None:
    outcomes = set()
    for seed in range(start * 60, start * 60 + 60):
        rng = random.Random(seed)
        items = [_random_item(rng) for _ in range(40)]
        condition = _random_condition(rng, rng.randrange(6))
        expected = {row for row, item in enumerate(items) if matches(condition, item, schema)}
        program = compile_filter(condition, schema)
        assert run_program(program, schema, items) == expected, f"seed {seed}: {condition}"
        outcomes.add(len(expected))
    assert len(outcomes) > 10, "the filters of this range are too alike to show anything"
