"""Finds the CUDA compiler, and what it can compile the operators for. No GPU is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from builder.errors import OplibError

TARGETS_VARIABLE = "SILVERTRITON_CUDA_TARGETS"
# Compute capabilities with machine code of their own. Later ones compile the PTX of the last when it is first loaded.
TARGETS = ("80", "86", "89", "90", "100", "120")

# No contraction, so that floats round as on the CPU; see silvertriton/instruction_set.h.
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden")


@dataclass(frozen=True)
class Nvcc:
    """A compiler, its `targets` (compute capabilities) and where its static runtime lies."""

    command: str
    version: str
    targets: tuple[str, ...]
    library_folder: Path

    def compile_command(self) -> list[str]:
        """To be followed by includes, source and output."""
        codes = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in self.targets]
        last = self.targets[-1]
        return [self.command, *FLAGS, *codes, f"-gencode=arch=compute_{last},code=compute_{last}"]

    def ptx(self, source: Path, include: Path) -> str:
        """PTX of the kernels in `source`, for all of `TARGETS`. Raises `OplibError` with what the compiler says."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernels.ptx"
            flags = [*FLAGS, f"-arch=compute_{TARGETS[0]}", f"-I{include}"]
            _output([self.command, *flags, "-ptx", str(source), "-o", str(path)])
            return path.read_text(encoding="utf-8")

    def link_flags(self) -> list[str]:
        """The runtime goes in, hidden: the library loads where there is no CUDA, and beside torch's own runtime."""
        return [f"-L{self.library_folder}", "-lcudart_static", "-Wl,--exclude-libs,ALL", "-lrt", "-ldl", "-lpthread"]

    def name(self) -> str:
        """What `torch.ops.silvertriton.cuda_targets()` says: such as "sm_80 sm_90 compute_90"."""
        return " ".join([*(f"sm_{target}" for target in self.targets), f"compute_{self.targets[-1]}"])


def find_nvcc() -> Nvcc | None:
    """The compiler of `CUDA_HOME`, else the one on PATH, else that of /usr/local/cuda; None where there is none.

    `SILVERTRITON_CUDA_TARGETS` names other targets than `TARGETS`, such as "80,90", or "none" for no CUDA at all.

    Raises:
        OplibError: the variable names a target that this compiler does not have, or there is no compiler with a runtime
            for what it names, or the compiler does not run.
    """
    asked = os.environ.get(TARGETS_VARIABLE, "")
    if asked == "none":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    command = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else shutil.which("nvcc")
    command = command or shutil.which("/usr/local/cuda/bin/nvcc")
    if command is None:
        if asked:
            raise OplibError(
                f"{TARGETS_VARIABLE} is {asked}, but there is no nvcc; set CUDA_HOME, or unset the variable"
            )
        return None
    known = re.findall(r"sm_(\d+)", _output([command, "--list-gpu-code"]))
    if asked:
        targets = tuple(sorted((part.strip() for part in asked.split(",")), key=lambda part: (len(part), part)))
        if unknown := [target for target in targets if target not in known]:
            raise OplibError(
                f"{TARGETS_VARIABLE} is {asked}, but {command} has no {unknown[0]!r}; it has {', '.join(known)}. "
                "Unset the variable to compile for all GPUs, or set it to none to compile without CUDA"
            )
    else:
        targets = tuple(target for target in TARGETS if target in known)
    dry_run = _output([command, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull])
    folders = [Path(folder) for folder in re.findall(r'"-L([^"]+)"', dry_run)]
    folder = next((folder for folder in folders if (folder / "libcudart_static.a").is_file()), None)
    if folder is None and asked:
        raise OplibError(
            f"{TARGETS_VARIABLE} is {asked}, but {command} has no libcudart_static.a; install CUDA's runtime"
        )
    if folder is None or not targets:
        return None  # a compiler without its runtime, or one that knows none of these GPUs
    return Nvcc(command, _output([command, "--version"]), targets, folder.resolve())


def _output(command: list[str]) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise OplibError(
            f"{' '.join(command)} failed: {result.stdout}\nCorrect CUDA_HOME, or set {TARGETS_VARIABLE} to none to "
            "compile the operators without CUDA"
        )
    return result.stdout
