"""Towers that begin where the closed form ends: a truncated singular value decomposition of who took what.

As in PureSVD (Cremonesi et al. 2010, doi:10.1145/1864708.1864721) a user is folded in from the items of the history. Of
the scaled interactions (builder/training/graph.py) the leading singular vectors are the ideal low-pass filter of GF-CF
(Shen et al. 2021, doi:10.1145/3459637.3482264).

Letters: U users, N items, D dims, K dims and a few more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from builder.data.interactions import Events
from builder.errors import BuilderError
from builder.network.towers import ItemTower, UserTower
from builder.training.graph import interaction_graph

ITERATIONS = 3  # of the subspace; results after one more are the same to three digits
EXTRA = 32  # dims beside those asked for, which make the last of them converge
NOBODY = 1e-3  # length of the mean user beside that of a pooled history: it decides only where there is nothing else


@dataclass(frozen=True)
class Spectral:
    """`history [N, D] float32`: what an item of a history adds to a user; `items [N, D] float32`: items as results,
    whose root mean square length is 1. Items that nobody took have zeros. The product of a user and an item orders."""

    history: NDArray[np.float32]
    items: NDArray[np.float32]


def decompose(events: Events, count: int, *, dims: int, seed: int) -> Spectral:
    """From the interactions with `count` items. Raises BuilderError for more `dims` than users or items."""
    known = min(int((np.diff(events.offsets) > 0).sum()), len(np.unique(events.items)))
    if dims > known:
        raise BuilderError(
            f"got {dims}, expected at most {known:,}: a spectral start needs as many users and items with interactions",
            where="network.dims",
            remedy="Lower it, or set training.start: random.",
        )
    graph = interaction_graph(events, count)
    directions = right_singular_vectors(graph.scaled, dims, seed=seed)
    weights = np.sqrt(graph.items)[:, None]
    history, items = (directions / weights).astype(np.float32), (directions * weights).astype(np.float32)
    length = float(np.sqrt(np.square(items, dtype=np.float64).sum() / len(np.unique(events.items))))
    return Spectral(history * np.float32(length), items / np.float32(length))


def right_singular_vectors(matrix: Any, dims: int, *, seed: int) -> NDArray[np.float32]:
    """The `dims` leading ones of a sparse `matrix` [U, N] as columns, [N, D] float32; zeros past the matrix's rank.

    Randomised subspace iteration (Halko et al. 2011, doi:10.1137/090771806).
    """
    width = min(dims + EXTRA, *matrix.shape)
    drawn = np.random.default_rng(seed).standard_normal((matrix.shape[1], width), dtype=np.float32)
    basis, _ = np.linalg.qr(matrix @ drawn)  # [U, K]
    for _ in range(ITERATIONS):
        other, _ = np.linalg.qr(matrix.T @ basis)  # [N, K]
        basis, _ = np.linalg.qr(matrix @ other)
    rest = matrix.T @ basis  # [N, K]: the matrix in K dims, transposed
    squares, turn = np.linalg.eigh((rest.T @ rest).astype(np.float64))
    values = np.sqrt(np.maximum(squares[::-1][:dims], 0))
    vectors = rest @ turn[:, ::-1][:, :dims].astype(np.float32)
    real = values > values.max(initial=0) * 1e-4  # below, the squares are rounding
    return np.asarray(np.where(real, vectors / np.where(real, values, 1), 0), dtype=np.float32)


@torch.no_grad()
def start_towers(user_tower: UserTower, item_tower: ItemTower, events: Events, *, seed: int) -> None:
    """Set the towers to the closed form of `events`: what they know of features adds nothing until it is trained.

    A user of whom nothing is known is the mean user. Raises BuilderError as `decompose`.
    """
    found = decompose(events, len(item_tower), dims=user_tower.history.embedding_dim, seed=seed)
    for tower, rows in ((user_tower.history, found.history), (item_tower.ids, found.items)):
        tower.weight[0] = 0.0
        tower.weight[1:] = torch.from_numpy(rows)
    for encoders in (user_tower.encoders, item_tower.encoders):
        for parameter in encoders.parameters():
            parameter.zero_()
    popularity = np.bincount(events.items, minlength=len(item_tower)).astype(np.float32)
    mean = torch.from_numpy(popularity @ found.history) / len(events)
    user_tower.project.weight.copy_(torch.eye(len(mean)))
    user_tower.project.bias.copy_(mean * NOBODY)
