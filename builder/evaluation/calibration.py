"""How far predicted probabilities are from what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """By bins of equal size, ascending in what was predicted: mean prediction, share that came true, and how many.

    `ece`: expected calibration error, the mean over predictions of the difference between both in their bin (Naeini et
    al. 2015, AAAI; bins of equal size as in Nixon et al. 2019, arXiv:1904.01685).
    """

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    count: tuple[int, ...]
    ece: float


def reliability(predicted: NDArray[Any], came_true: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """`predicted` [n] probabilities, `came_true` [n]. Raises ValueError for none."""
    if not len(predicted):
        raise ValueError("no predictions to measure")
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    means = np.array([predicted[part].mean(dtype=np.float64) for part in parts])
    shares = np.array([came_true[part].mean() for part in parts])
    counts = np.array([len(part) for part in parts])
    ece = float((counts * np.abs(means - shares)).sum() / counts.sum())
    return Reliability(tuple(means.tolist()), tuple(shares.tolist()), tuple(counts.tolist()), ece)
