"""Lists of different lengths in two flat arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Lists:
    """List i is `values[offsets[i] : offsets[i + 1]]`. `offsets` [N + 1] int64, `values` [offsets[-1]] integers."""

    offsets: NDArray[np.int64]
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def owners(self) -> NDArray[np.int64]:
        """The list each value belongs to, [offsets[-1]]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, indices: NDArray[Any]) -> Lists:
        """The lists at `indices` [M], in that order."""
        flat, offsets = ranges(self.offsets[indices], self.offsets[np.asarray(indices) + 1])
        return Lists(offsets, self.values[flat])

    def padded(self, length: int) -> NDArray[Any]:
        """[N, length]: the last `length` values of each list, at the right; -1 at the left."""
        starts = np.maximum(self.offsets[:-1], self.offsets[1:] - length)
        flat, offsets = ranges(starts, self.offsets[1:])
        result = np.full((len(self), length), -1, self.values.dtype)
        taken = np.diff(offsets)
        columns = length - np.repeat(offsets[1:], taken) + np.arange(len(flat))
        result[np.repeat(np.arange(len(self)), taken), columns] = self.values[flat]
        return result

    @classmethod
    def group(cls, owners: NDArray[Any], values: NDArray[Any], count: int) -> Lists:
        """Lists of `count` owners from pairs sorted by owner."""
        return cls(offsets_of(owners, count), values)


def offsets_of(owners: NDArray[Any], count: int) -> NDArray[np.int64]:
    """[count + 1] int64: where each owner's entries start in `owners` [P], which is sorted."""
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
    return offsets


def ranges(starts: NDArray[Any], ends: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers from `starts[i]` to `ends[i]` - 1 behind one another, and their offsets [N + 1]."""
    lengths = np.subtract(ends, starts, dtype=np.int64)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    shifts: NDArray[np.int64] = np.subtract(starts, offsets[:-1], dtype=np.int64)
    return np.repeat(shifts, lengths) + np.arange(offsets[-1]), offsets
