"""An index that contradicts itself: refused where the contract says so, and harmless where it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from builder import ops
from tests.kernels.arguments import LIMITS, OPERATORS, Arguments, arguments, catalogue, message_of, run
from tests.kernels.catalogue import Items, marks, program_rows, unpack, words_of
from tests.kernels.reference import ALL, ANY, ITEMS, OR, RANGE, UNKNOWN, Limits, Request, bits, head


def damaged(operator: str, name: str, position: int | tuple[int, ...] | slice, value: int) -> Arguments:
    given = arguments(operator)
    given[name] = given[name].clone()
    given[name][position] = value
    return given


@pytest.mark.parametrize("operator", ["filter_rows", "search"])
@pytest.mark.parametrize(
    ("name", "position", "value", "message"),
    [
        ("cluster_blocks", 0, 1, "got offsets from 1"),
        ("cluster_blocks", 2, 10_000, "got offsets from 0"),
        ("cluster_blocks", 3, 0, "got offsets from 0"),
        ("cluster_blocks", 3, -1, "got offsets from 0"),
        ("cluster_blocks", -1, 10_000, "got offsets from 0 to 10000"),
        ("feature_terms", 1, 0, "got offsets .* rise strictly"),
        ("feature_terms", -1, 1_000, "got offsets from 0 to 1000"),
        ("feature_number", 0, 9, "got 9"),
        ("feature_number", 0, -2, "got -2"),
        ("number_known", 0, 100_000, "got 100000"),
        ("number_known", 0, -1, "got -1"),
    ],
)
def test_a_damaged_index_is_refused(operator: str, name: str, position: int, value: int, message: str) -> None:
    got = message_of(operator, damaged(operator, name, position, value))
    assert re.search(f"{operator}: {name}: {message}.*build the artifact again", got), got


@pytest.mark.parametrize("operator", ["filter_rows", "search"])
@pytest.mark.parametrize("name", ["term_bitmap", "term_postings", "number_rows"])
@pytest.mark.parametrize("value", [1_000_000, -1])
def test_damage_is_found_where_a_program_touches_it(operator: str, name: str, value: int) -> None:
    items = Items(np.ones((100, 4)), [[frozenset([1]), frozenset()] * 50, np.arange(100.0)], frequent=100)
    code = [head(UNKNOWN), head(RANGE, 1, 2), bits(3.5), bits(60.5), head(OR)]
    for copies in (1, 20):  # with ranges prepared, and made on the stack
        program = words_of(code + [*code, head(OR)] * (copies - 1))
        query = np.ones(4, np.float32)
        given = items.arguments([Request(query), Request(query, program)], Limits(1, 5, 5))
        if operator == "filter_rows":
            given = {"program": given["filter"], **items.filtering}
        before = run(operator, given)
        given[name] = torch.full_like(given[name], value)
        if (name, value) == ("term_bitmap", -1):  # what they already are
            assert all(map(torch.equal, before, run(operator, given)))
            continue
        message = f"silvertriton::{operator}: {name}: got {value}.*build the artifact again"
        with pytest.raises(RuntimeError, match=message):
            run(operator, given)


def test_postings_out_of_range_or_order_do_no_harm() -> None:
    given = arguments("filter_rows")
    for rows in (torch.full_like(given["postings"], 2**31 - 1), given["postings"].flip(0), -given["postings"]):
        words, _, status = ops.filter_rows(**{**given, "postings": rows.contiguous()})
        assert (words[0] == given["valid"]).all()
        assert status.tolist() == [0, 0, 0]


@pytest.mark.parametrize("rows", [[5, 4, 3], [1, 1, 1], [-1, 2, 3], [2, 3, 2**31 - 1], [2, 3, 99], [2, 70, 3]])
def test_damaged_postings_of_one_rare_term(rows: list[int]) -> None:
    """Such a filter is its posting list. Of 32-row blocks 0, 1 and 2, rows from 70 on hold no item."""
    items = Items(np.ones((70, 2)), marks(np.isin(np.arange(70), [2, 3, 4])), clusters=1)
    program = program_rows([[head(ANY, 0, 1), 1]])
    words, passing, _ = ops.filter_rows(program, **items.filtering)
    assert (np.flatnonzero(unpack(words[0].numpy())).tolist(), passing.tolist()) == ([2, 3, 4], [3])
    postings = torch.tensor(rows, dtype=torch.int32)
    position = items.filters["postings"].tolist().index(2)
    damaged = torch.cat([items.filters["postings"][:position], postings, items.filters["postings"][position + 3 :]])
    words, passing, _ = ops.filter_rows(program, **{**items.filtering, "postings": damaged})
    kept = np.flatnonzero(unpack(words[0].numpy())).tolist()
    assert set(kept) <= {row for row in rows if 0 <= row < 70}
    assert passing.tolist() == [len(kept)]


@pytest.mark.parametrize("row", [-1, -(2**31), 2**31 - 1, 384])
def test_item_rows_that_are_no_row_are_dropped(row: int) -> None:
    """No id is found there, so nothing is excluded; all else is as it was."""
    items = catalogue(300)
    requests = [
        Request(query, program, items.ids.tolist(), (6, 25))
        for query, program in zip(
            items.queries(np.random.default_rng(0), 2), [(0, 0), words_of([head(ALL)])], strict=True
        )
    ]
    given = items.arguments(requests, LIMITS)
    assert len(given["ids"]) == 384
    assert run("search", given)[0].tolist() == [[-1] * 25] * 2
    found = run("search", {**given, "item_rows": torch.full_like(given["item_rows"], row)})
    included = [Request(request.query, request.program, (), request.limits) for request in requests]
    for one, other in zip(found, run("search", items.arguments(included, LIMITS)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("seed", range(6))
def test_item_rows_of_any_kind_do_no_harm(seed: int) -> None:
    generator = np.random.default_rng(seed)
    items = catalogue(300)
    named = [*generator.choice(items.ids, 20).tolist(), -1, 5]
    others = [head(ALL, len(items.columns) - 1), head(OR)]  # over masks, the items alone as a list
    programs = program_rows([[head(ITEMS, 0, len(named)), *named, *more] for more in ([], others)])
    for low, high, count in ((-5, 400, 300), (0, 384, 1), (0, 384, 4000), (-(2**31), 2**31 - 1, 300)):
        item_rows = torch.from_numpy(generator.integers(low, high, count).astype(np.int32))
        words, passing, status = ops.filter_rows(programs, **{**items.filtering, "item_rows": item_rows})
        assert status.tolist() == [0, 0], f"seed {seed}"
        assert not (words & ~items.filters["valid"]).any(), f"seed {seed}"
        assert passing.tolist() == [np.unpackbits(row.numpy().view(np.uint8)).sum() for row in words], f"seed {seed}"
        assert set(items.index["ids"][torch.from_numpy(unpack(words[0].numpy()))].tolist()) <= {*named}, f"seed {seed}"
    given = arguments("search", batch=8)
    for low, high, count in ((-5, 400, 300), (0, 100, 300), (0, 100, 1), (0, 100, 4000)):
        given["item_rows"] = torch.from_numpy(generator.integers(low, high, count).astype(np.int32))
        given["exclude"] = given["ids"][torch.from_numpy(generator.integers(0, len(given["ids"]), (8, 50)))]
        rows, ids, scores, _, status = run("search", given)
        assert status.tolist() == [0] * 8, f"seed {seed}"
        assert (((rows >= 0) == (ids >= 0)) & ((rows >= 0) == (scores > -torch.inf))).all(), f"seed {seed}"
        assert torch.equal(ids, given["ids"][rows.long()].where(rows >= 0, -1)), f"seed {seed}"


@pytest.mark.parametrize("first", [0, 2000, 3997])
def test_rows_of_numbers_that_are_no_rows_are_found_within_a_range(first: int) -> None:
    """Between the ends of the range, where no search for them comes by."""
    items = Items(np.ones((4000, 2)), [np.arange(4000.0)])
    program = program_rows([[head(RANGE, 0, 2), bits(float(first)), bits(first + 2.0)]])
    words, _, _ = ops.filter_rows(program, **items.filtering)
    assert np.unpackbits(words.numpy().view(np.uint8)).sum() == 3
    for row in (items.layout.rows, -1, 2**31 - 1, -(2**31)):
        number_rows = items.filters["number_rows"].clone()
        number_rows[0, first + 1] = row
        with pytest.raises(RuntimeError, match=f"number_rows: got {row}, .*build the artifact again"):
            ops.filter_rows(program, **{**items.filtering, "number_rows": number_rows})


@pytest.mark.parametrize(("operator", "name"), [("select_diverse", "groups"), ("filter_rows", "number_rows")])
def test_the_first_contradiction_is_told_whatever_the_threads(operator: str, name: str) -> None:
    given = arguments(operator, 40_000, 8)
    damage = torch.arange(10**6, 10**6 + given[name].numel(), dtype=torch.int32)
    given[name] = damage.reshape(given[name].shape)
    threads = torch.get_num_threads()
    messages = set()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            messages.add(message_of(operator, given))
    finally:
        torch.set_num_threads(threads)
    assert len(messages) == 1


@pytest.mark.parametrize("seed", range(4))
def test_damage_of_any_kind_does_no_harm(seed: int) -> None:
    """Of any argument, that of requests included: an answer, or a message of ours. Sanitizers see the rest."""
    generator = np.random.default_rng(seed)
    messages = []
    for operator in [*OPERATORS] * 50:
        given = arguments(operator, batch=8)
        tensors = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
        for name in generator.choice(tensors, 2):
            given[name] = given[name].clone()
            values = given[name].view(-1).view(torch.uint8).numpy()
            some = generator.integers(len(values), size=int(generator.integers(1, len(values) // 2)))
            values[some] = generator.choice([0, 1, 127, 128, 255], len(some))
        try:
            results = run(operator, given)
        except RuntimeError as error:
            messages.append(str(error))
            continue
        if operator == "search":
            rows, _, scores, _, status = results
            assert not torch.isnan(scores).any(), f"seed {seed}"
            assert ((rows >= -1) & (rows < len(given["ids"]))).all(), f"seed {seed}"
            assert (rows[status != 0] == -1).all(), f"seed {seed}"
    others = [message for message in messages if not re.match(r"silvertriton::\w+: \w+: got ", message)]
    assert others == [], f"seed {seed}"


ENDLESS = """
import numpy as np, torch
from builder import ops
from tests.kernels.catalogue import Items
from tests.kernels.reference import Limits, Request
ops.load()
items = Items(np.ones((100, 4)), cluster_of=np.arange(100) % 4)
request = Request(np.ones(4, np.float32))
for reach, spread in ((0.0, 1.0), (float("inf"), 0.0), (float("nan"), 1.0), (float("-inf"), 1.0)):
    given = items.arguments([request], Limits(0, 10, 10))
    given["reach"] = torch.tensor([reach])
    given["centroid_spreads"] = torch.full((1, 32), spread)
    print(*ops.search(**given)[3][0].tolist())
"""


def test_the_choice_of_clusters_ends() -> None:
    """Whatever reach and spreads are. In a process of its own, since a loop could not be left."""
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", ENDLESS], cwd=root, capture_output=True, text=True, check=True, timeout=30
    )
    everything, nothing = "4 100 100 1", "0 100 0 0"  # bounds that are NaN are no bounds
    assert result.stdout.splitlines() == [everything, nothing, nothing, everything]
