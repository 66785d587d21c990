"""From 64-bit keys to rows of embedding tables."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Vocabulary(nn.Module):
    """Sorted keys; the key at position i has slot i + 1, any other key slot 0.

    `keys` [V] int64, ascending and distinct; V may be 0.
    """

    keys: Tensor

    def __init__(self, keys: NDArray[np.int64]) -> None:
        super().__init__()
        self.register_buffer("keys", torch.from_numpy(np.ascontiguousarray(keys)))

    def __len__(self) -> int:
        """Slots, the one of unknown keys counted."""
        return self.keys.size(0) + 1

    def forward(self, keys: Tensor) -> Tensor:
        """`keys` int64 of any shape -> slots int64 of the same shape."""
        if torch.jit.is_scripting() and not keys.is_cuda:  # type: ignore[attr-defined]
            slots: Tensor = torch.ops.silvertriton.lookup(self.keys, keys.reshape(-1))
            return slots.view(keys.size())
        if self.keys.size(0) == 0:
            return torch.zeros_like(keys)
        position = torch.searchsorted(self.keys, keys.contiguous()).clamp(max=self.keys.size(0) - 1)
        return torch.where(self.keys[position] == keys, position + 1, 0)


def vocabulary_of(keys: NDArray[np.int64], unknown: int) -> Vocabulary:
    """The vocabulary of the distinct `keys` but `unknown`."""
    distinct = np.unique(keys)
    return Vocabulary(distinct[distinct != unknown])
