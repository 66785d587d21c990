"""Run by test_emulated.py: an index that contradicts itself does no harm, and a request that touches it is told."""

from __future__ import annotations

import numpy as np
import torch

from builder import ops
from tests.kernels.arguments import arguments, catalogue, run
from tests.kernels.catalogue import FINGERPRINT, Items, words_of
from tests.kernels.reference import OR, RANGE, UNKNOWN, Limits, Request, bits, head

INDEX = 11  # the status of such a request


def small_tables() -> None:
    """Whatever stands in them: no access outside (AddressSanitizer looks on) and no end of a loop that never comes."""
    generator = np.random.default_rng(0)
    for operator in ("filter_rows", "search"):
        for name in ("cluster_blocks", "feature_terms", "feature_number", "number_known"):
            for value in (-(2**31), -1, 0, 1, 5, 10_000, 2**31 - 1):
                given = arguments(operator)
                for position in {0, int(generator.integers(len(given[name]))), len(given[name]) - 1}:
                    damaged = given[name].clone()
                    damaged[position] = value
                    *_, status = run(operator, {**given, name: damaged})
                    if (operator, name) == ("search", "cluster_blocks"):
                        ends = bool(damaged[0] == 0 and damaged[-1] == given[name][-1])
                        sound = ends and bool((damaged.diff() >= 0).all())
                        assert sound or (status == INDEX).all(), (position, value)
        for name in ("cluster_blocks", "term_bitmap", "term_postings", "number_rows", "postings", "item_rows"):
            given = arguments(operator)
            for _ in range(5 if name in given else 0):
                noise = torch.from_numpy(generator.integers(-5, 500, given[name].shape)).to(given[name].dtype)
                run(operator, {**given, name: noise})


def what_a_program_touches() -> None:
    items = Items(np.ones((100, 4)), [[frozenset([1]), frozenset()] * 50, np.arange(100.0)], frequent=100)
    program = words_of([head(UNKNOWN), head(RANGE, 1, 2), bits(3.5), bits(60.5), head(OR)])
    query = np.ones(4, np.float32)
    given = items.arguments([Request(query), Request(query, program)], Limits(1, 5, 5))
    before = [tensor[0] for tensor in run("search", given)]
    damage = [("term_bitmap", 10**6), ("term_postings", 10**6), ("term_postings", -1), ("number_rows", 10**6)]
    for name, value in damage:
        damaged = {**given, name: torch.full_like(given[name], value)}
        *_, status = results = run("search", damaged)
        assert status.tolist() == [0, INDEX], (name, value, status)
        assert all(torch.equal(one, other[0]) for one, other in zip(before, results, strict=True))
        filters = {key: damaged[key] for key in ("ids", "item_rows", *items.filters)}
        words, passing, status = ops.filter_rows(damaged["filter"], **filters, fingerprint=FINGERPRINT)
        assert (status.tolist(), passing[1].item(), words[1].count_nonzero().item()) == ([0, INDEX], 0, 0)


def groups() -> None:
    given = arguments("select_diverse")
    for name in ("group_offsets", "groups"):
        for value in (-(2**31), -1, 2**31 - 1):
            for position in range(0, len(given[name]), 37):
                damaged = given[name].clone()
                damaged[position] = value
                run("select_diverse", {**given, name: damaged})


def other_tensors() -> None:
    """Rows of neighbours and candidates of any kind."""
    generator, items = np.random.default_rng(1), catalogue(300)
    history = torch.from_numpy(generator.integers(-3, 2**40, (3, 9)))
    rows = torch.from_numpy(generator.integers(-5, 2**31 - 1, (3, 20)).astype(np.int32))
    noise = torch.from_numpy(generator.integers(-5, 400, (300, 4)).astype(np.int32))
    for item_rows in (items.index["item_rows"], noise[:, 0].contiguous()):
        ops.neighbour_scores(history, rows, items.index["ids"], item_rows, noise, torch.ones(300, 4), 7)


if __name__ == "__main__":
    ops.load()
    assert ops.cuda_targets() == "emulation"
    for part in (small_tables, what_a_program_touches, groups, other_tensors):
        part()
    print("sound")
