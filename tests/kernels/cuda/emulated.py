"""Compiles the operators so that the CUDA kernels run on the CPU, in emulation.h, in place of those of the CPU."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from builder import oplib

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
FLAGS = ("-DST_EMULATION", '-DST_CUDA="emulation"', f"-I{FOLDER}")
# Signs of indices are compared as CUDA C++ has them.
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-sign-compare")
# What a CPU refuses and a GPU cannot: its host would have to wait for the index. damage.py has its answers.
RAISING = (
    "test_a_damaged_index_is_refused",
    "test_damage_is_found_where_a_program_touches_it",
    "test_rows_of_numbers_that_are_no_rows",
    "test_damaged_groups_are_refused",
    "test_damage_found_on_another_thread",
    "cluster_blocks",
)


def library(flags: Sequence[str] = ()) -> Path:
    """The library, compiled first if it is not in the cache."""
    digest = hashlib.sha256(repr((flags, oplib.COMPILE_FLAGS, oplib.link_flags())).encode())
    for path in [*oplib.kernel_files(), *sorted(FOLDER.glob("emulation.*"))]:
        digest.update(path.read_bytes())
    path = oplib.cache_folder() / f"emulated-{digest.hexdigest()[:16]}" / oplib.LIBRARY_NAME
    if not path.is_file():
        build(path, flags)
    return path


def build(path: Path, flags: Sequence[str] = ()) -> None:
    """Compile it to `path`; `flags` go to compiler and linker."""
    command = [*oplib.compiler(), *oplib.COMPILE_FLAGS, *flags]
    compile_one = [*command, *FLAGS, *oplib.include_flags(), "-c"]
    sources = [FOLDER / "emulation.cpp"]
    sources += [path for path in oplib.kernel_files() if path.suffix in (".cpp", ".cu") and path.name != "device.cu"]
    compilers = {".cpp": compile_one, ".cu": [*compile_one, *WARNINGS, "-x", "c++"]}
    oplib.compile_library(
        path, [(source, compilers[source.suffix]) for source in sources], [*command, "-shared"], oplib.link_flags()
    )


def run(arguments: Sequence[str], path: Path, environment: dict[str, str] | None = None) -> str:
    """Run Python with this library; returns what it printed, and fails with it where it failed."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {}), oplib.LIBRARY_VARIABLE: str(path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return result.stdout


def run_tests(files: Sequence[str], path: Path, select: str = "", environment: dict[str, str] | None = None) -> None:
    """Run tests of operators against this library, each once: it knows no instruction sets."""
    excluded = ["avx2", "avx512vnni", "instruction_set", "threads", "opcheck", *RAISING]
    expression = " and ".join([*(f"not {name}" for name in excluded), *([f"({select})"] if select else [])])
    paths = [str(FOLDER.parent / f"test_{name}.py") for name in files]
    run(["-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", expression, *paths], path, environment)
