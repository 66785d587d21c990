"""The kernel tests once more, with the library compiled for AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder import oplib

TESTS = Path(__file__).parent
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_sanitizer_complains(tmp_path: Path) -> None:
    command = oplib.compiler()
    runtimes = [
        subprocess.run(
            [*command, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("the compiler has no sanitizer runtimes")
    library = tmp_path / oplib.LIBRARY_NAME
    oplib.build(library, FLAGS)
    environment = {
        **os.environ,
        oplib.LIBRARY_VARIABLE: str(library),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # the interpreter leaks by design
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    operators = ("filter_rows", "search", "scan", "rescore", "resolve_weights", "select", "select_diverse")
    of_rerankers = ("neighbour_scores", "rerank", "lookup")
    files = [str(TESTS / f"test_{name}.py") for name in (*operators, *of_rerankers, "contract", "damaged_index")]
    pytest_command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-s",
        "-p",
        "no:cacheprovider",
        "-k",
        "not opcheck",
        *files,
    ]
    probe = subprocess.run(
        [sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True, check=False
    )
    if probe.returncode != 0:
        pytest.skip(f"torch does not start under AddressSanitizer: {probe.stderr[-300:]}")
    result = subprocess.run(
        pytest_command, cwd=TESTS.parent.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
