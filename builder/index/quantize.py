"""int8 rows with one scale each, and the same rows as float16 before rounding."""

from __future__ import annotations

import torch
from torch import Tensor

CODE_MAX = 127


def quantize(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise rows symmetrically.

    `rows`: `[n, D] float32`, finite. Returns `codes [n, D] int8` in [-127, 127], `scales [n] float32` (max abs / 127)
    and `vectors [n, D] float16`, the row divided by its scale: in [-127, 127] whatever the magnitude of the data, so
    that float16 neither overflows nor underflows. A zero row, and one too small to have a normal scale, has scale 0.
    """
    # float64: dividing the smallest or largest float32 by 127 and back must not lose the row.
    wide = rows.to(torch.float64)
    scales = (wide.abs().amax(dim=1) / CODE_MAX).to(torch.float32)
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, torch.zeros_like(scales), scales)
    safe = torch.where(scales > 0, scales, torch.ones_like(scales)).to(torch.float64)
    unit = torch.where((scales > 0)[:, None], wide / safe[:, None], torch.zeros_like(wide))
    unit = unit.clamp(-CODE_MAX, CODE_MAX)
    return unit.round().to(torch.int8), scales, unit.to(torch.float16)
