"""What tests of kernels and of the network share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from builder.nvcc import find_nvcc

# One GPU's machine code is enough to link and load; tests/kernels/cuda/test_targets.py compiles for all.
if find_nvcc() is not None:
    os.environ.setdefault("SILVERTRITON_CUDA_TARGETS", "90")


@pytest.fixture(params=["portable", "avx2", "avx512vnni"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set this machine has, one at a time."""
    from builder import ops  # the client's tests run where there is no torch

    ops.load()
    try:
        ops.force_instruction_set(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield request.param
    ops.force_instruction_set("")
