"""All that training reads: catalogue, users, and the interactions in their parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from builder.config import USER_ID, Config, Users
from builder.data import values
from builder.data.catalogue import Catalogue, read_catalogue
from builder.data.columns import CategoryColumn, NumberColumn
from builder.data.interactions import Events, RawEvents, read_interactions, sort_events
from builder.data.splits import HeldOut, fixed_file, leave_last_out
from builder.data.tables import read_table
from builder.errors import ConfigError, DataError
from client._values import FLOAT32_MAX
from client.hashing import UNKNOWN_KEY
from client.schema import Feature

UserColumn = CategoryColumn | NumberColumn


@dataclass(frozen=True)
class Dataset:
    """`user_keys` [U] int64 ascending; `user_columns` in the order of the schema, all U long, `user_id` first.

    `notes`: what was left out of the files, in words, for the person who builds.
    """

    catalogue: Catalogue
    user_keys: NDArray[np.int64]
    user_columns: tuple[UserColumn, ...]
    train: Events
    validation: HeldOut
    test: HeldOut
    notes: tuple[str, ...]

    @property
    def user_features(self) -> tuple[Feature, ...]:
        return tuple(column.feature for column in self.user_columns)


def read_dataset(config: Config) -> Dataset:
    """Read all files of a configuration with interactions. Raises DataError as the readers do."""
    interactions = config.data.interactions
    if interactions is None:
        raise ConfigError("data.interactions is missing: there is nothing to train on")
    catalogue = read_catalogue(config.items)
    tasks = dict(zip(config.tasks, config.conditions, strict=True))
    raw = read_interactions(interactions, interactions.path, catalogue, tasks)
    test_raw: RawEvents | None = None
    keys = np.unique(raw.users)
    if config.split.test is not None:
        test_raw = read_interactions(interactions, config.split.test, catalogue, tasks)
        if test_raw.user_values != raw.user_values:
            raise DataError(
                f"user ids are {test_raw.user_values}s, in {interactions.path} {raw.user_values}s",
                where=str(config.split.test),
            )
        keys = np.union1d(keys, test_raw.users)
    events, repeats = sort_events(raw, keys, len(catalogue))
    notes = list(raw.notes)
    if repeats:
        notes.append(f"{repeats:,} repeated interactions of one user and item in {interactions.path.name}: first kept")
    if test_raw is None:
        parts = leave_last_out(events, config.split, config.training.seed)
    else:
        test, _ = sort_events(test_raw, keys, len(catalogue))
        notes += test_raw.notes
        parts = fixed_file(events, test, config.split, config.training.seed)
    columns: list[UserColumn] = []
    if config.network.user_id:
        columns.append(CategoryColumn(Feature(USER_ID, "category", raw.user_values), keys))
    if config.data.users is not None:
        found, left_out = _read_users(config.data.users, raw, keys)
        columns += found
        notes += left_out
    return Dataset(catalogue, keys, tuple(columns), parts.train, parts.validation, parts.test, tuple(notes))


def _read_users(users: Users, raw: RawEvents, keys: NDArray[np.int64]) -> tuple[list[UserColumn], list[str]]:
    """Feature columns of the users `keys` [U], and notes on users without a row."""
    if users.path is None or users.id is None:
        raise ConfigError("data.users needs path and id")
    table = read_table(users.path, [users.id, *(feature.source for feature in users.features)])
    where = f"{users.path}, column {users.id!r}"
    ids = values.id_keys(values.column(table, users.id), where)
    if ids.values != raw.user_values:
        raise DataError(f"user ids are {ids.values}s, in the interactions {raw.user_values}s", where=where)
    order = np.argsort(ids.keys, kind="stable")
    ascending = ids.keys[order]
    same = np.flatnonzero(np.diff(ascending) == 0)
    if len(same):
        raise DataError(f"one user stands in rows {order[same[0]]} and {order[same[0] + 1]}", where=where)
    if not len(ascending):
        raise DataError("holds no users", where=str(users.path))
    at = np.searchsorted(ascending, keys).clip(max=len(ascending) - 1)
    missing = ascending[at] != keys
    rows = order[at]
    columns: list[UserColumn] = []
    for feature in users.features:
        array = values.column(table, feature.source)
        place = f"{users.path}, column {feature.source!r}"
        if feature.kind == "category":
            found = values.category_keys(array, place)
            known = np.where(missing, UNKNOWN_KEY, found.keys[rows])
            columns.append(CategoryColumn(Feature(feature.name, feature.kind, found.values), known))
        else:
            found_numbers = values.numbers(array, place)
            beyond = np.abs(found_numbers) > FLOAT32_MAX
            if beyond.any():
                row = int(np.argmax(beyond))
                raise DataError(
                    f"row {row}, {found_numbers[row]:g}, is beyond float32, which requests carry",
                    where=place,
                    remedy="Leave it empty or clip it.",
                )
            numbers = np.where(missing, np.nan, found_numbers[rows])
            columns.append(NumberColumn(Feature(feature.name, feature.kind), numbers))
    count = int(missing.sum())
    return columns, [f"{count:,} users are not in {users.path.name}: their features are unknown"] if count else []
