import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from builder.network.history import AttentionPooling, Block, MeanPooling

DIMS, LENGTH, ITEMS = 8, 6, 20
HISTORIES = [[3, 1, 19, 7], [5], [], [2, 2, 4, 9, 9, 1], [8, 6]]


def attention(seed: int, *, blocks: int = 2, heads: int = 2, dropout: float = 0.3) -> AttentionPooling:
    """With weights large enough for every part of the formula to show."""
    torch.manual_seed(seed)
    pooling = AttentionPooling(DIMS, LENGTH, blocks=blocks, heads=heads, dropout=dropout).eval()
    for parameter in pooling.parameters():
        nn.init.normal_(parameter, std=0.7)
    return pooling


def embeddings(*, sparse: bool = False) -> nn.Embedding:
    torch.manual_seed(7)
    return nn.Embedding(ITEMS, DIMS, sparse=sparse)


def padded(histories: list[list[int]], width: int) -> Tensor:
    """At the right, as most clients send them."""
    return torch.tensor([[0] * (width - len(history)) + history for history in histories])


def behind_one_another(histories: list[list[int]]) -> tuple[Tensor, Tensor]:
    flat = torch.tensor([slot for history in histories for slot in history], dtype=torch.int64)
    return flat, torch.tensor([0, *np.cumsum([len(history) for history in histories])])


Array = NDArray[np.float64]


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def linear(layer: nn.Linear, x: Array) -> Array:
    return array(layer.weight) @ x + array(layer.bias)


def layer_norm(layer: nn.LayerNorm, x: Array) -> Array:
    return (x - x.mean()) / math.sqrt(x.var() + layer.eps) * array(layer.weight) + array(layer.bias)


def slow_block(block: Block, hidden: list[Array]) -> list[Array]:
    normed = [layer_norm(block.before_attention, x) for x in hidden]
    queries = [linear(block.query, x) for x in normed]
    keys = [linear(block.key_value, x)[:DIMS] for x in normed]
    values = [linear(block.key_value, x)[DIMS:] for x in normed]
    result = []
    for x, query in zip(hidden, queries, strict=True):
        attended = np.zeros(DIMS)
        size = DIMS // block.heads
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            weights = np.exp([query[part] @ key[part] / math.sqrt(size) for key in keys])
            for weight, value in zip(weights / weights.sum(), values, strict=True):
                attended[part] += weight * value[part]
        added = x + linear(block.attended, attended)
        inner = linear(block.widen, layer_norm(block.before_feed_forward, added))
        gelu = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in inner])
        result.append(added + linear(block.narrow, gelu))
    return result


def slow_attention(pooling: AttentionPooling, table: nn.Embedding, history: list[int]) -> Array:
    """One history by the formula, every position of every block."""
    rows, positions = array(table.weight), array(pooling.positions)
    hidden = [rows[slot] + positions[age] for age, slot in enumerate(reversed(history))]
    for block in pooling.blocks:
        assert isinstance(block, Block)
        hidden = slow_block(block, hidden)
    return hidden[0] if history else np.zeros(DIMS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("blocks", "heads"), [(1, 1), (1, 2), (2, 4), (3, 2)])
def test_attention_against_its_definition(seed: int, blocks: int, heads: int) -> None:
    pooling, table = attention(seed, blocks=blocks, heads=heads), embeddings()
    found = pooling(padded(HISTORIES, LENGTH), table.weight)
    expected = np.stack([slow_attention(pooling, table, history) for history in HISTORIES])
    np.testing.assert_allclose(array(found), expected, rtol=1e-4, atol=1e-5, err_msg=f"seed {seed}")


def test_attention_reads_order_and_the_mean_does_not() -> None:
    pooling, table = attention(0), embeddings()
    orders = torch.tensor([[3, 1, 7], [3, 7, 1], [1, 3, 7]])
    found = pooling(orders, table.weight).detach()
    assert min(float((found[a] - found[b]).abs().max()) for a, b in [(0, 1), (0, 2), (1, 2)]) > 0.01
    mean = MeanPooling()(orders, table.weight)
    torch.testing.assert_close(mean, table.weight[[1, 3, 7]].mean(0).expand(3, -1))


@pytest.mark.parametrize("scripted", [False, True])
def test_padding_and_neighbours_do_not_matter(scripted: bool) -> None:
    pooling, table = attention(0), embeddings()
    run = torch.jit.script(pooling) if scripted else pooling
    together = run(padded(HISTORIES, LENGTH), table.weight)
    for row, history in enumerate(HISTORIES):
        for width in (8, 16, 64):
            slots = torch.zeros(1, width, dtype=torch.int64)
            columns = np.sort(np.random.default_rng(row).permutation(width)[: len(history)])
            slots[0, columns] = torch.tensor(history, dtype=torch.int64)  # padding on either side and in between
            alone = run(slots, table.weight)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-6, atol=1e-6)
    assert not together[2].any()


@pytest.mark.parametrize("pooling", [MeanPooling(), attention(1)], ids=["mean", "attention"])
@pytest.mark.parametrize("sparse", [False, True])
def test_behind_one_another_is_the_same(pooling: MeanPooling | AttentionPooling, sparse: bool) -> None:
    table = embeddings(sparse=sparse)
    found = pooling.behind_one_another(*behind_one_another(HISTORIES), table)
    torch.testing.assert_close(found, pooling(padded(HISTORIES, LENGTH), table.weight))
    found.square().sum().backward()
    gradient = table.weight.grad
    assert gradient is not None
    assert gradient.is_sparse == sparse
    dense = gradient.to_dense()
    assert torch.isfinite(dense).all()
    assert set(dense.abs().sum(1).nonzero().flatten().tolist()) == {slot for history in HISTORIES for slot in history}
    nothing = pooling.behind_one_another(*behind_one_another([[], []]), table)
    torch.testing.assert_close(nothing, torch.zeros(2, DIMS))


def test_dropout_is_of_training() -> None:
    pooling, table = attention(0), embeddings()
    slots = padded(HISTORIES, LENGTH)
    torch.testing.assert_close(pooling(slots, table.weight), pooling(slots, table.weight), rtol=0, atol=0)
    pooling.train()
    one, other = pooling(slots, table.weight), pooling(slots, table.weight)
    assert float((one[0] - other[0]).detach().abs().max()) > 0.01
    assert not one[2].any()


def test_attention_learns_what_a_mean_cannot() -> None:
    """The answer is the second newest of three items: only positions tell which that is."""
    torch.manual_seed(0)
    table = embeddings()
    pooling = AttentionPooling(DIMS, 3, blocks=1, heads=1, dropout=0.0)
    optimizer = torch.optim.Adam([*pooling.parameters(), *table.parameters()], lr=0.01)
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for step in range(300):
        slots = torch.randint(1, ITEMS, (128, 3), generator=generator)
        logits = pooling(slots, table.weight) @ table.weight.T
        loss = nn.functional.cross_entropy(logits, slots[:, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 290:
            hits += int((logits.argmax(1) == slots[:, 1]).sum())
    assert hits > 0.9 * 1280
