"""Vectors of task groups, combined, against their definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from builder.network.groups import TaskGroups
from builder.network.towers import UserTower

GROUPS, FACTORS = [[2, 0], [1]], [1.0, 0.5, 3.0]  # of three tasks
VECTORS = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0))


def scripted() -> Any:
    return torch.jit.script(TaskGroups(GROUPS, FACTORS))


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.0, -2.0, 0.1], [1e-6, 0.0, 0.0], [3e38, 1e38, -1e38]])
def test_the_query_is_the_weighted_sum(weights: list[float]) -> None:
    """Its direction, for weights of any size; its length is no matter."""
    query = scripted()(VECTORS, torch.tensor([weights] * 6)).double().numpy()
    of_groups = [weights[2] * 3.0 + weights[0], weights[1] * 0.5]
    expected = np.einsum("g,bgd->bd", of_groups, VECTORS.double().numpy())
    for found, wanted in zip(query, expected, strict=True):
        np.testing.assert_allclose(found / np.linalg.norm(found), wanted / np.linalg.norm(wanted), atol=1e-6)


def test_the_default_is_that_of_weights_of_1() -> None:
    groups = scripted()
    assert torch.equal(groups.default(VECTORS), groups(VECTORS, torch.ones(6, 3)))
    torch.testing.assert_close(groups.default(VECTORS), VECTORS[:, 0] + VECTORS[:, 1] / 8)


def test_weights_that_say_nothing_are_the_default() -> None:
    groups, vectors = scripted(), VECTORS.clone()
    vectors[2, 1] = vectors[2, 0]
    weights = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, -1.0], [1.0, -2.0, 0.0], [1.0, -2.0, 0.0]])
    query, default = groups(vectors[:4], weights), groups.default(vectors[:4])
    assert torch.equal(query[:3], default[:3])  # all 0; 0 for both groups; two vectors that cancel
    torch.testing.assert_close(query[3], vectors[3, 0] - vectors[3, 1])


def test_a_row_does_not_depend_on_the_others() -> None:
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    whole = scripted()(VECTORS, weights)
    for b in range(6):
        assert torch.equal(scripted()(VECTORS[b : b + 1], weights[b : b + 1])[0], whole[b])
    assert scripted()(VECTORS[:0], weights[:0]).shape == (0, 4)


def test_a_tower_gives_a_unit_vector_for_each_group() -> None:
    torch.manual_seed(0)
    ids = np.arange(30)
    shared = UserTower((), ids, dims=4, history_length=3)
    tower = UserTower((), ids, dims=4, history_length=3, groups=TaskGroups(GROUPS, FACTORS))
    tower.load_state_dict({**tower.state_dict(), **shared.state_dict()})
    assert not any("groups" in name for name in tower.state_dict())
    history = torch.tensor([[1, 2, 3, 4], [-1, -1, -1, 7]])
    with torch.no_grad():
        alike = torch.jit.script(tower)([], history)
        torch.testing.assert_close(alike, shared([], history).unsqueeze(1).expand(-1, 2, -1))  # the heads begin alike
        torch.nn.init.normal_(tower.heads.weight)
        torch.nn.init.normal_(tower.heads.bias)
        vectors = torch.jit.script(tower)([], history)
        user = tower.project(tower.pooling(tower.items(torch.tensor([[2, 3, 4], [-1, -1, 7]])), tower.history.weight))
        weight, bias = tower.heads.parameters()
        heads = torch.stack([user @ weight[:4].T + bias[:4], user @ weight[4:].T + bias[4:]], 1)
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(heads, dim=2))
    assert torch.equal(tower.query([], history), tower.groups.default(tower([], history)))
    assert torch.equal(shared.query([], history), shared([], history))
