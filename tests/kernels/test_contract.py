"""What all operators share: threads and instruction sets change nothing, fake kernels agree, host checks speak."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from builder import ops
from tests.kernels.catalogue import (
    FINGERPRINT,
    centroid_index,
    filter_index,
    item_index,
    lay_out,
    program_rows,
    random_columns,
    random_program,
)

Arguments = dict[str, Any]


def arguments(items: int = 300, batch: int = 3, seed: int = 4) -> dict[str, Arguments]:
    """Good arguments of every operator, all on one random index."""
    generator, random = np.random.default_rng(seed), Random(seed)
    clusters, dims, most = 6, 19, 25
    layout = lay_out(generator.integers(clusters, size=items), clusters)
    columns = [
        *random_columns(random, items),
        np.arange(items, dtype=np.float64),
        [frozenset([i % 3, 10 + i % 40]) for i in range(items)],  # frequent terms and rare ones
    ]
    index = item_index(generator.normal(size=(items, dims)).astype(np.float32), np.arange(items)[::-1].copy(), layout)
    centroid_codes, centroid_scales = centroid_index(generator.normal(size=(clusters, dims)).astype(np.float32))
    query = torch.from_numpy(generator.normal(size=(batch, dims)).astype(np.float32))
    program = program_rows([random_program(random, columns, 5) for _ in range(batch)])
    program[0, 1] = 0
    narrow = torch.full((batch,), 2, dtype=torch.int32)
    filtering = {
        "program": program,
        "exclude": torch.full((batch, 2), -1, dtype=torch.int32),
        **filter_index(columns, layout, buckets=4, frequent=20),
        "valid": index["valid"],
        "cluster_blocks": index["cluster_blocks"],
        "fingerprint": FINGERPRINT,
    }
    ops.load()
    words, passing, _ = ops.filter_rows(**filtering)
    probing = {
        "query": query,
        "centroid_codes": centroid_codes,
        "centroid_scales": centroid_scales,
        "passing": passing,
        "probes": narrow,
        "candidates": narrow * 10,
    }
    taken, probed = ops.probe(**probing)
    scanning = {
        "query": query,
        **{name: index[name] for name in ("codes", "scales", "vectors", "ids", "cluster_blocks")},
        "words": words,
        "clusters": taken,
        "probed": probed,
        "candidates": narrow * 10,
        "max_candidates": most,
    }
    rows, _ = ops.scan(**scanning)
    rescoring = {"query": query, "vectors": index["vectors"], "scales": index["scales"], "rows": rows}
    selecting = {"scores": ops.rescore(**rescoring), "ids": index["ids"][rows.long()].where(rows >= 0, -1), "k": 7}
    return {"filter_rows": filtering, "probe": probing, "scan": scanning, "rescore": rescoring, "top_k": selecting}


OPERATORS = ["filter_rows", "probe", "scan", "rescore", "top_k"]


def run(operator: str, given: Arguments) -> list[Tensor]:
    wrapper: Callable[..., Any] = getattr(ops, operator)
    result = wrapper(**given)
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_results_do_not_depend_on_threads(operator: str, batch: int) -> None:
    given = arguments(items=40_000, batch=batch)[operator]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run(operator, given))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("operator", OPERATORS)
def test_results_do_not_depend_on_the_instruction_set(operator: str) -> None:
    given = arguments(items=5_000)[operator]
    results = []
    for name in ("portable", "avx2", "avx512vnni"):
        try:
            ops.force_instruction_set(name)
        except RuntimeError:
            continue
        results.append(run(operator, given))
    ops.force_instruction_set("")
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("operator", OPERATORS)
def test_opcheck(operator: str) -> None:
    given = arguments()[operator]
    torch.library.opcheck(getattr(torch.ops.silvertriton, operator).default, tuple(given.values()))


def wrong_tensor_cases() -> list[tuple[str, str]]:
    cases = []
    for operator, given in arguments().items():
        cases += [(operator, name) for name, value in given.items() if isinstance(value, Tensor)]
    return cases


@pytest.mark.parametrize(("operator", "argument"), wrong_tensor_cases())
def test_every_tensor_is_checked(operator: str, argument: str) -> None:
    """Wrong dtype, rank, size and layout of each argument are refused by name."""
    given = arguments()[operator]
    right = given[argument]

    def refused(value: Tensor, *expected: str) -> None:
        with pytest.raises(RuntimeError) as caught:
            run(operator, {**given, argument: value})
        message = str(caught.value)
        assert message.startswith(f"silvertriton::{operator}: "), message
        assert re.search(r": got .+, expected .+; .+", message), message
        for part in expected:
            assert part in message, message

    refused(right.to(torch.complex64), argument, "got ComplexFloat")
    refused(right.unsqueeze(0), argument, f"got rank {right.dim() + 1}")
    # A size that disagrees is reported for whichever of the two arguments comes later. These two have one of their own.
    if argument not in ("postings", "bitmaps"):
        refused(torch.cat([right, right, right]), "expected")
    if right.dim() == 2 and right.shape[1] > 1:
        refused(right.repeat(1, 2)[:, ::2], argument, "call .contiguous()")


def test_a_disagreeing_size_names_its_letter_and_origin() -> None:
    given = arguments()["scan"]
    with pytest.raises(RuntimeError, match=r"silvertriton::scan: words: got \[2, \d+\], .* with B = 3 as in query; "):
        run("scan", {**given, "words": given["words"][:2]})


def test_a_tensor_on_another_device_is_refused() -> None:
    """Sent to the CPU kernel by hand: on its own the dispatcher gives a call with a meta tensor to the fake kernel."""
    given = arguments()["rescore"]
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    operator = torch.ops.silvertriton.rescore.default
    with pytest.raises(RuntimeError, match="rescore: vectors: got a tensor on another device, expected one on the CPU"):
        operator.redispatch(cpu, *{**given, "vectors": given["vectors"].to("meta")}.values())


@pytest.mark.parametrize(
    ("operator", "change", "message"),
    [
        (
            "filter_rows",
            {"program": torch.zeros(3, 1, dtype=torch.int64)},
            r"program: got F = 1, expected F of at least 2",
        ),
        ("scan", {"max_candidates": -1}, r"max_candidates: got -1, expected 0 to"),
        ("top_k", {"k": -1}, r"k: got -1, expected 0 to"),
        ("rescore", {"query": torch.zeros(3, 0)}, r"query: got 0, expected 1 to 133144"),
        ("probe", {"query": torch.zeros(3, 133_145)}, r"query: got 133145, expected 1 to 133144"),
    ],
)
def test_values_that_cannot_be(operator: str, change: Arguments, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(operator, {**arguments()[operator], **change})


def damage(name: str, position: int | tuple[int, ...], value: int) -> Callable[[Arguments], Arguments]:
    def apply(given: Arguments) -> Arguments:
        tensor = given[name].clone()
        tensor[position] = value
        return {**given, name: tensor}

    return apply


@pytest.mark.parametrize(
    ("operator", "apply", "message"),
    [
        ("filter_rows", damage("cluster_blocks", 0, 1), "cluster_blocks: got offsets from 1"),
        ("filter_rows", damage("cluster_blocks", 2, 10_000), "cluster_blocks: got offsets from 0"),
        ("filter_rows", damage("cluster_blocks", -1, 10_000), "cluster_blocks: got offsets from 0 to 10000"),
        ("scan", damage("cluster_blocks", 3, -1), "cluster_blocks: got offsets from 0"),
        ("filter_rows", damage("feature_terms", 1, 0), "feature_terms: .* rise strictly"),
        ("filter_rows", damage("feature_number", 0, 9), "feature_number: got 9"),
        ("filter_rows", damage("feature_number", 0, -2), "feature_number: got -2"),
        ("filter_rows", damage("number_known", 0, 100_000), "number_known: got 100000"),
    ],
)
def test_a_damaged_index_is_refused(operator: str, apply: Callable[[Arguments], Arguments], message: str) -> None:
    with pytest.raises(RuntimeError, match=message + ".*build the artifact again"):
        run(operator, apply(arguments()[operator]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("term_bitmap", 10_000, "term_bitmap: got 10000"),
        ("term_postings", 1_000_000, "term_postings: got "),
        ("number_rows", 1_000_000, "number_rows: got 1000000"),
        ("number_rows", -1, "number_rows: got -1"),
    ],
)
def test_damage_is_found_where_a_program_touches_it(name: str, value: int, message: str) -> None:
    from tests.kernels.reference import OR, RANGE, UNKNOWN, bits, head

    columns = [[frozenset([1]), frozenset()] * 50, np.arange(100.0)]
    layout = lay_out(np.zeros(100, dtype=np.int64), 1)
    index = filter_index(columns, layout, buckets=3, frequent=100)
    index[name] = torch.full_like(index[name], value)
    code = [head(UNKNOWN), head(RANGE, 1, 2), bits(3.5), bits(60.5), head(OR)]
    for copies in (1, 20):  # with ranges prepared, and made on the stack
        program = program_rows([code + [*code, head(OR)] * (copies - 1)])
        with pytest.raises(RuntimeError, match=message):
            ops.filter_rows(
                program,
                torch.full((1, 1), -1, dtype=torch.int32),
                *index.values(),
                item_index(np.ones((100, 2), np.float32), np.arange(100), layout)["valid"],
                torch.from_numpy(layout.cluster_blocks),
                FINGERPRINT,
            )


def test_postings_out_of_range_or_order_do_no_harm() -> None:
    given = arguments()["filter_rows"]
    for rows in (torch.full_like(given["postings"], 2**31 - 1), given["postings"].flip(0), -given["postings"]):
        words, _, status = ops.filter_rows(**{**given, "postings": rows.contiguous()})
        assert (words[0] == given["valid"]).all()
        assert status.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["avx10", "AVX2", "neon"])
def test_an_unknown_instruction_set_is_a_clear_error(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"got instruction set '{name}', expected one this machine has: .*portable"):
        ops.force_instruction_set(name)
    code = "from builder import ops\nops.load()\nprint(ops.instruction_set())"
    for value, expected in ((name, "SILVERTRITON_ISA: got instruction set"), ("portable", "portable")):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SILVERTRITON_ISA": value},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode == 0) == (value == "portable")
        assert expected in result.stdout + result.stderr
