"""Run by test_emulated.py: how many kernels an operator starts, and that the host reads nothing of what it is given."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import torch
from torch import Tensor

from builder import oplib, ops
from tests.kernels.arguments import ON_GPUS, arguments, run

MOST = {"filter_rows": 2, "search": 10, "rescore": 1, "resolve_weights": 1, "select": 1, "select_diverse": 1}
KEPT: list[mmap.mmap] = []


def guarded(library: ctypes.CDLL, tensor: Tensor) -> Tensor:
    """A copy on pages of its own, which only a kernel may touch from now on."""
    size = max(tensor.numel() * tensor.element_size(), 1)
    pages = mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    KEPT.append(pages)
    copy = torch.frombuffer(pages, dtype=tensor.dtype, count=tensor.numel()).reshape(tensor.shape)
    copy.copy_(tensor)
    library.st_emulation_protect(ctypes.c_void_p(copy.data_ptr()), ctypes.c_uint64(len(pages)))
    return copy


def main() -> None:
    ops.load()
    library = ctypes.CDLL(str(oplib.library_path()))
    library.st_emulation_launches.restype = ctypes.c_int64
    for operator in ON_GPUS:
        for count, batch in ((300, 3), (300, 9)):
            given: dict[str, Any] = arguments(operator, count, batch)
            expected = run(operator, given)
            hidden = {
                name: guarded(library, value) if isinstance(value, Tensor) and value.numel() > 0 else value
                for name, value in given.items()
            }
            before = library.st_emulation_launches()
            results = run(operator, hidden)
            launches = library.st_emulation_launches() - before
            library.st_emulation_unprotect()
            assert all(map(torch.equal, results, expected)), operator
            assert 0 < launches <= MOST[operator], f"{operator}: {launches} launches for {batch} requests"
            print(operator, batch, launches)


if __name__ == "__main__":
    main()
