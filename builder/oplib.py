"""Finds or compiles `libsilvertriton_ops.so`, the operators as one library against the stable ABI of LibTorch.

A C++ compiler is needed once: the library is cached under `$XDG_CACHE_HOME/silvertriton` (by default
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

from builder.errors import BuilderError

LIBRARY_NAME = "libsilvertriton_ops.so"
LIBRARY_VARIABLE = "SILVERTRITON_OPS_LIBRARY"
# In a checkout a link to kernels/, in an installed wheel a folder.
KERNELS = (Path(__file__).parent / "kernel_sources").resolve()
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


class OplibError(BuilderError):
    """The operator library is missing and cannot be built; the message says what to do."""


def library_path() -> Path:
    """Return the library, compiled first if it is not in the cache (about 20 seconds).

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
    library = cache_folder() / _fingerprint(compiler()) / LIBRARY_NAME
    if not library.is_file():
        build(library)
    return library


def build(library: Path, extra_flags: Sequence[str] = ()) -> None:
    """Compile the operators to `library`, atomically; `extra_flags` go to compiler and linker (sanitizers).

    Raises:
        OplibError: no compiler is found, or compilation fails; then the message ends with the compiler's output.
    """
    command = compiler()
    sources = [path for path in _kernel_files() if path.suffix == ".cpp"]
    library.parent.mkdir(parents=True, exist_ok=True)
    # In the library's own folder, so that the last step is a rename within one file system. Two processes that
    # build at once each have such a folder, and the later rename replaces a library by its equal.
    with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as folder:
        objects = [Path(folder) / f"{source.parent.name}_{source.stem}.o" for source in sources]
        compile_one = [*command, *COMPILE_FLAGS, *extra_flags, *_include_flags(), "-c"]
        with ThreadPoolExecutor(COMPILE_JOBS) as jobs:
            commands = [[*compile_one, str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
            for _ in jobs.map(_run, commands):
                pass
        finished = Path(folder) / LIBRARY_NAME
        _run([*command, "-shared", *extra_flags, *map(str, objects), *_link_flags(), "-o", str(finished)])
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


def _kernel_files() -> list[Path]:
    files = sorted(path for path in KERNELS.rglob("*") if path.suffix in (".cpp", ".h"))
    if not files:
        raise OplibError(f"the operators' sources are not in {KERNELS}; install silvertriton again")
    return files


def _include_flags() -> list[str]:
    torch_headers = Path(torch.__file__).parent / "include"
    return [f"-I{KERNELS / 'include'}", f"-I{KERNELS / 'cpu'}", "-isystem", str(torch_headers)]


def _link_flags() -> list[str]:
    # The run path lets the library be preloaded into a process that has no torch yet.
    folder = torch_library_folder()
    return [f"-L{folder}", "-ltorch_cpu", f"-Wl,-rpath,{folder}", "-Wl,-z,defs"]


def _fingerprint(command: Sequence[str]) -> str:
    digest = hashlib.sha256()
    version = _run([*command, "--version"])
    parts = [platform.machine(), torch.__version__, *command, version, *COMPILE_FLAGS, *_link_flags()]
    for path in _kernel_files():
        parts += [str(path.relative_to(KERNELS)), path.read_text(encoding="utf-8")]
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise OplibError(f"compiling the operators failed: {' '.join(command)}\n{result.stdout}")
    return result.stdout
