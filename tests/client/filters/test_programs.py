"""Programs run in plain Python against the interpreter, and every way a program can be wrong."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest

from client import Condition, F, Schema, compile_filter, everything, item_in, matches
from client.filters.programs import MalformedProgram, OtherFingerprint, ProgramRunner

WORDS = ["Drama", "War", "Noir", "ünïcode", ""]


def random_items(rng: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "item_id": 3 * item,
            "title_id": rng.choice([None, rng.randrange(5), -(2**63) + 1]),
            "studio": rng.choice([None, *WORDS]),
            "genres": rng.sample(WORDS, rng.randrange(4)),
            "cast": rng.sample(range(9), rng.randrange(4)),
            "year": rng.choice([None, 1990, 1990.5, -0.0, 1e300, float("nan")]),
            "released": rng.choice([None, datetime(2001, 1, 1, tzinfo=timezone.utc), 86400.5]),
        }
        for item in range(40)
    ]


def random_condition(rng: random.Random, depth: int) -> Condition:
    if depth and rng.random() < 0.75:
        left = random_condition(rng, depth - 1)
        if rng.random() < 0.3:
            return ~left
        right = random_condition(rng, depth - 1)
        return left & right if rng.random() < 0.5 else left | right
    words = rng.sample([*WORDS, "nobody"], rng.randrange(3))
    make: list[Callable[[], Condition]] = [
        everything,
        lambda: item_in(rng.sample(range(130), 30)),
        lambda: F.title_id.is_in([rng.randrange(6), -(2**63) + 1]),
        lambda: F.studio.any_of(*words),
        lambda: F.studio != "War",
        lambda: F.genres.all_of(*words),
        lambda: F.cast.all_of(rng.randrange(9)),
        lambda: F.year.between(0, rng.choice([-1, 0, 1990])),
        lambda: F.year > 1990,
        lambda: F.released < "2001-01-01",
        lambda: F.released >= "1970-01-02",
        lambda: F[rng.choice(["title_id", "genres", "year", "released"])].is_unknown(),
    ]
    return rng.choice(make)()


@pytest.mark.parametrize("seed", range(8))
def test_programs_mean_what_the_interpreter_says(schema: Schema, seed: int) -> None:
    rng = random.Random(seed)
    items = random_items(rng)
    runner = ProgramRunner(schema, items)
    for _ in range(60):
        condition = random_condition(rng, rng.randrange(5))
        expected = [matches(condition, item, schema) for item in items]
        padded = np.concatenate([compile_filter(condition, schema), np.full(3, 99)])
        assert runner.passing(padded).tolist() == expected, f"seed {seed}: {condition}"


def head(opcode: int, feature: int = 0, count: int = 0) -> int:
    return opcode | feature << 8 | count << 32


NAN, ONE = struct.unpack("<2q", struct.pack("<2d", float("nan"), 1.0))
UNKNOWN_YEAR = head(7, 4)


@pytest.mark.parametrize(
    "code",
    [
        [head(0)],
        [head(9)],
        [head(8, 1, 1), 5],
        [head(8, 0, 2), 5],
        [-1],
        [head(1)],
        [UNKNOWN_YEAR, head(2)],
        [head(3)],
        [UNKNOWN_YEAR, UNKNOWN_YEAR],
        [UNKNOWN_YEAR, head(3, 1)],
        [UNKNOWN_YEAR, head(3, 0, 1), 5],
        [head(7, 6)],
        [head(7, 4, 1), 5],
        [head(4, 4, 1), 5],
        [head(5, 5)],
        [head(6, 0, 2), ONE, ONE],
        [head(6, 4, 1), ONE],
        [head(6, 4, 3), ONE, ONE, ONE],
        [head(6, 4, 2), NAN, ONE],
        [head(6, 4, 2), ONE, NAN],
        [head(4, 0, 2), 5],
        [UNKNOWN_YEAR] * 17 + [head(1)] * 16,
    ],
)
def test_malformed(schema: Schema, code: list[int]) -> None:
    runner = ProgramRunner(schema, [])
    with pytest.raises(MalformedProgram):
        runner.passing(np.array([schema.fingerprint, len(code), *code]))


def test_lengths_and_fingerprints(schema: Schema) -> None:
    runner = ProgramRunner(schema, [{"year": 1.0}, {}])
    good = [schema.fingerprint, 1, UNKNOWN_YEAR]
    assert runner.passing(np.array(good)).tolist() == [False, True]
    assert runner.passing(np.array([5, 0, 77])).tolist() == [True, True]  # no program, no fingerprint
    for wrong in ([schema.fingerprint, -1, UNKNOWN_YEAR], [schema.fingerprint, 2, UNKNOWN_YEAR], [schema.fingerprint]):
        with pytest.raises(MalformedProgram):
            runner.passing(np.array(wrong))
    long = np.zeros(70_000, np.int64)
    long[:2] = schema.fingerprint, 65_535
    with pytest.raises(MalformedProgram):
        runner.passing(long)
    with pytest.raises(OtherFingerprint):  # before anything else is looked at
        runner.passing(np.array([good[0] ^ 1, -1, 0]))


def test_the_key_of_no_value(schema: Schema) -> None:
    runner = ProgramRunner(schema, [{"title_id": 3}, {}])
    never = -(2**63)
    for code, expected in (([head(4, 0, 2), never, 3], [True, False]), ([head(5, 0, 2), never, 3], [False, False])):
        assert runner.passing(np.array([schema.fingerprint, 3, *code])).tolist() == expected


def test_sixteen_sets_fit(schema: Schema) -> None:
    code = [UNKNOWN_YEAR] * 16 + [head(1)] * 15
    assert ProgramRunner(schema, [{}]).passing(np.array([schema.fingerprint, 31, *code])).tolist() == [True]


def test_ids_that_no_item_can_have_match_nothing(schema: Schema) -> None:
    runner = ProgramRunner(schema, [{"item_id": 3}, {"item_id": 4}])
    code = [head(8, 0, 3), -1, 3, -(2**63)]
    assert runner.passing(np.array([schema.fingerprint, 4, *code])).tolist() == [True, False]
