"""filter_rows against the reference interpreter: random nested programs, every kind of leaf, the edges of ranges."""

from __future__ import annotations

from itertools import pairwise
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
    random_program,
    unpack,
)
from tests.kernels.reference import ALL, AND, ANY, NOT, OR, RANGE, UNKNOWN, Column, bits, head

pytestmark = pytest.mark.usefixtures("instruction_set")
NO_EXCLUSION = -1


class Catalogue:
    """Columns in an index of their own, with what a test needs to run and check programs."""

    def __init__(
        self, columns: list[Column], items: int, seed: int = 0, clusters: int = 3, buckets: int = 4, frequent: int = 4
    ) -> None:
        generator = np.random.default_rng(seed)
        self.columns, self.items = columns, items
        self.layout: Layout = lay_out(generator.integers(clusters, size=items), clusters)
        self.index = filter_index(columns, self.layout, buckets, frequent)
        members = np.zeros(self.layout.rows, dtype=np.bool_)
        members[self.layout.row_of_item] = True
        self.valid = torch.from_numpy(pack(members))
        self.cluster_blocks = torch.from_numpy(self.layout.cluster_blocks)

    def run(self, program: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if exclude is None:
            exclude = torch.full((len(program), 1), NO_EXCLUSION, dtype=torch.int32)
        return ops.filter_rows(program, exclude, *self.index.values(), self.valid, self.cluster_blocks, FINGERPRINT)

    def check(self, program: Tensor, note: str = "", exclude: Tensor | None = None) -> list[np.ndarray]:
        """Compare all three outputs with the reference; returns the passing items of each program."""
        words, passing, status = self.run(program, exclude)
        result = []
        for b, row in enumerate(program.tolist()):
            where = f"{note} program {b}: {row}"
            expected_status, items = reference.run_program(row, FINGERPRINT, self.columns, self.items)
            expected = np.zeros(self.layout.rows, dtype=np.bool_)
            expected[self.layout.row_of_item] = items
            for excluded in [] if exclude is None else exclude[b].tolist():
                if 0 <= excluded < self.layout.rows:
                    expected[excluded] = False
            assert status[b] == expected_status, where
            np.testing.assert_array_equal(unpack(words[b].numpy()), expected, where)
            starts = self.layout.cluster_blocks * 32
            counts = [expected[s:e].sum() for s, e in pairwise(starts)]
            assert passing[b].tolist() == counts, where
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
    codes = [random_program(random, columns, random.choice([1, 2, 3, 5, 9, 20])) for _ in range(20)]
    catalogue.check(program_rows(codes), f"seed {seed}")


def test_programs_over_many_chunks() -> None:
    seed = 7
    random = Random(seed)
    items = 60_000  # nearly four chunks of 512 words
    columns: list[Column] = [
        [frozenset([random.randrange(3)]) if random.random() < 0.9 else frozenset() for _ in range(items)],
        [frozenset([random.randrange(5_000)]) for _ in range(items)],
        np.random.default_rng(seed).normal(size=items),
    ]
    catalogue = Catalogue(columns, items, seed, clusters=50, buckets=32, frequent=1_900)
    codes = [random_program(random, columns, leaves) for leaves in (1, 1, 2, 3, 3, 4, 6, 8, 12)]
    codes += [[head(ANY, 1, 500), *range(500)], [head(RANGE, 2, 2), bits(-0.5), bits(1.2)]]
    catalogue.check(program_rows(codes), f"seed {seed}")


def test_ranges_cut_at_every_position() -> None:
    """Bounds at, between and beyond all values, so that both ends fall on every place around every boundary."""
    values = np.repeat(np.arange(20.0), 2)
    catalogue = Catalogue([values], len(values), buckets=5)
    points = [-np.inf, -1.0, *np.arange(-0.5, 21, 0.5), np.inf]
    codes = [[head(RANGE, 0, 2), bits(low), bits(high)] for low in points for high in points]
    catalogue.check(program_rows(codes))


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


def test_excluded_rows_never_pass() -> None:
    catalogue = Catalogue([[frozenset([i % 2]) for i in range(100)]], 100)
    rows = catalogue.layout.rows
    exclude = torch.tensor([[-1, 0, 1, 5, rows - 1, rows, 2**31 - 1, -(2**31)]] * 2, dtype=torch.int32)
    catalogue.check(program_rows([[], [head(ANY, 0, 1), 1]]), exclude=exclude)


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
    assert (words.shape, passing.shape, status.shape) == ((0, catalogue.layout.blocks), (0, 3), (0,))


def leaf(key: int = 1) -> list[int]:
    return [head(ANY, 0, 1), key]


# Feature 0 has keys, feature 1 is a number, there is no feature 2.
MALFORMED = {
    "opcode 0": [head(0)],
    "opcode 8": [head(8)],
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
        code = random_program(random, columns, 6)
        for _ in range(random.randint(1, 3)):
            code[random.randrange(len(code))] = random.choice(
                [
                    random.randint(-(2**63), 2**63 - 1),
                    head(random.randrange(9), random.randrange(4), random.randrange(4)),
                ]
            )
        rows.append(code)
    catalogue.check(program_rows(rows), f"seed {seed}")
