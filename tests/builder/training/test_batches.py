import numpy as np
import pytest
import torch

from builder.data.columns import CategoryColumn, NumberColumn
from builder.data.interactions import Events
from builder.data.lists import offsets_of
from builder.training.batches import Batches, Histories, wire_features
from client.hashing import UNKNOWN_KEY
from client.schema import Feature


def events(seed: int, *, timed: bool) -> Events:
    rng = np.random.default_rng(seed)
    users = np.sort(rng.integers(0, 8, 60))
    offsets = offsets_of(users, 8)
    times = np.concatenate([np.sort(rng.integers(0, 5, n)) for n in np.diff(offsets)])
    labels = rng.random((60, 2)) < 0.5
    return Events(offsets, rng.integers(0, 100, 60).astype(np.int32), times if timed else None, labels)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("length", [0, 3, 100])
def test_histories_do_not_know_the_target(seed: int, timed: bool, length: int) -> None:
    given = events(seed, timed=timed)
    asked = np.random.default_rng(seed).permutation(60)[:20]
    found = Histories(given, length).at(asked)
    for row, position in enumerate(asked):
        mine = [p for p in range(60) if given.users[p] == given.users[position]]
        if given.times is not None:
            past = [p for p in mine if given.times[p] < given.times[position]]
            expected = past[max(0, len(past) - length) :]
        else:
            expected = [p for p in mine[max(0, len(mine) - length) :] if p != position]
        assert found[row].tolist() == given.items[expected].tolist(), f"seed {seed}, position {position}"


COLUMNS = (
    CategoryColumn(Feature("user_id", "category", "integer"), np.arange(8) + 50),
    NumberColumn(Feature("age", "number"), np.arange(8) + 0.5),
)


def test_batch() -> None:
    given = events(0, timed=True)
    batches = Batches(given, COLUMNS, history=5, hide=0.0, hide_all=0.0)
    assert len(batches) == 60
    positions = torch.tensor([40, 3, 17])
    batch = batches.at(positions, torch.Generator().manual_seed(0)).to(torch.device("cpu"))
    users = given.users[positions.numpy()]
    assert batch.items.tolist() == given.items[positions.numpy()].tolist()
    assert batch.features[0].tolist() == (users[:, None] + 50).tolist()
    assert batch.features[1].tolist() == (users[:, None] + 0.5).tolist()
    history = Histories(given, 5).at(positions.numpy())
    assert batch.history.tolist() == history.values.tolist()
    assert batch.offsets.tolist() == history.offsets.tolist()
    assert batch.labels.tolist() == given.labels[positions.numpy()].tolist()
    assert {batch.items.dtype, batch.history.dtype, batch.offsets.dtype} == {torch.int64}


def test_hidden_inputs() -> None:
    batches = Batches(events(0, timed=True), COLUMNS, history=5, hide=0.25, hide_all=0.0)
    generator = torch.Generator().manual_seed(0)
    hidden = np.zeros(2)
    for _ in range(200):
        user_id, age = batches.at(torch.arange(60), generator).features
        hidden += [float((user_id == UNKNOWN_KEY).double().mean()), float(age.isnan().double().mean())]
    np.testing.assert_allclose(hidden / 200, 0.25, atol=0.02)
    assert COLUMNS[0].keys.min() == 50  # the columns themselves stay


def test_users_of_whom_all_is_hidden() -> None:
    batches = Batches(events(0, timed=True), COLUMNS, history=5, hide=0.0, hide_all=0.25)
    plain = Batches(events(0, timed=True), COLUMNS, history=5, hide=0.0, hide_all=0.0)
    generator = torch.Generator().manual_seed(0)
    shown = plain.at(torch.arange(60), generator)
    hidden = 0
    for _ in range(200):
        batch = batches.at(torch.arange(60), generator)
        nobody = batch.features[0].squeeze(1) == UNKNOWN_KEY
        hidden += int(nobody.sum())
        assert torch.equal(batch.features[1].isnan().squeeze(1), nobody)
        assert torch.equal(batch.items, shown.items)
        for row in range(60):
            history = batch.history[batch.offsets[row] : batch.offsets[row + 1]]
            before = shown.history[shown.offsets[row] : shown.offsets[row + 1]]
            assert history.tolist() == ([] if nobody[row] else before.tolist())
    assert hidden / 12_000 == pytest.approx(0.25, abs=0.02)


def test_wire_features() -> None:
    user_id, age = wire_features(COLUMNS, np.array([2, 0]))
    assert (user_id.dtype, age.dtype) == (np.int64, np.float32)
    assert user_id.tolist() == [[52], [50]]
    assert age.tolist() == [[2.5], [0.5]]
