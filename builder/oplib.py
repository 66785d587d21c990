"""Finds or compiles `libsilvertriton_ops.so`, the operators as one library against the stable ABI of LibTorch.

A C++ compiler is needed once, and nvcc for the CUDA operators (builder/nvcc.py); where there is none the library has
those of the CPU, and `cuda_targets` says so. The library is cached under `$XDG_CACHE_HOME/silvertriton` (by default
`~/.cache/silvertriton`), in a folder named by a hash of everything that decides its bytes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from builder.errors import OplibError
from builder.nvcc import Nvcc, find_nvcc
from builder.progress import say

LIBRARY_NAME = "libsilvertriton_ops.so"
LIBRARY_VARIABLE = "SILVERTRITON_OPS_LIBRARY"
# In a checkout a link to kernels/, in an installed wheel a folder.
KERNELS = (Path(__file__).parent / "kernel_sources").resolve()
PLUGINS = KERNELS / "cuda" / "plugins"  # not part of the library: builder/export/plugins.py
COMPILE_JOBS = 2  # a translation unit with torch's headers takes some 300 MB

# The library uses the interface of torch 2.10 and with that loads in every later release.
# Contraction is off because every instruction set must round alike; see silvertriton/instruction_set.h.
COMPILE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
)


def library_path() -> Path:
    """Return the library, compiled first if it is not in the cache (20 seconds, a minute more with nvcc).

    `SILVERTRITON_OPS_LIBRARY` names a prebuilt one instead.

    Raises:
        OplibError: the named library does not exist, no compiler is found, or compilation fails.
    """
    if prebuilt := os.environ.get(LIBRARY_VARIABLE):
        path = Path(prebuilt)
        if not path.is_file():
            raise OplibError(
                f"{LIBRARY_VARIABLE} is {prebuilt}, which is no file; correct it, or unset it to compile the operators"
            )
        return path.resolve()
    nvcc = find_nvcc()
    library = cache_folder() / _fingerprint(compiler(), nvcc) / LIBRARY_NAME
    if not library.is_file():
        say(f"Compiling the operators for {_processors(nvcc)}: once, later commands find them in {cache_folder()}")
        build(library, nvcc=nvcc)
    return library


def build(library: Path, extra_flags: Sequence[str] = (), nvcc: Nvcc | None = None) -> None:
    """Compile the operators to `library`, atomically; `extra_flags` go to C++ compiler and linker (sanitizers).

    With `nvcc` those of CUDA are compiled in.

    Raises:
        OplibError: no compiler is found, or compilation fails; then the message ends with the compiler's output.
    """
    command = compiler()
    compile_cpp = [*command, *COMPILE_FLAGS, *extra_flags, *include_flags(), "-c"]
    compilers = {".cpp": compile_cpp}
    if nvcc is not None:
        compilers[".cpp"] = [*compile_cpp, f'-DST_CUDA="{nvcc.name()}"']
        compilers[".cu"] = [*nvcc.compile_command(), f"-I{KERNELS / 'include'}", "-c"]
    compile_library(
        library,
        [(path, compilers[path.suffix]) for path in kernel_files() if path.suffix in compilers],
        [*command, "-shared", *extra_flags],
        [*link_flags(), *(nvcc.link_flags() if nvcc is not None else ())],
    )


def compile_library(
    library: Path, sources: Sequence[tuple[Path, Sequence[str]]], link: Sequence[str], after: Sequence[str]
) -> None:
    """Compile each of `sources` by its command and `link` them, before the flags of `after`, to `library`, atomically.

    Raises:
        OplibError: a command fails; the message ends with its output.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    # In the library's own folder, so that the last step is a rename within one file system. Two processes that
    # build at once each have such a folder, and the later rename replaces a library by its equal.
    with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as folder:
        objects = [Path(folder) / f"{source.parent.name}_{source.stem}.o" for source, _ in sources]
        commands = [[*command, str(s), "-o", str(o)] for (s, command), o in zip(sources, objects, strict=True)]
        with ThreadPoolExecutor(COMPILE_JOBS) as jobs:
            for _ in jobs.map(_run, commands):
                pass
        finished = Path(folder) / LIBRARY_NAME
        _run([*link, *map(str, objects), *after, "-o", str(finished)])
        finished.replace(library)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/silvertriton`, or `~/.cache/silvertriton`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "silvertriton"


def compiler() -> list[str]:
    """The C++ compiler as a command: `$CXX` (which may hold arguments), else g++.

    Raises:
        OplibError: it is not installed.
    """
    command = os.environ.get("CXX", "").split() or ["g++"]
    if shutil.which(command[0]) is None:
        raise OplibError(
            f"no C++ compiler: {command[0]} is not on PATH. The operators are compiled once, before their first use: "
            f"install one (apt-get install g++), name another in CXX, or set {LIBRARY_VARIABLE} to a compiled library"
        )
    return command


def torch_library_folder() -> Path:
    """Where libtorch_cpu.so of the installed torch lies."""
    return Path(torch.__file__).parent / "lib"


def kernel_files() -> list[Path]:
    found = (path for path in KERNELS.rglob("*") if path.suffix in (".cpp", ".cu", ".h"))
    files = sorted(path for path in found if path.parent != PLUGINS)
    if not files:
        raise OplibError(f"the operators' sources are not in {KERNELS}; install silvertriton again")
    return files


def include_flags() -> list[str]:
    torch_headers = Path(torch.__file__).parent / "include"
    return [f"-I{KERNELS / 'include'}", f"-I{KERNELS / 'cpu'}", "-isystem", str(torch_headers)]


def link_flags() -> list[str]:
    # The run path lets the library be preloaded into a process that has no torch yet.
    folder = torch_library_folder()
    return [f"-L{folder}", "-ltorch_cpu", f"-Wl,-rpath,{folder}", "-Wl,-z,defs"]


def _processors(nvcc: Nvcc | None) -> str:
    return "the CPU" if nvcc is None else f"the CPU and CUDA ({nvcc.name()}), which takes a minute or more"


def _fingerprint(command: Sequence[str], nvcc: Nvcc | None) -> str:
    digest = hashlib.sha256()
    version = _run([*command, "--version"])
    parts = [platform.machine(), torch.__version__, *command, version, *COMPILE_FLAGS, *link_flags()]
    if nvcc is not None:
        parts += [nvcc.version, *nvcc.compile_command(), *nvcc.link_flags()]
    for path in kernel_files():
        parts += [str(path.relative_to(KERNELS)), path.read_text(encoding="utf-8")]
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise OplibError(f"compiling the operators failed: {' '.join(command)}\n{result.stdout}")
    return result.stdout
