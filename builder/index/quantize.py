"""int8 rows with one scale each, and the same rows as float16 before rounding."""

from __future__ import annotations

import torch
from torch import Tensor

CODE_MAX = 127


def quantize(rows: Tensor, whole: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise rows symmetrically.

    `rows`: `[n, P] float32`, finite, what is coded; `whole`: what they are projections of, `[n, D] float32`, or only
    its largest magnitudes `[n]`; None: `rows` are not projected. Returns `codes [n, P] int8` in [-127, 127], `scales
    [n] float32` (max abs of both / 127) and `vectors [n, D] float16`, `whole` divided by its scale: in [-127, 127]
    whatever the magnitude of the data, so that float16 neither overflows nor underflows. A zero row, and one too small
    to have a normal scale, has scale 0.
    """
    whole = rows if whole is None else whole
    # float64: dividing the smallest or largest float32 by 127 and back must not lose the row.
    largest = torch.maximum(rows.abs().amax(dim=1), whole.abs().reshape(len(rows), -1).amax(dim=1))
    scales = (largest.to(torch.float64) / CODE_MAX).to(torch.float32)
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, torch.zeros_like(scales), scales)
    return _in_units(rows, scales).round().to(torch.int8), scales, _in_units(whole, scales).to(torch.float16)


def _in_units(rows: Tensor, scales: Tensor) -> Tensor:
    """`rows [n, ...]` divided by `scales [n]`, float64, 0 where the scale is."""
    rows = rows.to(torch.float64)
    by_row = scales.to(torch.float64).reshape(-1, *[1] * (rows.dim() - 1))
    units = torch.where(by_row > 0, rows / torch.where(by_row > 0, by_row, 1.0), 0.0)
    return units.clamp(-CODE_MAX, CODE_MAX)
