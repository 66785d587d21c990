"""The graph of items against a slow reading of its definition."""

from __future__ import annotations

import numpy as np
import pytest

from builder.data.interactions import Events
from builder.data.lists import offsets_of
from builder.training import neighbours
from builder.training.neighbours import item_neighbours

USERS, ITEMS = 40, 30


def events(seed: int) -> Events:
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(USERS), rng.integers(0, 8, USERS))
    items = np.concatenate([rng.choice(ITEMS - 1, (users == u).sum(), replace=False) for u in range(USERS)])
    return Events(offsets_of(users, USERS), items.astype(np.int32), None, np.ones((len(items), 1), bool))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_once", [1, 200, 20_000_000])
def test_chances_of_walks(seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ENTRIES_AT_ONCE", at_once)
    given = events(seed)
    taken = np.zeros((USERS, ITEMS))
    taken[given.users, given.items] = 1
    positions, weights = item_neighbours(given, ITEMS, 5)
    assert positions.shape == weights.shape == (ITEMS, 5)
    of_users, of_items = taken.sum(1), taken.sum(0)
    mean_user, mean_item = of_users[of_users > 0].mean(), of_items[of_items > 0].mean()
    shares = 1.25 * mean_user / (of_users + 0.25 * mean_user)
    for i in range(ITEMS):
        both = (taken[:, i] * shares) @ taken
        chances = both / (of_items[i] + 0.25 * mean_item)
        order = [j for j in sorted(range(ITEMS), key=lambda j: (-np.float32(chances[j]), j)) if j != i and both[j] > 0][
            :5
        ]
        kept = positions[i][positions[i] >= 0].tolist()
        np.testing.assert_allclose(weights[i, : len(kept)], chances[kept], rtol=1e-5)
        np.testing.assert_allclose(weights[i, : len(kept)], chances[order], rtol=1e-5)  # ties may differ by rounding
        assert len(kept) == len(order)
        assert (weights[i, len(kept) :] == 0).all()


def test_no_wider_than_needed() -> None:
    one = Events(np.array([0, 2]), np.array([0, 1], np.int32), None, np.ones((2, 1), bool))
    positions, weights = item_neighbours(one, 3, 10)
    assert positions.tolist() == [[1], [0], [-1]]
    np.testing.assert_allclose(weights, [[1 / 1.25], [1 / 1.25], [0.0]], rtol=1e-6)
    assert item_neighbours(one, 3, 0)[0].shape == (3, 0)
