"""Memory is asked for ahead of its use: no result shows whether it is, and compilers have dropped it."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import pytest

from builder import oplib

pytestmark = pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")


@cache
def functions() -> list[tuple[str, bool]]:
    """Names, and whether they ask; one name for each instruction set that has such a function."""
    command = ["objdump", "-dC", "--no-show-raw-insn", str(oplib.library_path())]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\n\n[0-9a-f]+ <(.*)>:\n", code)[1:]
    bodies = zip(parts[::2], parts[1::2], strict=True)
    return [(name, re.search(r"\tprefetch|\tprfm", body) is not None) for name, body in bodies]


# What asks may be a function of its own or part of one that calls it, as the compiler has it.
@pytest.mark.parametrize(
    "names",
    [
        r"scan_blocks\(",
        r"scan_clusters\(|ask_for\(",
        r"finish_scan\(|scan_vectors\(",
        r"write_mask\(|Evaluator::",
        r"cpu::rescore\(",
        r"cpu::rerank\(|Rerank::",
        r"cpu::neighbour_scores\(|NearHistory::",
        r"cpu::select_diverse\(|Selection::",
    ],
)
def test_prefetching_is_in_the_library(names: str) -> None:
    asking = [name for name, asks in functions() if asks]
    assert any(re.search(names, name) for name in asking), asking


def test_every_instruction_set_asks_for_rows() -> None:
    found = [asks for name, asks in functions() if re.search(r"::scan_rows\w*\(", name)]
    assert len(found) >= 2
    assert all(found)
