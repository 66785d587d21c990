"""Compiles serve_model.cpp and runs models with it: LibTorch as the stock server uses it, without a server."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from builder import oplib

SOURCE = Path(__file__).with_name("serve_model.cpp")
Array = NDArray[np.generic]


class ServeModelError(RuntimeError):
    """serve_model did not compile or refused the model; the message is its output."""


def compile() -> Path:
    """The serve_model program, compiled first if need be (about a minute), cached beside the operator library."""
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    flags = [
        *("-std=c++20", "-O1", "-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    # libtorch.so holds no symbol that the program names, yet brings the registrations along.
    links = [f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    key = hashlib.sha256("\0".join([SOURCE.read_text(), torch.__version__, *flags, *links]).encode())
    program = oplib.cache_folder() / f"serve_model-{key.hexdigest()[:16]}"
    if not program.is_file():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            finished = Path(folder) / "serve_model"
            _run([*oplib.compiler(), *flags, str(SOURCE), *links, "-o", str(finished)], {})
            finished.replace(program)
    return program


def run(model_path: str | Path, inputs: dict[str, Array]) -> list[Array]:
    """Run forward of a model.pt on inputs by argument name; returns the outputs in order.

    Raises:
        ServeModelError: the model does not load, an input and an argument do not match, or forward raises.
    """
    program = compile()
    with tempfile.TemporaryDirectory() as folder:
        sources, results = Path(folder) / "inputs", Path(folder) / "outputs"
        write_tensors(sources, inputs)
        _run([str(program), str(model_path), str(sources), str(results)], {"LD_PRELOAD": str(oplib.library_path())})
        return list(read_tensors(results).values())


def write_tensors(path: Path, tensors: dict[str, Array]) -> None:
    """Write a tensor file; serve_model.cpp describes the format."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    lines = [" ".join([name, a.dtype.name, str(a.ndim), *map(str, a.shape)]) for name, a in arrays.items()]
    path.write_bytes(
        "".join(line + "\n" for line in [*lines, ""]).encode() + b"".join(a.tobytes() for a in arrays.values())
    )


def read_tensors(path: Path) -> dict[str, Array]:
    """Read a tensor file."""
    header, _, data = path.read_bytes().partition(b"\n\n")
    tensors: dict[str, Array] = {}
    for line in header.decode().splitlines():
        name, dtype, _, *sizes = line.split()
        shape = tuple(map(int, sizes))
        array = np.frombuffer(data, dtype, count=int(np.prod(shape))).reshape(shape)
        tensors[name], data = array, data[array.nbytes :]
    return tensors


def _run(command: list[str], environment: dict[str, str]) -> None:
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=280
    )
    if result.returncode != 0:
        raise ServeModelError(result.stderr.strip() or f"{command[0]} ended with {result.returncode}")
