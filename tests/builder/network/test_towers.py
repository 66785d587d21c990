import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from builder.data.columns import CategoryColumn, NumberColumn, TagsColumn
from builder.network import towers
from builder.network.history import AttentionPooling
from builder.network.towers import ItemTower, NumberEncoder, UserTower
from client.hashing import UNKNOWN_KEY
from client.schema import Feature

IDS = np.array([10, 20, 30, 40])
USER_COLUMNS = (
    CategoryColumn(Feature("user_id", "category", "integer"), np.array([5, 6, 7])),
    NumberColumn(Feature("age", "number"), np.array([20.0, 40.0, np.nan])),
)
LENGTH = 3


POOLINGS = ("mean", "attention")


def user_tower(pooling: str = "mean", seed: int = 0) -> UserTower:
    torch.manual_seed(seed)
    attention = AttentionPooling(4, LENGTH, blocks=2, heads=2, dropout=0.5) if pooling == "attention" else None
    tower = UserTower(USER_COLUMNS, IDS, dims=4, history_length=LENGTH, pooling=attention).eval()
    torch.nn.init.normal_(tower.project.weight)
    torch.nn.init.normal_(tower.project.bias)
    return tower


def slow_user(tower: UserTower, user_id: int, age: float, history: list[int]) -> Tensor:
    """One user by the definition in the docstring."""
    newest = [item for item in history if item >= 0][-LENGTH:]
    slots = [IDS.tolist().index(item) + 1 for item in newest if item in IDS]
    if isinstance(tower.pooling, AttentionPooling):  # its formula has a slow reference in test_history.py
        pooled = tower.pooling(torch.tensor([[0, *slots]]), tower.history.weight)[0]
    else:
        pooled = tower.history.weight[slots].mean(0) if slots else torch.zeros(4)
    category, number = tower.encoders
    known = [5, 6, 7]
    slot = known.index(user_id) + 1 if user_id in known else 0
    standard = (age - 30) / 10  # mean and standard deviation of the known ages
    inputs = torch.tensor([0.0, 1.0] if np.isnan(age) else [max(-5.0, min(5.0, standard)), 0.0])
    vector = tower.project.weight @ pooled + tower.project.bias
    vector = vector + category.embedding.weight[slot] + number.project.weight @ inputs
    return vector / vector.norm()


CASES = [
    (5, 20.0, [10, 20, 30, 40]),
    (7, 40.0, [-1, -1, 20, 40]),
    (6, float("nan"), [40, 10, -1, -1]),
    (99, 35.0, [30, 99, 40, 98]),  # ids that are not in the catalogue count among the newest, but are left out
    (UNKNOWN_KEY, float("nan"), [-1, -1, -1, -1]),
    (5, 1e30, [10, -1, 20, -1]),
]


def inputs(cases: list[tuple[int, float, list[int]]]) -> tuple[list[Tensor], Tensor]:
    users, ages, histories = zip(*cases, strict=True)
    return [torch.tensor(users)[:, None], torch.tensor(ages)[:, None]], torch.tensor(histories)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_user_tower_against_its_definition(pooling: str) -> None:
    tower = user_tower(pooling)
    found = tower(*inputs(CASES))
    assert found.dtype == torch.float32
    for row, case in zip(found, CASES, strict=True):
        torch.testing.assert_close(row, slow_user(tower, *case), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_user_tower_scripted(pooling: str) -> None:
    tower = user_tower(pooling)
    torch.testing.assert_close(torch.jit.script(tower)(*inputs(CASES)), tower(*inputs(CASES)))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_user_tower_holds_no_device(pooling: str) -> None:
    """Tensors of the meta device meet no tensor of the CPU: torch would refuse to mix them."""
    scripted = torch.jit.script(user_tower(pooling)).to("meta")
    features, history = inputs(CASES)
    assert scripted([feature.to("meta") for feature in features], history.to("meta")).is_meta


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("width", [8, 16, 64])
def test_rows_do_not_depend_on_one_another_or_on_padding(pooling: str, width: int) -> None:
    tower = user_tower(pooling)
    features, history = inputs(CASES)
    together = tower(features, history)
    for row in range(len(CASES)):
        padded = F.pad(history[row : row + 1], (2, width - 6), value=-1)
        alone = tower([feature[row : row + 1] for feature in features], padded)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_histories_behind_one_another(pooling: str) -> None:
    tower = user_tower(pooling)
    positions = [[3, 1], [], [0, 2, 2]]
    histories = torch.tensor([[-1, 40, 20], [-1, -1, -1], [10, 30, 30]])
    features, _ = inputs(CASES[:3])
    flat = torch.tensor([position for history in positions for position in history])
    found = tower.encode(features, flat, torch.tensor([0, 2, 2, 5]))
    torch.testing.assert_close(found, tower(features, histories))


@pytest.mark.parametrize("columns", [(), USER_COLUMNS])
def test_user_tower_without_history(columns: tuple[CategoryColumn | NumberColumn, ...]) -> None:
    tower = UserTower(columns, IDS, dims=4, history_length=0).eval()
    features, history = inputs(CASES)
    features = features[: len(columns)]
    found = torch.jit.script(tower)(features, history)
    torch.testing.assert_close(found, tower(features, torch.full_like(history, -1)))
    assert torch.isfinite(found).all()


def test_constant_and_unknown_numbers() -> None:
    for values in ([3.0, 3.0], [np.nan, np.nan]):
        columns = [NumberColumn(Feature("n", "number"), np.array(values))]
        tower = UserTower(columns, IDS, dims=4, history_length=1)
        assert torch.isfinite(tower([torch.tensor([[3.0], [torch.nan]])], torch.full((2, 1), -1))).all()


ITEM_COLUMNS = (
    CategoryColumn(Feature("colour", "category", "integer"), np.array([1, 2, 1, UNKNOWN_KEY])),
    CategoryColumn(Feature("name", "category", "integer"), np.array([1, 2, 3, 4])),  # another id
    TagsColumn(Feature("tags", "tags", "integer"), np.array([0, 2, 2, 3, 6]), np.array([7, 8, 8, 5, 7, 8])),
    NumberColumn(Feature("price", "number"), np.array([1.0, 3.0, np.nan, 2.0])),
)


def test_item_tower_against_its_definition() -> None:
    torch.manual_seed(1)
    tower = ItemTower(ITEM_COLUMNS, 4, dims=4)
    colour, tags, price = tower.encoders
    assert isinstance(colour, towers.ItemCategory)
    assert isinstance(tags, towers.ItemTags)
    assert isinstance(price, towers.ItemNumber)
    colours, tag_slots = [1, 2, 1, 0], [[2, 3], [], [3], [1, 2, 3]]
    spread = np.std([1, 3, 2])
    prices = [(-1 / spread, 0.0), (1 / spread, 0.0), (0.0, 1.0), (0.0, 0.0)]
    expected = []
    for item in range(4):
        vector = tower.ids.weight[item + 1] + colour.embedding.weight[colours[item]]
        if tag_slots[item]:
            vector = vector + tags.embedding.weight[tag_slots[item]].mean(0)
        vector = vector + price.encoder.project.weight @ torch.tensor(prices[item], dtype=torch.float32)
        expected.append(vector / vector.norm())
    order = torch.tensor([3, 1, 1, 0, 2])
    torch.testing.assert_close(tower(order), torch.stack(expected)[order])
    for chunk in (3, 100):
        np.testing.assert_allclose(tower.vectors(chunk), torch.stack(expected).detach(), rtol=1e-5)


def test_items_of_any_length() -> None:
    torch.manual_seed(1)
    tower = ItemTower(ITEM_COLUMNS, 4, dims=4, unit=False)
    order = torch.tensor([3, 1, 0])
    expected = tower.ids(order + 1) + sum(encoder(order) for encoder in tower.encoders)
    torch.testing.assert_close(tower(order), expected)
    np.testing.assert_array_equal(tower.vectors()[order], expected.detach())
    tower.unit = True
    torch.testing.assert_close(tower(order), F.normalize(expected, dim=1))


def test_shared_table() -> None:
    user = user_tower()
    item = ItemTower((), 4, dims=4, ids=user.history)
    assert len(item) == 4
    torch.testing.assert_close(item(torch.arange(4)), F.normalize(user.history.weight[1:], dim=1))


def test_large_tables_have_sparse_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "SPARSE_ROWS", 4)
    tower = ItemTower(ITEM_COLUMNS, 4, dims=4)
    tower(torch.tensor([2])).sum().backward()
    assert tower.ids.weight.grad is not None
    assert tower.ids.weight.grad.is_sparse
    assert tower.ids.weight.grad.coalesce().indices().tolist() == [[3]]


@pytest.mark.parametrize("largest", [1e308, 1e200, 1.0, 1e-310])
def test_numbers_of_any_size_are_standardised(largest: float) -> None:
    encoder = NumberEncoder(np.array([1.0, -1.0, 0.5, -0.5, np.nan]) * largest, 4)
    expected = NumberEncoder(np.array([1.0, -1.0, 0.5, -0.5, np.nan]), 4)
    with torch.no_grad():
        expected.project.weight.copy_(encoder.project.weight)
        for value in (1.0, 0.25, -0.9):
            found = encoder(torch.tensor([[value * largest]], dtype=torch.float64))
            torch.testing.assert_close(found, expected(torch.tensor([[value]], dtype=torch.float64)))
    same = NumberEncoder(np.full(3, largest), 4)
    torch.testing.assert_close(same(torch.tensor([[largest]], dtype=torch.float64)), torch.zeros(1, 4))
