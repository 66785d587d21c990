"""Memory is asked for ahead of its use: no result shows whether it is, and compilers have dropped it."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import pytest

from builder import oplib


@cache
def functions_that_ask() -> set[str]:
    command = ["objdump", "-dC", "--no-show-raw-insn", str(oplib.library_path())]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\n\n[0-9a-f]+ <(.*)>:\n", code)[1:]
    functions = zip(parts[::2], parts[1::2], strict=True)
    return {name for name, body in functions if re.search(r"\tprefetch|\tprfm", body)}


@pytest.mark.parametrize(
    "where", ["scan_rows", "write_mask", "cpu::rescore", "cpu::rerank", "finish_scan", "NearHistory"]
)
def test_prefetching_is_in_the_library(where: str) -> None:
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    assert any(where in name for name in functions_that_ask()), sorted(functions_that_ask())
