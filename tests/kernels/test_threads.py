"""The CPU operators called from several threads at once, compiled with ThreadSanitizer, without torch.

torch itself cannot be run so: its threads are those of OpenMP, whose synchronisation the sanitizer does not see.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from builder import oplib

PROGRAM = Path(__file__).parent / "native" / "threads.cpp"
FLAGS = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fsanitize=thread", "-pthread")


@pytest.mark.slow
def test_no_operator_races_with_another(tmp_path: Path) -> None:
    """And each caller gets what it gets alone."""
    program = tmp_path / "threads"
    sources = [*sorted(oplib.KERNELS.glob("cpu/*.cpp")), PROGRAM]
    includes = [f"-I{oplib.KERNELS / folder}" for folder in ("include", "cpu")]
    command = [*oplib.compiler(), *FLAGS, *includes, *map(str, sources), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if "-ltsan" in compiled.stderr or "libtsan" in compiled.stderr:
        pytest.skip("the compiler has no ThreadSanitizer runtime")
    assert compiled.returncode == 0, compiled.stderr[-5000:]
    result = subprocess.run([program, "10"], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not start on this kernel: sysctl vm.mmap_rnd_bits=28")
    assert result.returncode == 0, (result.stdout + result.stderr)[:5000]
