"""Which interactions train, which tell when to stop, and which measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.config import Split
from builder.data.interactions import Events
from builder.data.lists import Lists, ranges


@dataclass(frozen=True)
class HeldOut:
    """What is asked of the network, one entry a user; all items as positions in the catalogue.

    `users` [H] int32; `history`: what is served, oldest first; `seen`: what must not be returned; `targets`: what
    should be, and `labels` [targets, T]: for which tasks each is positive.
    """

    users: NDArray[np.int32]
    history: Lists
    seen: Lists
    targets: Lists
    labels: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, chosen: NDArray[Any]) -> HeldOut:
        """The entries at `chosen` [M], in that order."""
        targets, _ = ranges(self.targets.offsets[chosen], self.targets.offsets[chosen + 1])
        return HeldOut(
            self.users[chosen],
            self.history.take(chosen),
            self.seen.take(chosen),
            self.targets.take(chosen),
            self.labels[targets],
        )

    def sample(self, count: int, seed: int) -> HeldOut:
        """At most `count` of the users, drawn without replacement."""
        if count >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False)))


@dataclass(frozen=True)
class Parts:
    train: Events
    validation: HeldOut
    test: HeldOut


def leave_last_out(events: Events, split: Split, seed: int) -> Parts:
    """Each user's last interaction for the test, the one before for validation; a history is what came before.

    Users of fewer than 3 interactions stay in training. Without times "last" is the order of the file, and a history
    is all else the user did outside the test.
    """
    enough = np.flatnonzero(np.diff(events.offsets) >= 3)
    validation_users = _draw(enough, split.validation_users, seed)
    last, one_before = events.offsets[enough + 1] - 1, events.offsets[validation_users + 1] - 2
    is_test, is_validation = _mask(last, len(events)), _mask(one_before, len(events))
    train = events.keep(~(is_test | is_validation))
    return Parts(
        train,
        _held_out(events, one_before, validation_users, ~(is_test | is_validation)),
        _held_out(events, last, enough, ~is_test),
    )


def fixed_file(events: Events, test: Events, split: Split, seed: int) -> Parts:
    """`test` as it is, less what the user already has in `events`; part of `events` for validation.

    Validation takes `validation_share` of the items of the validation users, at least one and never all: the last
    ones where there is a time, else drawn one by one, or with `validation_blocks` one drawn and those most like it. The
    history served in the test is all of `events`.
    """
    lengths = np.diff(events.offsets)
    users = _draw(np.flatnonzero(lengths >= 2), split.validation_users, seed)
    held = np.zeros(len(lengths), np.int64)
    held[users] = np.maximum(1, (lengths[users] * split.validation_share).astype(np.int64))
    if events.times is None:
        lottery = np.random.default_rng([seed, 2]).random(len(events))
        likeness = _likeness(events, users, lottery) if split.validation_blocks else np.zeros(len(events))
        order = np.lexsort((lottery, likeness, events.users))
    else:
        order = np.arange(len(events))
    rank_from_end = np.repeat(events.offsets[1:], lengths) - np.arange(len(events))  # 1 is the last
    is_validation = np.zeros(len(events), dtype=bool)
    is_validation[order] = rank_from_end <= np.repeat(held, lengths)
    train = events.keep(~is_validation)
    past, held_events = _lists(train), events.keep(is_validation)
    everyone = np.arange(len(lengths), dtype=np.int32)
    validation = HeldOut(everyone, past, past, _lists(held_events), held_events.labels).take(users)

    items = max(int(events.items.max(initial=0)), int(test.items.max(initial=0))) + 1
    both = np.isin(test.users * np.int64(items) + test.items, events.users * np.int64(items) + events.items)
    wanted, seen = test.keep(~both), _lists(events)
    asked = HeldOut(everyone, seen, seen, _lists(wanted), wanted.labels).take(np.flatnonzero(np.diff(wanted.offsets)))
    return Parts(train, validation, asked)


def _held_out(events: Events, targets: NDArray[np.int64], users: NDArray[np.int64], seen: NDArray[np.bool_]) -> HeldOut:
    """One target a user: `targets` [H] positions among the events; `seen` [P]: the events that are known by then."""
    known = events.keep(seen)
    known_lists = _lists(known).take(users)
    if events.times is None:
        history = known_lists
    else:
        ends = np.concatenate([[0], np.cumsum(seen)])[events.before()[targets]]  # among the known events
        flat, offsets = ranges(known.offsets[users], ends)
        history = Lists(offsets, known.items[flat])
    one_each = Lists(np.arange(len(users) + 1), events.items[targets])
    return HeldOut(users.astype(np.int32), history, known_lists, one_each, events.labels[targets])


def _draw(users: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    if count >= len(users):
        return users
    return np.sort(np.random.default_rng([seed, 1]).choice(users, count, replace=False))


def _likeness(events: Events, users: NDArray[np.int64], lottery: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P]: how like each item of `users` is to the one of them that `lottery` [P] draws, which has 2; 0 for others.

    Likeness is the cosine of who else took the two.
    """
    by_item = np.argsort(events.items, kind="stable")
    takers = Lists.group(events.items[by_item], events.users[by_item], int(events.items.max(initial=-1)) + 1)
    result = np.zeros(len(events))
    took_drawn = np.zeros(len(events.offsets) - 1)
    for user in users:
        own = slice(events.offsets[user], events.offsets[user + 1])
        drawn = int(lottery[own].argmax())
        of_drawn = takers[events.items[own][drawn]]
        took_drawn[of_drawn] = 1
        of_each = takers.take(events.items[own])
        both = np.add.reduceat(took_drawn[of_each.values], of_each.offsets[:-1]) - 1  # but this user
        result[own] = both / np.sqrt(of_each.lengths * len(of_drawn))
        result[own.start + drawn] = 2
        took_drawn[of_drawn] = 0
    return result


def _mask(positions: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    mask = np.zeros(length, dtype=bool)
    mask[positions] = True
    return mask


def _lists(events: Events) -> Lists:
    return Lists(events.offsets, events.items)
