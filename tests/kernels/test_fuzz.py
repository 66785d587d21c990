"""The fuzzer for a minute, from the inputs that it kept before."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++: apt-get install clang libclang-rt-dev")
def test_filter_programs_of_any_words_do_no_harm() -> None:
    """And pass the rows that a plain evaluator lets pass; else the fuzzer aborts with the words of the program."""
    result = subprocess.run([ROOT / "scripts" / "fuzz"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    done = re.search(r"Done (\d+) runs", result.stderr)
    assert done, result.stderr[-5000:]
    assert int(done[1]) > 1000
