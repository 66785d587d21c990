"""The CUDA kernels, run on a CPU by emulation.h, against the references that the CPU operators are held against.

Every answer has to be the CPU's, bit for bit. Threads run in an order drawn anew at every turn, so that one that
reads what another has yet to write shows. The sanitizers see every access to memory.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from builder import oplib
from tests.kernels.cuda import emulated

pytestmark = pytest.mark.timeout(900)  # the first time, the operators are compiled

EVERYTHING = (
    *("filter_rows", "search", "scan", "rescore", "resolve_weights", "select", "select_diverse", "neighbour_scores"),
    *("contract", "damaged_index"),
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1")


@pytest.fixture(scope="module")
def library() -> Path:
    return emulated.library()


@pytest.fixture(scope="module")
def sanitized() -> tuple[Path, dict[str, str]]:
    """The library under AddressSanitizer and UBSan, and the environment in which Python can load it."""
    runtimes = [
        subprocess.run(
            [*oplib.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("the compiler has no sanitizer runtimes")
    environment = {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    return emulated.library(SANITIZERS), environment


def test_some_of_every_operator(library: Path) -> None:
    files = ("filter_rows", "search", "select", "select_diverse", "rescore", "resolve_weights", "neighbour_scores")
    emulated.run_tests(files, library, "(random or share or neighbour) and (0 or 2 or 7)")


def test_the_wide_search_in_all_its_phases(library: Path) -> None:
    assert "wide" in emulated.run(["-m", "tests.kernels.cuda.wide"], library)


def test_few_launches_and_no_read_by_the_host(library: Path) -> None:
    assert "search 9 " in emulated.run(["-m", "tests.kernels.cuda.launches"], library)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_everything_without_a_complaint_of_the_sanitizers(sanitized: tuple[Path, dict[str, str]]) -> None:
    path, environment = sanitized
    emulated.run_tests(EVERYTHING, path, environment=environment)
    # Searches of small indexes start fewer kernels on a GPU.
    emulated.run_tests(("search", "scan"), path, environment={**environment, "ST_EMULATION_WIDE_BLOCKS": "1000000"})
    emulated.run(["-m", "tests.kernels.cuda.wide"], path, environment)


@pytest.mark.slow
def test_a_damaged_index_does_no_harm(sanitized: tuple[Path, dict[str, str]]) -> None:
    path, environment = sanitized
    assert "sound" in emulated.run(["-m", "tests.kernels.cuda.damage"], path, environment)
