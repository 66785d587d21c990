"""Splits against a slow reading of their definition, on random interactions."""

import numpy as np
import pytest

from builder.config import Split
from builder.data.interactions import Events
from builder.data.lists import offsets_of
from builder.data.splits import HeldOut, fixed_file, leave_last_out

USERS, ITEMS = 30, 25


def events(seed: int, *, timed: bool) -> Events:
    rng = np.random.default_rng(seed)
    users, items, times = [], [], []
    for user in range(USERS):
        count = int(rng.integers(0, 9))
        users += [user] * count
        items += list(rng.choice(ITEMS, count, replace=False))
        times += sorted(rng.integers(0, 6, count))  # many at the same time
    # Labels that tell which interaction one is: the bits of its item.
    labels = (np.array(items)[:, None] >> np.arange(5)) % 2 == 1
    offsets = offsets_of(np.array(users), USERS)
    return Events(offsets, np.array(items, np.int32), np.array(times) if timed else None, labels)


def of(held_out: HeldOut, user: int) -> tuple[list[int], list[int], list[int]]:
    """History, seen and targets of a user."""
    at = held_out.users.tolist().index(user)
    labels = held_out.labels[held_out.targets.offsets[at] : held_out.targets.offsets[at + 1]]
    assert (labels @ (1 << np.arange(5))).tolist() == held_out.targets[at].tolist()
    return held_out.history[at].tolist(), held_out.seen[at].tolist(), held_out.targets[at].tolist()


def rows(found: Events, user: int) -> list[int]:
    return found.items[found.offsets[user] : found.offsets[user + 1]].tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("timed", [True, False])
def test_leave_last_out(seed: int, timed: bool) -> None:
    all_events = events(seed, timed=timed)
    parts = leave_last_out(all_events, Split(), seed)
    for user in range(USERS):
        items = rows(all_events, user)
        if len(items) < 3:
            assert rows(parts.train, user) == items
            assert user not in parts.test.users
            assert user not in parts.validation.users
            continue
        *past, before_last, last = items
        assert rows(parts.train, user) == past
        times = [0] * len(items)
        if all_events.times is not None:
            times = all_events.times[all_events.offsets[user] : all_events.offsets[user + 1]].tolist()
            history = [item for item, time in zip(items, times, strict=True) if time < times[-1]]
            assert of(parts.test, user) == (history, [*past, before_last], [last])
            history = [item for item, time in zip(items, times, strict=True) if time < times[-2]]
            assert of(parts.validation, user) == (history, past, [before_last])
        else:
            assert of(parts.test, user) == ([*past, before_last], [*past, before_last], [last])
            assert of(parts.validation, user) == (past, past, [before_last])


def test_validation_users_are_drawn() -> None:
    all_events = events(1, timed=True)
    parts = leave_last_out(all_events, Split(validation_users=4), 0)
    assert len(parts.validation) == 4
    others = set(parts.test.users.tolist()) - set(parts.validation.users.tolist())
    assert all(rows(parts.train, user) == rows(all_events, user)[:-1] for user in others)
    again = leave_last_out(all_events, Split(validation_users=4), 0)
    assert again.validation.users.tolist() == parts.validation.users.tolist()
    other = leave_last_out(all_events, Split(validation_users=4), 1)
    assert other.validation.users.tolist() != parts.validation.users.tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("timed", [True, False])
def test_fixed_file(seed: int, timed: bool) -> None:
    given, test = events(seed, timed=timed), events(seed + 100, timed=timed)
    split = Split.model_construct(kind="file", validation_users=12, validation_share=0.4)
    parts = fixed_file(given, test, split, seed)
    assert len(parts.validation) == 12
    for user in range(USERS):
        items = rows(given, user)
        wanted = [item for item in rows(test, user) if item not in items]
        if wanted:
            assert of(parts.test, user) == (items, items, wanted)
        else:
            assert user not in parts.test.users
        if user in parts.validation.users:
            history, seen, targets = of(parts.validation, user)
            count = max(1, int(len(items) * 0.4))
            assert len(targets) == count
            assert sorted(history + targets) == sorted(items)
            assert history == seen == rows(parts.train, user)
            if timed:
                assert targets == items[-count:]
        else:
            assert rows(parts.train, user) == items


def test_untimed_validation_is_drawn_by_the_seed() -> None:
    given = events(3, timed=False)
    split = Split.model_construct(kind="file", validation_users=100, validation_share=0.4)
    one, same, other = (fixed_file(given, given, split, seed).validation.targets for seed in (0, 0, 1))
    assert one.values.tolist() == same.values.tolist()
    assert one.values.tolist() != other.values.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_what_others_take_together(seed: int) -> None:
    given = events(seed, timed=False)
    split = Split.model_construct(kind="file", validation_users=100, validation_share=0.4, validation_blocks=True)
    parts = fixed_file(given, given, split, seed)
    apart = fixed_file(given, given, split.model_copy(update={"validation_blocks": False}), seed)
    lottery = np.random.default_rng([seed, 2]).random(len(given))
    takers = {item: {user for user in range(USERS) if item in rows(given, user)} for item in given.items.tolist()}
    compared = 0
    for user in parts.validation.users.tolist():
        items = rows(given, user)
        history, _, targets = of(parts.validation, user)
        assert len(targets) == len(of(apart.validation, user)[2])
        assert sorted(history + targets) == sorted(items)
        drawn = items[int(lottery[given.offsets[user] : given.offsets[user + 1]].argmax())]
        assert drawn in targets
        likeness = {
            item: (len(takers[item] & takers[drawn]) - 1) / np.sqrt(len(takers[item]) * len(takers[drawn]))
            for item in items
        }
        others = [likeness[item] for item in targets if item != drawn]
        if others:
            assert min(others) >= max(likeness[item] for item in history) - 1e-12
            compared += 1
    assert compared > 5


def test_sample() -> None:
    held_out = leave_last_out(events(0, timed=True), Split(), 0).test
    sample = held_out.sample(5, seed=1)
    assert len(sample) == 5
    for user in sample.users.tolist():
        assert of(sample, user) == of(held_out, user)
    assert held_out.sample(100, seed=1) is held_out
