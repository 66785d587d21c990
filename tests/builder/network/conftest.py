"""Scripted networks call the operators."""

from __future__ import annotations

import pytest

from builder import ops


@pytest.fixture(scope="session", autouse=True)
def operators() -> None:
    ops.load()
