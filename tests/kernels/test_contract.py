"""What all operators share: threads and instruction sets change nothing, fake kernels agree, host checks speak."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from builder import ops
from tests.kernels.arguments import OPERATORS, Arguments, arguments, message_of, run


def test_arguments_are_worth_a_test() -> None:
    for operator in OPERATORS:
        for name, value in arguments(operator).items():
            assert not isinstance(value, Tensor) or min(value.shape) > 0, f"{operator}: {name}"
    _, _, scores, stats, status = run("search", arguments("search", 40_000, 8))
    assert (status == 0).all()
    assert (stats[:, 3] == 0).any()
    assert torch.isfinite(scores).any(1).sum() > 4


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_results_do_not_depend_on_threads(operator: str, batch: int) -> None:
    given = arguments(operator, 40_000, batch)
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
    given = arguments(operator, 40_000, 8)
    results = []
    try:
        for name in ("portable", "avx2", "avx512vnni", "neon", "neon-dotprod"):
            try:
                ops.force_instruction_set(name)
            except RuntimeError:
                continue
            assert ops.instruction_set() == name
            results.append(run(operator, given))
    finally:
        ops.force_instruction_set("")
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("operator", OPERATORS)
def test_opcheck(operator: str) -> None:
    given = arguments(operator)
    torch.library.opcheck(getattr(torch.ops.silvertriton, operator).default, tuple(given.values()))


def tensors() -> list[tuple[str, str]]:
    everything = [(operator, name, value) for operator in OPERATORS for name, value in arguments(operator).items()]
    return [(operator, name) for operator, name, value in everything if isinstance(value, Tensor)]


@pytest.mark.parametrize(("operator", "argument"), tensors())
def test_dtype_rank_layout_and_device_are_checked(operator: str, argument: str) -> None:
    given = arguments(operator)
    right = given[argument]
    strided = torch.stack([right, right], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    for value, expected in (
        (right.to(torch.complex64), "got ComplexFloat, expected "),
        (right.unsqueeze(0), f"got rank {right.dim() + 1} "),
        (right[0].clone(), f"got rank {right.dim() - 1} "),
        (strided, "got strides, expected a contiguous tensor; call .contiguous()"),
    ):
        message = message_of(operator, {**given, argument: value})
        assert f"silvertriton::{operator}: {argument}: {expected}" in message, message
    # Sent to the CPU kernel by hand: on its own the dispatcher gives a call with a meta tensor to the fake kernel.
    with pytest.raises(
        RuntimeError, match=f"{operator}: {argument}: got a tensor on another device, expected one on t"
    ):
        getattr(torch.ops.silvertriton, operator).default.redispatch(
            torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *{**given, argument: right.to("meta")}.values()
        )


# Sizes that one argument alone has. Of P the others tell no more than ceil(P / 4).
FREE = {
    ("filter_rows", "program", 0),
    ("filter_rows", "program", 1),
    ("filter_rows", "item_rows", 0),
    ("filter_rows", "postings", 0),
    ("filter_rows", "bitmaps", 0),
    ("filter_rows", "number_bitmaps", 1),
    ("search", "filter", 1),
    ("search", "exclude", 1),
    ("search", "projection", 1),
    ("search", "item_rows", 0),
    ("search", "reach", 0),
    ("search", "postings", 0),
    ("search", "bitmaps", 0),
    ("search", "number_bitmaps", 1),
    ("rescore", "rows", 1),
    ("lookup", "keys", 0),
    ("lookup", "asked", 0),
    ("rerank", "history", 1),
    ("rerank", "output", 0),
    ("select", "task_scores", 2),
    ("select_diverse", "task_scores", 2),
    ("select_diverse", "vectors", 1),
    ("select_diverse", "groups", 0),
    ("select_diverse", "most", 0),
}


@pytest.mark.parametrize(("operator", "argument"), tensors())
def test_sizes_are_checked(operator: str, argument: str) -> None:
    """A size that disagrees is reported for the later of two arguments, which names the earlier one."""
    given = arguments(operator)
    right = given[argument]
    for axis in range(right.dim()):
        larger = torch.cat([right, right.narrow(axis, 0, 1)], axis)
        if (operator, argument, axis) in FREE:
            assert run(operator, {**given, argument: larger})
            continue
        for value in (larger, larger.narrow(axis, 0, right.shape[axis] - 1).contiguous()):
            message = message_of(operator, {**given, argument: value})
            derived = re.search(r" as in (32 NB|ceil\(P / 4\))", message)
            assert derived or re.search(rf"\b{argument}\b", message), f"axis {axis}: {message}"


def test_a_disagreeing_size_names_its_letter_and_origin() -> None:
    given = arguments("search")
    with pytest.raises(RuntimeError, match=r"::search: limits: got \[2, 2\], expected .* with B = 3 as in query; "):
        run("search", {**given, "limits": given["limits"][:2]})
    with pytest.raises(
        RuntimeError, match=r"::search: projection: got \[18, 10\], expected .* with D = 19 as in query; "
    ):
        run("search", {**given, "projection": given["projection"][:18]})
    with pytest.raises(
        RuntimeError, match=r"::search: projection: got \[0, 10\], expected .* with D = 19 as in query; "
    ):
        run("search", {**given, "projection": given["projection"][:0]})
    with pytest.raises(RuntimeError, match=r"::search: codes: got .*, expected .* with P4 = 4 as in ceil\(P / 4\); "):
        run("search", {**given, "projection": torch.zeros(19, 13)})


@pytest.mark.parametrize(
    ("operator", "change", "message"),
    [
        ("filter_rows", {"program": torch.zeros(3, 1, dtype=torch.int64)}, "program: got 1, expected 2 to "),
        ("search", {"filter": torch.zeros(3, 1, dtype=torch.int64)}, "filter: got 1, expected 2 to "),
        ("search", {"query": torch.zeros(3, 0)}, "query: got 0, expected 1 to 133144"),
        ("search", {"query": torch.zeros(3, 133_145)}, "query: got 133145, expected 1 to 133144"),
        ("search", {"projection": torch.zeros(19, 0)}, "projection: got 0, expected 1 to 133144"),
        ("search", {"projection": torch.zeros(19, 133_145)}, "projection: got 133145, expected 1 to 133144"),
        ("search", {"reach": torch.ones(0)}, "reach: got 0, expected 1 to 32"),
        ("search", {"reach": torch.ones(33)}, "reach: got 33, expected 1 to 32"),
        ("search", {"probes": -1}, "probes: got -1, expected "),
        ("search", {"probes": 2**31}, "probes: got 2147483648, expected "),
        ("search", {"candidates": -1}, "candidates: got -1, expected 0 to 25"),
        ("search", {"candidates": 26}, "candidates: got 26, expected 0 to 25"),
        ("search", {"max_candidates": -1}, "max_candidates: got -1, expected 0 to"),
        ("search", {"max_candidates": 2**31}, "max_candidates: got 2147483648, expected 0 to"),
        ("search", {"max_candidates": 19}, "candidates: got 20, expected 0 to 19"),
        ("search", {"exact_rows": -1}, "exact_rows: got -1, expected 0 to"),
        ("search", {"exact_rows": 2**31}, "exact_rows: got 2147483648, expected 0 to"),
        ("search", {"exact_rows": -(2**63)}, "exact_rows: got -9223372036854775808, expected 0 to"),
        ("rescore", {"query": torch.zeros(3, 0)}, "query: got 0, expected 1 to 133144"),
        ("rescore", {"query": torch.zeros(3, 133_145)}, "query: got 133145, expected 1 to 133144"),
        ("rerank", {"most": -1}, "most: got -1, expected 0 to"),
        ("rerank", {"tasks": 0}, "tasks: got 0, expected 1 to"),
        ("rerank", {"tasks": 2**63 - 1}, "tasks: got 9223372036854775807, expected 1 to"),
        ("rerank", {"tasks": 17}, "output: got [16, 16], expected "),
        ("rerank", {"output": torch.zeros(5, 16)}, "output: got -1, expected 0 to 16"),
        ("rerank", {"output": torch.zeros(23, 16)}, "output: got 17, expected 0 to 16"),
        ("rerank", {"second": torch.zeros(71, 17)}, "second: got 17 outputs, expected a multiple of 16"),
        ("rerank", {"user": torch.zeros(2, 80)}, "first: got [24, 80], expected "),
        ("select", {"k": -1}, "k: got -1, expected 0 to"),
        ("select", {"k": 2**31}, "k: got 2147483648, expected 0 to"),
        ("select_diverse", {"k": -1}, "k: got -1, expected 0 to"),
        ("select_diverse", {"mmr": -0.1}, "mmr: got -0.1"),
        ("select_diverse", {"mmr": 1.1}, "mmr: got 1.1"),
        ("select_diverse", {"mmr": float("nan")}, "mmr: got nan, expected 0 to 1"),
        ("select_diverse", {"mmr": 1.0}, "inverse_lengths: got [384], expected "),
        ("select_diverse", {"inverse_lengths": torch.empty(0)}, "inverse_lengths: got [0], expected "),
        ("select_diverse", {"most": torch.empty(0, dtype=torch.int32)}, "group_offsets: got [385], expected "),
        ("select_diverse", {"group_offsets": torch.empty(0, dtype=torch.int64)}, "group_offsets: got [0], expected "),
        ("select_diverse", {"vectors": torch.zeros(384, 0).half()}, "vectors: got 0, expected 1 to 133144"),
    ],
)
def test_values_that_cannot_be(operator: str, change: Arguments, message: str) -> None:
    assert f"{operator}: {message}" in message_of(operator, {**arguments(operator), **change})


@pytest.mark.parametrize("name", ["avx10", "AVX2", "portable "])
def test_an_unknown_instruction_set_is_a_clear_error(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"got instruction set '{name}', expected one this machine has: .*portable"):
        ops.force_instruction_set(name)


@pytest.mark.parametrize("operator", ["filter_rows", "search", "rescore", "rerank", "select_diverse"])
def test_a_wrong_instruction_set_is_told_by_every_operator(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(operator)
    monkeypatch.setenv("SILVERTRITON_ISA", "avx10")
    ops.force_instruction_set("")
    with pytest.raises(RuntimeError, match="SILVERTRITON_ISA: got instruction set 'avx10', expected one this machine"):
        run(operator, given)


@pytest.mark.parametrize(
    ("value", "good", "expected"),
    [("avx10", False, "SILVERTRITON_ISA: got instruction set 'avx10'"), ("portable", True, "portable")],
)
def test_the_environment_names_the_instruction_set(value: str, good: bool, expected: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from builder import ops\nops.load()\nprint(ops.instruction_set())"],
        env={**os.environ, "SILVERTRITON_ISA": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == good
    assert expected in result.stdout + result.stderr
