"""Item vectors that need not fit into memory as float32."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class VectorSource(Protocol):
    """What index construction reads: rows `[n, D]` of floats by slice or integer array `[n]`. A NumPy array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: Any, /) -> Any: ...


@dataclass(frozen=True)
class Vectors:
    """Rows of an array, possibly a memory map, in another order; reads only what is indexed and keeps none of it.

    `base` [P, D] floats, `rows` [N] int64 or None for `base` as it stands. Indexing gives `[n, D] float32`, a copy.
    """

    base: NDArray[np.floating[Any]]
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.base) if self.rows is None else len(self.rows)

    def __getitem__(self, at: Any, /) -> NDArray[np.float32]:
        copy = np.array(self.base[at if self.rows is None else self.rows[at]], dtype=np.float32)
        if isinstance(self.base, np.memmap):
            # Pages that were read would count as memory of this process until the kernel wants them back; the page
            # cache keeps them anyway.
            self.base._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        return copy
