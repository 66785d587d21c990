"""filter_rows against the reference interpreter: random nested programs, every kind of leaf, the edges of ranges."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from builder import ops
from tests.kernels import reference
from tests.kernels.catalogue import (
    FINGERPRINT,
    Layout,
    filter_index,
    lay_out,
    pack,
    program_rows,
    random_columns,
    random_ids,
    random_program,
    unpack,
)
from tests.kernels.reference import ALL, AND, ANY, ITEMS, NOT, OR, RANGE, UNKNOWN, Column, bits, head

pytestmark = pytest.mark.usefixtures("instruction_set")


class Catalogue:
    """Columns in an index of their own, with what a test needs to run and check programs."""

    def __init__(
        self, columns: list[Column], items: int, seed: int = 0, clusters: int = 3, buckets: int = 4, frequent: int = 4
    ) -> None:
        generator = np.random.default_rng(seed)
        self.columns, self.items = columns, items
        self.ids = random_ids(generator, items)
        self.layout: Layout = lay_out(generator.integers(clusters, size=items), clusters)
        self.index = filter_index(columns, self.layout, buckets, frequent)
        members = np.zeros(self.layout.rows, dtype=np.bool_)
        members[self.layout.row_of_item] = True
        row_ids = np.full(self.layout.rows, -1)
        row_ids[self.layout.row_of_item] = self.ids
        self.row_ids, self.item_rows = torch.from_numpy(row_ids), torch.from_numpy(self.layout.row_of_item).int()
        self.valid = torch.from_numpy(pack(members))
        self.cluster_blocks = torch.from_numpy(self.layout.cluster_blocks)
        self._answers: dict[tuple[int, ...], tuple[int, np.ndarray]] = {}

    def answer(self, program: list[int]) -> tuple[int, np.ndarray]:
        """The reference's; kept, since the same programs come again on every instruction set."""
        key = tuple(program)
        if key not in self._answers:
            self._answers[key] = reference.run_program(program, FINGERPRINT, self.columns, self.ids)
        return self._answers[key]

    def run(self, program: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ops.filter_rows(
            program,
            self.row_ids,
            self.item_rows,
            *self.index.values(),
            self.valid,
            self.cluster_blocks,
            FINGERPRINT,
        )

    def check(self, program: Tensor, note: str | Sequence[str] = "") -> list[np.ndarray]:
        """Compare all three outputs with the reference; returns the passing items of each program."""
        words, passing, status = self.run(program)
        result = []
        for b, row in enumerate(program.tolist()):
            where = f"{note if isinstance(note, str) else note[b]}, program {b}: {row[:100]}"
            expected_status, items = self.answer(row)
            expected = np.zeros(self.layout.rows, dtype=np.bool_)
            expected[self.layout.row_of_item] = items
            assert status[b] == expected_status, where
            np.testing.assert_array_equal(unpack(words[b].numpy()), expected, where)
            assert passing[b] == items.sum(), where
            result.append(items)
        return result


@pytest.mark.parametrize("seed", range(30))
def test_random_nested_programs(seed: int) -> None:
    random = Random(seed)
    items = random.choice([1, 2, 31, 32, 33, 100, 500])
    columns = random_columns(random, items)
    catalogue = Catalogue(
        columns,
        items,
        seed,
        clusters=random.choice([1, 3, 9]),
        buckets=random.choice([1, 2, 8, 32]),
        frequent=random.choice([0, 3, items]),
    )
    leaves, ids = [1, 2, 3, 5, 9, 20], catalogue.ids.tolist()
    codes = [random_program(random, columns, random.choice(leaves), ids) for _ in range(20)]
    catalogue.check(program_rows(codes), f"seed {seed}")


@cache
def large_catalogue() -> Catalogue:
    random, items = Random(7), 60_000  # nearly four chunks of 512 words
    columns: list[Column] = [
        [frozenset([random.randrange(3)]) if random.random() < 0.9 else frozenset() for _ in range(items)],
        [frozenset([random.randrange(5_000)]) for _ in range(items)],
        np.random.default_rng(7).normal(size=items),
    ]
    return Catalogue(columns, items, 7, clusters=50, buckets=32, frequent=1_900)


def test_programs_over_many_chunks() -> None:
    catalogue, random = large_catalogue(), Random(8)
    ids = catalogue.ids.tolist()
    codes = [random_program(random, catalogue.columns, leaves, ids) for leaves in (1, 1, 2, 3, 3, 4, 6, 8, 12)]
    codes += [[head(ITEMS, 0, 9_000), *random.choices(ids, k=9_000)], [head(ITEMS, 0, 2), ids[0], ids[-1], head(NOT)]]
    codes += [[head(ANY, 1, 500), *range(500)], [head(RANGE, 2, 2), bits(-0.5), bits(1.2)]]
    catalogue.check(program_rows(codes), "seed 8")


@cache
def catalogue_of_rare_keys() -> Catalogue:
    """Keys of 0 to 500 items among 60,000, by which a filter can go through few rows instead of all.

    Feature 0: key n has n items, the others 10,000 and up; every item has a value. 1: tags, those below 12 rare and
    on the same items as feature 0's key 300. 2: a number. 3: a number of ties, most of it unknown.
    """
    generator, items = np.random.default_rng(11), 60_000
    shuffled = generator.permutation(items)
    keys = generator.integers(10_000, 10_003, items)
    start = 0
    for size in RARE:
        keys[shuffled[start : start + size]] = size
        start += size
    tags = [frozenset([1000 + i % 5, *([] if i % 3 else [2000])]) for i in range(items)]
    for item in np.flatnonzero(keys == 300):
        tags[item] = frozenset(generator.integers(0, 12, 3).tolist()) | {1000 + int(item) % 2}
    ties = np.where(generator.random(items) < 0.01, generator.integers(0, 9, items) / 2, np.nan)
    columns: list[Column] = [[frozenset([key]) for key in keys.tolist()], tags, generator.normal(size=items), ties]
    return Catalogue(columns, items, 11, clusters=40, buckets=32, frequent=600)


RARE = [1, 2, 31, 100, 255, 256, 257, 300, 500]


def rare_programs() -> dict[str, list[int]]:
    def key(*keys: int) -> list[int]:
        return [head(ANY, 0, len(keys)), *keys]

    def tags(*keys: int) -> list[int]:
        return [head(ALL, 1, len(keys)), *keys]

    def between(low: float, high: float, feature: int = 2) -> list[int]:
        return [head(RANGE, feature, 2), bits(low), bits(high)]

    both, either, without, nobody = head(AND), head(OR), [head(NOT), head(AND)], [head(UNKNOWN)]
    programs = {f"key {size}": key(size) for size in RARE}
    programs |= {f"key {size} in a range": [*key(size), *between(-1, 0.5), both] for size in RARE}
    return programs | {
        "a key no item has": key(7),
        "a rare key that has a value": [*key(100), *nobody, *without],
        "the first key that has a value": [*key(1), *nobody, *without],
        "the first tag that has a value": [*tags(0), head(UNKNOWN, 1), *without],
        "a rare key without a value": [*key(100), *nobody, both],
        "the first key or none": [*key(1), *nobody, either],
        "two rare keys": key(100, 31),
        "the same rare key twice": key(100, 100),
        "all rare keys": key(*RARE),
        "a rare key or another": [*key(255), *key(2), either],
        "a rare key and itself": [*key(256), *key(256), both],
        "a rare key without itself": [*key(256), *key(256), *without],
        "a rare key without another": [*key(256), *key(257), *without],
        "a rare key or itself, with a frequent one": [*key(257), *key(257), either, *tags(1000), both],
        "a rare key with a frequent tag": [*key(300), *tags(1000), both],
        "a rare key without a frequent tag": [*key(300), *tags(1000), *without],
        "a rare key with rare tags": [*key(300), head(ANY, 1, 5), *range(5), both],
        "all of two rare tags": tags(5, 6),
        "all of two rare tags, a rare key or no item": [*tags(5, 6), *key(2), either, head(ITEMS), either],
        "all of a rare tag and a frequent one": tags(5, 1000),
        "all of a rare tag and one no item has": tags(5, 7777),
        "all of a rare tag twice": tags(5, 5),
        "rare tags of a rare key": [*tags(5), *key(300), both],
        "rare tags without a rare key": [*tags(5), *key(300), *without],
        "a rare key with all of no tags": [*key(31), *tags(), both],
        "a narrow range": between(2.5, 2.51),
        "a narrow range with a frequent tag": [*between(2.5, 2.6), *tags(1001), both],
        "a narrow range or a rare key": [*between(2.5, 2.6), *key(31), either],
        "a narrow range without a wide one": [*between(2.5, 2.6), *between(-9, 2.53), *without],
        "an empty range or a rare key": [*between(1, 0), *key(100), either],
        "an empty range and a rare key": [*between(1, 0), *key(100), both],
        "ties": between(1, 1.5, 3),
        "ties with a tag": [*between(0.5, 0.5, 3), *tags(2000), both],
        "a rare key that is unknown elsewhere": [*key(500), head(UNKNOWN, 3), both],
        "a rare key that is known elsewhere": [*key(500), head(UNKNOWN, 3), *without],
        "no rare key": [*key(300), head(NOT)],
        "neither of two": [*key(300), head(NOT), *key(256), head(NOT), both],
        "deep": [*key(100)] + [*key(2), *key(31), head(OR), head(NOT), head(OR), *between(-2, 2), head(AND)] * 3,
    }


def test_rare_keys_and_narrow_ranges() -> None:
    programs = rare_programs()
    passing = catalogue_of_rare_keys().check(program_rows(list(programs.values())), list(programs))
    counts = dict(zip(programs, (int(items.sum()) for items in passing), strict=True))
    assert [counts[f"key {size}"] for size in RARE] == RARE
    assert [counts[f"{what} that has a value"] for what in ("a rare key", "the first key")] == [100, 1]
    assert min(counts["all of two rare tags"], counts["a narrow range"], counts["ties"]) > 0


@pytest.mark.parametrize("frequent", [0, 100])
def test_items_by_their_ids(frequent: int) -> None:
    """In any order, twice, unknown, alone (a list of rows), with a rare key and with a frequent one (masks)."""
    catalogue = Catalogue([[frozenset([i % 2, 10 + i]) for i in range(100)]], 100, frequent=frequent)
    ids = catalogue.ids.tolist()
    named = [ids[70], ids[3], 5, -1, ids[70], ids[99], -(2**63), 2**63 - 2, ids[0], ids[4]]
    these = [head(ITEMS, 0, len(named)), *named]
    even, rare = [head(ANY, 0, 1), 0], [head(ANY, 0, 2), 13, 14]
    codes = [
        these,
        [head(ITEMS)],
        [head(ITEMS, 0, 2), 5, -1],
        [*these, head(NOT)],
        [*these, *even, head(AND)],
        [*these, *rare, head(AND)],
        [*these, *rare, head(OR)],
        [*these, *even, head(NOT), head(OR)],
        [*these, head(ITEMS, 0, 1), ids[3], head(NOT), head(AND)],
        [head(ITEMS, 0, 100), *ids[::-1]],
    ]
    passing = catalogue.check(program_rows(codes))
    assert [np.flatnonzero(items).tolist() for items in passing[:3]] == [[0, 3, 4, 70, 99], [], []]
    assert [int(items.sum()) for items in passing[3:]] == [95, 3, 2, 5, 53, 4, 100]


def test_items_where_there_is_no_feature() -> None:
    catalogue = Catalogue([], 40)
    passing = catalogue.check(program_rows([[head(ITEMS, 0, 1), int(catalogue.ids[7])], [head(ITEMS), head(NOT)]]))
    assert [int(items.sum()) for items in passing] == [1, 40]


def test_ranges_cut_at_every_position() -> None:
    """Bounds at, between and beyond all values, so that both ends fall on every place around every boundary."""
    values = np.repeat(np.arange(20.0), 2)
    catalogue = Catalogue([values], len(values), buckets=5)
    points = [-np.inf, -1.0, *np.arange(-0.5, 21, 0.5), np.inf]
    codes = [[head(RANGE, 0, 2), bits(low), bits(high)] for low in points for high in points]
    catalogue.check(program_rows(codes))


@pytest.mark.parametrize("unknown", [0, 3, 200])
@pytest.mark.parametrize("buckets", [1, 5, 32])
def test_ranges_of_one_number_joined_by_and(unknown: int, buckets: int) -> None:
    """They run as one range; not where an OR or a NOT stands between, and not those of another number. `unknown`:
    items without a value, which a posting list or a bitmap names; ends are open, and past each other."""
    generator = np.random.default_rng(9)
    items = 400
    numbers = [generator.normal(size=items), np.round(generator.normal(size=items), 1)]
    for values in numbers:
        values[generator.permutation(items)[:unknown]] = np.nan
    catalogue = Catalogue([*numbers, [frozenset([i % 3]) for i in range(items)]], items, buckets=buckets, frequent=10)

    def some(number: int) -> list[int]:
        low, high = generator.choice([-np.inf, -1.5, -0.4, 0.0, 0.3]), generator.choice([-0.5, 0.2, 1.0, np.inf])
        return [head(RANGE, number, 2), bits(low), bits(high)]

    both, key = [head(AND)], [head(ANY, 2, 1), 1]
    codes: list[list[int]] = []
    for _ in range(12):
        first, second, third, other = some(0), some(0), some(0), some(1)
        codes += [
            [*first, *second, *both],
            [*first, *second, *both, head(NOT)],
            [*key, *first, *both, *second, *both, *third, *both],
            [*first, *key, *both, *other, *both, *second, *both],
            [*key, *first, *second, *both, *both],
            [*key, *first, *both, *key, *second, *both, *both, *third, *both],
            [*first, head(NOT), *second, *both],
            [*first, *key, head(OR), *second, *both, *third, *both],
            [*first, *other, *both, *second, head(OR), *third, *both],
        ]
    catalogue.check(program_rows(codes), f"unknown {unknown}, buckets {buckets}")


def test_more_ranges_than_are_prepared() -> None:
    generator = np.random.default_rng(3)
    items = 40_000
    columns: list[Column] = [generator.normal(size=items), [frozenset([i % 7]) for i in range(items)]]
    catalogue = Catalogue(columns, items, clusters=8, buckets=16, frequent=2_000)
    code: list[int] = []
    for i in range(40):
        code += [head(RANGE, 0, 2), bits(i / 10 - 2), bits(i / 10 - 1.95)] + ([head(OR)] if i else [])
    code += [head(ANY, 1, 2), 3, 5, head(AND)]
    (passing,) = catalogue.check(program_rows([code]))
    assert 0 < passing.sum() < items


def test_an_item_with_500_values_and_items_with_none() -> None:
    columns: list[Column] = [[frozenset(range(500)), frozenset(), *[frozenset([k]) for k in range(498)]]]
    catalogue = Catalogue(columns, 500)
    codes = [
        [head(ANY, 0, 1), 499],
        [head(ALL, 0, 500), *range(500)],
        [head(ALL, 0, 2), 3, 499],
        [head(UNKNOWN)],
        [head(ANY, 0, 1), 3, head(NOT)],
    ]
    passing = catalogue.check(program_rows(codes))
    assert [int(p.sum()) for p in passing] == [1, 1, 1, 1, 498]


def test_no_program_everything_and_nothing() -> None:
    catalogue = Catalogue([[frozenset([1])] * 70, np.full(70, np.nan)], 70)
    codes = [[], [head(ALL)], [head(ANY)], [head(ANY, 0, 1), 1], [head(ANY, 0, 1), 2], [head(RANGE, 1, 2), 0, 0]]
    passing = catalogue.check(program_rows(codes))
    assert [int(p.sum()) for p in passing] == [70, 70, 0, 70, 0, 0]
    words, counts, status = catalogue.run(torch.tensor([[12345, 0]]))  # the fingerprint does not matter then
    assert (counts.sum(), status.tolist()) == (70, [0])
    assert torch.equal(words[0], catalogue.valid)


def test_sixteen_sets_on_the_stack() -> None:
    columns: list[Column] = [[frozenset([i]) for i in range(64)]]
    catalogue = Catalogue(columns, 64, frequent=0)
    leaves = [word for key in range(16) for word in (head(ANY, 0, 1), key)]
    (passing,) = catalogue.check(program_rows([leaves + [head(OR)] * 15]))
    assert passing.sum() == 16


def test_no_filter_features_and_empty_batches() -> None:
    catalogue = Catalogue([], 10)
    catalogue.check(program_rows([[], [head(UNKNOWN)]]))
    words, passing, status = catalogue.run(torch.zeros(0, 2, dtype=torch.int64))
    assert (words.shape, passing.shape, status.shape) == ((0, catalogue.layout.blocks), (0,), (0,))


def leaf(key: int = 1) -> list[int]:
    return [head(ANY, 0, 1), key]


# Feature 0 has keys, feature 1 is a number, there is no feature 2.
MALFORMED = {
    "opcode 0": [head(0)],
    "opcode 9": [head(9)],
    "opcode 255": [head(255)],
    "no such feature": [head(ANY, 2, 1), 1],
    "largest feature": [head(ANY, 0xFFFFFF, 1), 1],
    "no such feature in UNKNOWN": [head(UNKNOWN, 2)],
    "ANY on a number": [head(ANY, 1, 1), 1],
    "ALL on a number": [head(ALL, 1, 1), 1],
    "RANGE on keys": [head(RANGE, 0, 2), 0, 0],
    "RANGE of one operand": [head(RANGE, 1, 1), 0],
    "RANGE of three operands": [head(RANGE, 1, 3), 0, 0, 0],
    "RANGE from NaN": [head(RANGE, 1, 2), bits(float("nan")), 0],
    "RANGE to NaN": [head(RANGE, 1, 2), 0, bits(float("nan"))],
    "ITEMS with a feature": [head(ITEMS, 1, 1), 0],
    "UNKNOWN with an operand": [head(UNKNOWN, 0, 1), 1],
    "AND with a feature": [*leaf(), *leaf(), head(AND, 1)],
    "AND with a count": [*leaf(), *leaf(), head(AND, 0, 1), 1],
    "OR with a feature": [*leaf(), *leaf(), head(OR, 1)],
    "NOT with a count": [*leaf(), head(NOT, 0, 1), 1],
    "operands past the end": [head(ANY, 0, 2), 1],
    "the largest count": [head(ANY, 0, 2**31 - 1), 1],
    "a count of 32 bits": [head(ANY, 0, 2**32 - 1), 1],
    "a head below zero": [head(ANY, 0, 2**31)],
    "AND on an empty stack": [head(AND)],
    "AND on one set": [*leaf(), head(AND)],
    "NOT on an empty stack": [head(NOT)],
    "two sets left": [*leaf(), *leaf()],
    "seventeen sets": leaf() * 17 + [head(OR)] * 16,
}


@pytest.mark.parametrize("rule", MALFORMED)
def test_malformed_program(rule: str) -> None:
    catalogue = Catalogue([[frozenset([1])] * 40, np.zeros(40)], 40)
    program = program_rows([MALFORMED[rule], leaf()])
    passing = catalogue.check(program)
    _, _, status = catalogue.run(program)
    assert status.tolist() == [4, 0]
    assert [int(p.sum()) for p in passing] == [0, 40]


@pytest.mark.parametrize("length", [-1, -(2**63), 3, 2**62, 2**63 - 1])
def test_malformed_length_word(length: int) -> None:
    catalogue = Catalogue([[frozenset([1])] * 40], 40)
    program = torch.tensor([[FINGERPRINT, length, *leaf()]])
    assert catalogue.run(program)[2].tolist() == [4]
    catalogue.check(program)


def test_longest_program() -> None:
    catalogue = Catalogue([[frozenset([1])] * 40], 40)
    within = [head(ANY, 0, 65_533), *[1] * 65_533]  # 65,536 words in all
    beyond = [head(ANY, 0, 65_534), *[1] * 65_534]
    assert catalogue.run(program_rows([within, beyond]))[2].tolist() == [0, 4]


def test_fingerprint_is_looked_at_before_the_code() -> None:
    catalogue = Catalogue([[frozenset([1])] * 40], 40)
    for code in (leaf(), [head(255)]):
        program = program_rows([code], fingerprint=FINGERPRINT + 1)
        assert catalogue.run(program)[2].tolist() == [5]
        catalogue.check(program)


@pytest.mark.parametrize("seed", range(20))
def test_random_words_do_no_harm(seed: int) -> None:
    random = Random(seed)
    columns = random_columns(random, 50)
    catalogue = Catalogue(columns, 50, seed)
    rows = []
    for _ in range(100):
        code = random_program(random, columns, 6, catalogue.ids.tolist())
        for _ in range(random.randint(1, 3)):
            code[random.randrange(len(code))] = random.choice(
                [
                    random.randint(-(2**63), 2**63 - 1),
                    head(random.randrange(10), random.randrange(4), random.randrange(4)),
                ]
            )
        rows.append(code)
    catalogue.check(program_rows(rows), f"seed {seed}")
