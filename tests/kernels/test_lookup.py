"""lookup against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builder import ops

EXTREMES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**63 - 2, 2**63 - 1]


@pytest.mark.parametrize("seed", range(12))
def test_random_vocabularies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.choice([0, 1, 2, 3, 31, 1000]))
    keys = np.unique(np.concatenate([rng.integers(-(2**63), 2**63 - 1, count), rng.choice(EXTREMES, count)]))
    asked = np.concatenate([rng.permutation(keys), rng.integers(-9, 9, int(rng.choice([0, 1, 40]))), EXTREMES])
    expected = [int(np.flatnonzero(keys == key)[0]) + 1 if key in keys else 0 for key in asked]
    found = ops.lookup(torch.from_numpy(keys), torch.from_numpy(asked))
    assert found.tolist() == expected, f"seed {seed}"
