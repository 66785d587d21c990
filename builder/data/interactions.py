"""The positive interactions of a file, as positions of users and items, in each user's order of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from builder.condition import Condition
from builder.config import Interactions
from builder.data import values
from builder.data.catalogue import Catalogue
from builder.data.lists import offsets_of
from builder.data.tables import read_table
from builder.errors import DataError
from client.schema import Values


@dataclass(frozen=True)
class RawEvents:
    """Positive interactions in the order of the file, for items of the catalogue.

    `users` [P] int64 keys, written in the file as `user_values`; `items` [P] int32 positions in the catalogue; `times`
    [P] numbers that order them, or None; `labels` [P, T]: for which tasks each is positive, one at least. `notes`:
    what was left out, in words.
    """

    users: NDArray[np.int64]
    user_values: Values
    items: NDArray[np.int32]
    times: NDArray[Any] | None
    labels: NDArray[np.bool_]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Events:
    """Interactions sorted by user and time, each pair of user and item once.

    `offsets` [U + 1] int64: user u owns entries offsets[u] .. offsets[u + 1] of `items` [P] int32 (positions in the
    catalogue), of `times` [P], which is None where there is no order, and of `labels` [P, T].
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[Any] | None
    labels: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def users(self) -> NDArray[np.int32]:
        """The user of each interaction, [P]."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), np.diff(self.offsets))

    def keep(self, kept: NDArray[np.bool_]) -> Events:
        """The interactions where `kept` [P] is true."""
        times = None if self.times is None else self.times[kept]
        offsets = offsets_of(self.users[kept], len(self.offsets) - 1)
        return Events(offsets, self.items[kept], times, self.labels[kept])

    def before(self) -> NDArray[np.int64]:
        """[P]: the end of what came before each interaction, so that p's past is offsets[user] .. before[p].

        Interactions of the same time are not each other's past. Needs times.
        """
        if self.times is None:
            raise ValueError("interactions without a time have no past")
        first = np.ones(len(self), dtype=bool)
        first[1:] = (np.diff(self.users) != 0) | (np.diff(self.times) != 0)
        return np.maximum.accumulate(np.where(first, np.arange(len(self)), 0))


def read_interactions(
    config: Interactions, path: Path, catalogue: Catalogue, tasks: Mapping[str, Condition]
) -> RawEvents:
    """Read `path`, whose columns `config` names. Raises DataError: unreadable, missing ids, nothing positive left."""
    columns = [config.user, config.item, *([config.time] if config.time else [])]
    labelled = list(dict.fromkeys(condition.column for condition in tasks.values() if condition.column is not None))
    table = read_table(path, list(dict.fromkeys([*columns, *labelled])))
    notes = []
    labels = _labels(table, path, tasks)
    positive = labels.any(1)
    if not positive.all():
        conditions = ", ".join(str(condition) for condition in tasks.values())
        notes.append(
            f"{len(table) - int(positive.sum()):,} of {len(table):,} interactions of {path.name} are positive for no "
            f"task ({conditions})"
        )
        table, labels = table.filter(pa.array(positive)), labels[positive]
    found = catalogue.find(values.item_ids(values.column(table, config.item), f"{path}, column {config.item!r}"))
    known = found >= 0
    if not known.all():
        missing = table.column(config.item).filter(pa.array(~known))
        notes.append(
            f"{len(missing):,} interactions of {path.name} dropped: {pc.count_distinct(missing).as_py():,} items are "
            f"not in the catalogue, for example {missing[0].as_py()}"
        )
        table, found, labels = table.filter(pa.array(known)), found[known], labels[known]
    if not len(table):
        raise DataError(
            "no positive interaction with an item of the catalogue", where=str(path), remedy="\n  ".join(notes)
        )
    for name, positives in zip(tasks, labels.T, strict=True):
        if not positives.any():
            raise DataError(
                f"no interaction with an item of the catalogue is positive for task {name!r} ({tasks[name]})",
                where=str(path),
                remedy="Correct its condition under tasks, or leave the task out: there is nothing to learn.",
            )
    users = values.id_keys(values.column(table, config.user), f"{path}, column {config.user!r}")
    times = None
    if config.time is not None:
        times = values.order_times(values.column(table, config.time), f"{path}, column {config.time!r}")
    return RawEvents(users.keys, users.values, found.astype(np.int32), times, labels, tuple(notes))


def _labels(table: pa.Table, path: Path, tasks: Mapping[str, Condition]) -> NDArray[np.bool_]:
    """[P, T]: for which tasks each row of a table is positive."""
    labels = np.ones((len(table), len(tasks)), dtype=np.bool_)
    for t, (name, condition) in enumerate(tasks.items()):
        if condition.column is not None:
            where, of = f"{path}, column {condition.column!r}", f"task {name!r} ({condition})"
            labels[:, t] = condition.holds(values.numbers(values.column(table, condition.column), where, of=of))
    return labels


def sort_events(raw: RawEvents, user_keys: NDArray[np.int64], items: int) -> tuple[Events, int]:
    """Sort by user (position in `user_keys`, ascending and holding all users) and time; ties keep the file's order.

    Of repeats of one user and item the first stays, positive for what any of them is, because a served user is never
    shown an item again. Returns the events and the number of repeats dropped. `items`: size of the catalogue.
    """
    users = np.searchsorted(user_keys, raw.users)
    order = np.argsort(users, kind="stable") if raw.times is None else np.lexsort((raw.times, users))
    pairs = users[order] * np.int64(items) + raw.items[order]
    _, first, pair = np.unique(pairs, return_index=True, return_inverse=True)
    labels = np.zeros((len(first), raw.labels.shape[1]), dtype=np.bool_)
    np.logical_or.at(labels, pair, raw.labels[order])
    kept = np.argsort(first)
    order, labels = order[first[kept]], labels[kept]
    times = None if raw.times is None else raw.times[order]
    events = Events(offsets_of(users[order], len(user_keys)), raw.items[order], times, labels)
    return events, len(raw.items) - len(order)
