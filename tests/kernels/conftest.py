"""Every instruction set this machine has, one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from builder import ops


@pytest.fixture(scope="session", autouse=True)
def operators() -> None:
    ops.load()


@pytest.fixture(params=["portable", "avx2", "avx512vnni"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        ops.force_instruction_set(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield request.param
    ops.force_instruction_set("")
