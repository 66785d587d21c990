"""Training examples: a positive item, its user's features, and the history that user had then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.data.columns import CategoryColumn
from builder.data.dataset import UserColumn
from builder.data.interactions import Events
from builder.data.lists import Lists, ranges
from client.hashing import UNKNOWN_KEY


@dataclass(frozen=True)
class Batch:
    """The positives of B examples, `items [B] int64`, and the users of b of them: all, or a process's share.

    `features`: a `[b, 1]` tensor a user feature, as on the wire; `history [H] int64`: positions of all histories behind
    one another, row i's from `offsets[i]` to `offsets[i + 1]`, `offsets [b + 1] int64`; `labels [b, T] bool`: for which
    tasks each is a positive.
    """

    features: list[Tensor]
    items: Tensor
    history: Tensor
    offsets: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            [feature.to(device) for feature in self.features],
            self.items.to(device),
            self.history.to(device),
            self.offsets.to(device),
            self.labels.to(device),
        )


class Histories:
    """The history each training interaction had: the newest `length` of the user's past.

    With times the past is what came strictly before; without, all else the user did in training.
    """

    def __init__(self, events: Events, length: int) -> None:
        self._events = events
        self._has_order = events.times is not None
        users = events.users
        if events.times is not None:
            self._ends = events.before()
        else:
            self._ends = events.offsets[1:][users]
        self._starts = np.maximum(events.offsets[:-1][users], self._ends - length)

    def at(self, positions: NDArray[np.int64]) -> Lists:
        """Histories (item positions) of the interactions at `positions` [B]."""
        flat, offsets = ranges(self._starts[positions], self._ends[positions])
        if not self._has_order:
            others = flat != np.repeat(positions, np.diff(offsets))
            offsets = np.concatenate([[0], np.cumsum(others)])[offsets]
            flat = flat[others]
        return Lists(offsets, self._events.items[flat])


def wire_features(columns: Sequence[UserColumn], users: NDArray[Any]) -> list[NDArray[np.generic]]:
    """What the wire carries for `users` [B]: a [B, 1] array a feature, int64 keys or float32 numbers."""
    return [
        column.keys[users][:, None]
        if isinstance(column, CategoryColumn)
        else column.values[users][:, None].astype(np.float32)
        for column in columns
    ]


class Batches:
    """Draws batches from the training interactions.

    `hide`: share of a user's inputs that are replaced by "unknown", each by its own lot, so that the network learns
    what to make of users it knows little about. `hide_all`: share of examples that hide all, the history too, so that
    users of whom nothing is known are answered with what is popular.
    """

    def __init__(
        self, events: Events, columns: Sequence[UserColumn], *, history: int, hide: float, hide_all: float
    ) -> None:
        self._events = events
        self._users = events.users
        self._columns = columns
        self._histories = Histories(events, history)
        self._hide, self._hide_all = hide, hide_all

    def __len__(self) -> int:
        return len(self._events)

    def at(self, positions: Tensor, generator: torch.Generator, share: slice = slice(None)) -> Batch:
        """The batch of the interactions at `positions [B] int64`, with the users of `share` of them.

        `generator` decides what is hidden, the same for every share.
        """
        rows = positions.numpy()
        nobody = torch.rand(len(rows), 1, generator=generator)[share] < self._hide_all
        history = _without(self._histories.at(rows[share]), nobody.squeeze(1).numpy())
        features = [torch.from_numpy(array) for array in wire_features(self._columns, self._users[rows[share]])]
        for feature in features:
            hidden = torch.rand(len(rows), 1, generator=generator)[share] < self._hide
            hidden |= nobody
            feature[hidden] = torch.nan if feature.is_floating_point() else UNKNOWN_KEY
        return Batch(
            features,
            torch.from_numpy(self._events.items[rows].astype(np.int64)),
            torch.from_numpy(history.values.astype(np.int64)),
            torch.from_numpy(history.offsets),
            torch.from_numpy(self._events.labels[rows[share]]),
        )


def _without(lists: Lists, emptied: NDArray[np.bool_]) -> Lists:
    """`lists` with those at `emptied` [N] made empty."""
    lengths = np.where(emptied, 0, lists.lengths)
    return Lists(np.concatenate([[0], np.cumsum(lengths)]), lists.values[~emptied[lists.owners]])
