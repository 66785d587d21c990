"""Compiles the operators so that the CUDA kernels run on the CPU, in emulation.h, in place of those of the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builder import oplib

FOLDER = Path(__file__).parent
FLAGS = ("-DST_EMULATION", '-DST_CUDA="emulation"', f"-I{FOLDER}")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-sign-compare")


def build(library: Path, flags: Sequence[str] = ()) -> None:
    """Compile `libsilvertriton_ops.so` with emulated CUDA kernels to `library`."""
    command = [*oplib.compiler(), *oplib.COMPILE_FLAGS, *flags]
    compile_one = [*command, *FLAGS, *oplib.include_flags(), "-c"]
    sources = [FOLDER / "emulation.cpp"]
    sources += [path for path in oplib.kernel_files() if path.suffix in (".cpp", ".cu") and path.name != "device.cu"]
    compilers = {".cpp": compile_one, ".cu": [*compile_one, *WARNINGS, "-x", "c++"]}
    oplib.compile_library(
        library,
        [(path, compilers[path.suffix]) for path in sources],
        [*command, "-shared"],
        oplib.link_flags(),
    )
