"""Plugins of TensorRT, run in the emulation as TensorRT would run them, from the definitions that it is given."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from builder import oplib
from builder.export.plugins import PLUGINS, Plugin, as_weights
from tests.kernels.cuda.emulated import FLAGS, FOLDER, WARNINGS

GUARD = 64  # int64 behind every output, which nothing may write
CANARY = 0x5A5A5A5A5A5A5A5A


@cache
def library() -> ctypes.CDLL:
    """The plugins' kernels, compiled first if they are not in the cache."""
    digest = hashlib.sha256(repr((oplib.compiler(), oplib.COMPILE_FLAGS)).encode())
    sources = [*oplib.kernel_files(), *sorted(oplib.PLUGINS.iterdir()), *sorted(FOLDER.glob("*.cpp"))]
    for path in [*sources, FOLDER / "emulation.h"]:
        digest.update(path.read_bytes())
    path = oplib.cache_folder() / f"plugins-{digest.hexdigest()[:16]}" / "libplugins.so"
    if not path.is_file():
        command = [*oplib.compiler(), *oplib.COMPILE_FLAGS]
        compile_one = [*command, *FLAGS, *WARNINGS, f"-I{oplib.KERNELS / 'include'}", "-c"]
        files = [(FOLDER / name, compile_one) for name in ("emulation.cpp", "plugins.cpp")]
        oplib.compile_library(path, files, [*command, "-shared"], [])
    loaded = ctypes.CDLL(str(path))
    loaded.st_plugin.restype = ctypes.c_bool
    loaded.st_plugin_scratch.restype = ctypes.c_int64
    return loaded


def run(operator: str, given: Mapping[str, Any]) -> list[Tensor]:
    """The results of an operator, from the plugin of the same one. `given`: what the operator takes."""
    plugin = PLUGINS[operator]
    tensors = {name: given[name] for name in plugin.inputs}
    shapes = {name: tuple(tensors[name].shape) for name in plugin.weights}
    numbers = plugin.numbers(shapes, given)
    inputs = [
        torch.from_numpy(as_weights(tensor.numpy()).copy()) if name in plugin.weights else tensor.contiguous()
        for name, tensor in tensors.items()
    ]
    if numbers:
        inputs.append(torch.tensor(list(numbers.values())))
    return start(plugin, numbers, inputs)[: len(plugin.outputs)]


def start(plugin: Plugin, numbers: Mapping[str, int], inputs: Sequence[Tensor]) -> list[Tensor]:
    """All outputs of a plugin. `inputs`: as a plan has them."""
    assert [str(tensor.dtype).removeprefix("torch.") for tensor in inputs] == plugin.types(numbers)
    names = list(plugin.inputs)
    sizes = {name: inputs[names.index(of)].shape[axis] for name, (of, axis) in plugin.sizes.items()}
    results = plugin.results({**sizes, **numbers})
    outputs = [torch.full((_words_of(kind, shape) + GUARD,), CANARY) for kind, shape in results]
    arguments = [*(tensor.data_ptr() for tensor in inputs), *sizes.values(), *(out.data_ptr() for out in outputs)]
    passed = (ctypes.c_int64 * len(arguments))(*arguments)
    blocks = plugin.grid({**sizes, **numbers})
    known = library().st_plugin(plugin.entry.encode(), passed, ctypes.c_int64(len(arguments)), blocks, plugin.threads)
    assert known, f"{plugin.entry} takes other arguments than {len(arguments)}"
    for (kind, shape), output in zip(results, outputs, strict=True):
        assert (output[-GUARD:] == CANARY).all(), f"{plugin.entry} writes behind an output of {kind} {shape}"
    return [_tensor(output, kind, shape) for (kind, shape), output in zip(results, outputs, strict=True)]


def scratch_bytes(plugin: Plugin, sizes: Mapping[str, int], numbers: Mapping[str, int]) -> int:
    """Of scratch memory that the kernel lays out."""
    given = [(ctypes.c_int64 * max(len(of), 1))(*of.values()) for of in (sizes, numbers)]
    return int(library().st_plugin_scratch(plugin.operator.encode(), *given))


def _words_of(kind: str, shape: tuple[int, ...]) -> int:
    return (int(np.prod(shape)) * np.dtype(kind).itemsize + 7) // 8


def _tensor(words: Tensor, kind: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(words.numpy().view(kind)[: int(np.prod(shape))].reshape(shape).copy())


def source(operator: str) -> Path:
    return oplib.PLUGINS / f"{operator}.cu"
