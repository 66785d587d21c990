"""Filter programs in plain operations against the slow reading of docs/filter-program.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from builder.network.filter_machine import FilterMachine, in_order
from builder.network.plain import PlainSearch
from client.schema import Status
from tests.builder.export.onnx_networks import IDS, REFERENCE_COLUMNS, make
from tests.kernels.reference import (
    ALL,
    AND,
    ANY,
    ITEMS,
    MALFORMED,
    NOT,
    OK,
    OR,
    RANGE,
    UNKNOWN,
    bits,
    head,
    run_program,
)

NUMBERS = [-np.inf, -4.0, -0.0, 0.0, 2.5, 6.0, np.inf, 5e-324]
WORDS = 40


def looped(goes_on: Callable[..., Any], body: Callable[..., Any], state: tuple[Any, ...]) -> tuple[Any, ...]:
    """`torch.while_loop`, which would compile its body first."""
    while goes_on(*state):
        state = body(*state)
    return state


def machine(columns: bool = True) -> tuple[FilterMachine, int]:
    made = make() if columns else make(columns=())
    search = made.network.search
    return FilterMachine(search.filters, search.item_rows, search.ids[search.item_rows.long()]), made.schema.fingerprint


def condition(rng: np.random.Generator) -> list[int]:
    feature = int(rng.integers(3))
    kind = rng.choice([ANY, ALL, UNKNOWN, ITEMS] if feature < 2 else [RANGE, UNKNOWN, ITEMS])
    if kind == RANGE:
        return [head(RANGE, feature, 2), *(bits(float(rng.choice(NUMBERS))) for _ in range(2))]
    if kind == UNKNOWN:
        return [head(UNKNOWN, feature)]
    if kind == ITEMS:
        ids = rng.choice(np.concatenate([IDS, [-1, 5000]]), rng.integers(4)).tolist()
        return [head(ITEMS, 0, len(ids)), *ids]
    keys = rng.integers(-1, 10, rng.integers(4)).tolist()
    return [head(int(kind), feature, len(keys)), *keys]


def code(rng: np.random.Generator) -> list[int]:
    """A program that is right, mostly; one in three has a word that is another one."""
    words, depth = [], 0
    for _ in range(rng.integers(1, 6)):
        words += condition(rng)
        depth += 1
        if rng.random() < 0.3:
            words.append(NOT)
        while depth > 1 and rng.random() < 0.6:
            words.append(int(rng.choice([AND, OR])))
            depth -= 1
    words += [AND] * (depth - 1)
    if rng.random() < 0.33:
        others = [
            head(int(rng.integers(12)), int(rng.integers(5)), int(rng.integers(4))),
            -1,
            bits(float("nan")),
            2**40,
        ]
        words[rng.integers(len(words))] = int(rng.choice(others))
    return words[: WORDS - 2]


@pytest.mark.parametrize("columns", [True, False])
def test_programs_mean_what_they_mean(columns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "while_loop", looped)
    of, fingerprint = machine(columns)
    seed = 7
    rng = np.random.default_rng(seed)
    programs = np.zeros((1500, WORDS), np.int64)
    for row in programs:
        words = code(rng)
        row[0], row[1], row[2 : 2 + len(words)] = fingerprint, len(words), words
    programs[::50, 0] += 1
    programs[::60, 1] = rng.choice([-1, 0, WORDS - 1, 2**40], len(programs[::60]))
    passes, statuses = of(torch.from_numpy(programs))
    seen = set()
    for row, program in enumerate(programs):
        status, expected = run_program(program.tolist(), fingerprint, REFERENCE_COLUMNS if columns else [], IDS)
        assert int(statuses[row]) == status, f"seed {seed}, row {row}: {program.tolist()}"
        if status == OK:
            np.testing.assert_array_equal(passes[row], expected, f"seed {seed}, row {row}: {program.tolist()}")
        seen.add((status, bool(expected.any()), bool(expected.all())))
    assert {(OK, False, False), (OK, True, False), (OK, True, True), (MALFORMED, False, False)} <= seen


def test_a_stack_of_sixteen_sets_is_the_deepest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "while_loop", looped)
    of, fingerprint = machine()
    programs = np.zeros((2, 64), np.int64)
    for row, deep in enumerate((16, 17)):
        words = [head(UNKNOWN, 2)] * deep + [AND] * (deep - 1)
        programs[row, : 2 + len(words)] = [fingerprint, len(words), *words]
    passes, statuses = of(torch.from_numpy(programs))
    assert statuses.tolist() == [OK, MALFORMED]
    np.testing.assert_array_equal(passes[0], np.isnan(np.asarray(REFERENCE_COLUMNS[2])))


def test_a_program_beyond_the_artifacts_limit_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def counted(goes_on: Callable[..., Any], body: Callable[..., Any], state: tuple[Any, ...]) -> tuple[Any, ...]:
        while goes_on(*state):
            state = body(*state)
            steps.append(1)
        return state

    monkeypatch.setattr(torch, "while_loop", counted)
    made = make()
    search = made.network.search
    search.max_filter_words = 16
    words = [head(UNKNOWN, 2), *[NOT] * 40]
    program = torch.tensor([[made.schema.fingerprint, len(words), *words]] * 2)
    program[1, 1:4] = torch.tensor([1, head(UNKNOWN, 2), 0])
    given = (
        torch.ones(2, made.schema.query_dims),
        program,
        torch.full((2, 1), -1),
        torch.zeros(2, 2, dtype=torch.int32),
    )
    *_, status = PlainSearch(search)(*given, torch.zeros(2, dtype=torch.int32))
    assert status.tolist() == [Status.FILTER_TOO_LONG, OK]
    assert len(steps) == 1  # the word of the short one


def test_integers_in_the_order_of_numbers() -> None:
    numbers = np.array([-np.inf, -1e300, -1.5, -5e-324, -0.0, 0.0, 5e-324, 1.5, 1e300, np.inf])
    ordered = in_order(torch.from_numpy(numbers.view(np.int64)))
    assert (ordered.diff() >= 0).all()
    assert (ordered.diff() == 0).sum() == 1  # -0.0 and 0.0
