import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from builder.training.loss import expected_counts, sampled_softmax


@pytest.mark.parametrize("seed", range(3))
def test_against_the_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, negatives, items, temperature = 6, 9, 8, 0.2
    users = F.normalize(torch.randn(batch, 4, generator=generator), dim=1).requires_grad_()
    vectors = F.normalize(torch.randn(items, 4, generator=generator), dim=1)
    positions = torch.randint(0, items, (batch + negatives,), generator=generator)  # few items: many accidents
    expected = torch.rand(items, generator=generator) + 0.1
    found = sampled_softmax(users, vectors[positions], positions, expected.log()[positions], temperature)
    total, known = 0.0, users.detach()
    for row in range(batch):
        target = int(positions[row])
        logits = [
            float(known[row] @ vectors[item]) / temperature - math.log(expected[item])
            for item in positions.tolist()
            if item != target
        ]
        own = float(known[row] @ vectors[target]) / temperature
        total += math.log(math.exp(own) + sum(map(math.exp, logits))) - own
    assert float(found.detach()) == pytest.approx(total, rel=1e-5)
    found.backward()
    assert users.grad is not None
    assert torch.isfinite(users.grad).all()
    whole = users.grad.clone()
    parts = []
    for first, last in ((0, 2), (2, 2), (2, 6)):  # the rows divided, one part of none
        part = known[first:last].clone().requires_grad_()
        loss = sampled_softmax(part, vectors[positions], positions, expected.log()[positions], temperature, first=first)
        loss.backward()
        assert part.grad is not None
        torch.testing.assert_close(part.grad, whole[first:last])
        parts.append(float(loss.detach()))
    assert sum(parts) == pytest.approx(total, rel=1e-5)


def test_rows_that_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    users, vectors = torch.randn(6, 4, generator=generator), torch.randn(9, 4, generator=generator)
    positions, corrections = torch.arange(9), torch.randn(9, generator=generator)
    counted = torch.tensor([True, False, False, True, True, False])
    leaf = users.clone().requires_grad_()
    found = sampled_softmax(leaf, vectors, positions, corrections, 0.3, counted=counted)
    expected = sum(
        float(sampled_softmax(users[row : row + 1], vectors, positions, corrections, 0.3, first=row))
        for row in (0, 3, 4)
    )
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert leaf.grad is not None
    assert ((leaf.grad != 0).any(1) == counted).all()
    assert float(sampled_softmax(users, vectors, positions, corrections, 0.3, counted=counted & False)) == 0.0


def test_all_candidates_the_same_item() -> None:
    users = torch.ones(2, 1)
    loss = sampled_softmax(users, torch.ones(3, 1), torch.tensor([4, 4, 4]), torch.zeros(3), 0.1)
    assert float(loss) == 0.0


def test_expected_counts_are_those_of_the_sampler() -> None:
    rng = np.random.default_rng(0)
    popularity = np.array([0.5, 0.3, 0.2, 0.0])
    batch, negatives, steps = 10, 6, 20_000
    drawn = np.bincount(rng.choice(4, batch * steps, p=popularity), minlength=4)
    drawn += np.bincount(rng.integers(0, 4, negatives * steps), minlength=4)
    found = expected_counts(torch.from_numpy(popularity).float(), batch, negatives)
    np.testing.assert_allclose(found, drawn / steps, rtol=0.02)


def test_learns_the_softmax_over_the_catalogue() -> None:
    """One user, unevenly popular items: the corrected logits must come out as log popularity, whatever was sampled."""
    generator = torch.Generator().manual_seed(0)
    popularity = torch.tensor([0.5, 0.25, 0.15, 0.1])
    scores = torch.zeros(4, requires_grad=True)
    log_expected = expected_counts(popularity, 256, 16).log()
    optimizer = torch.optim.Adam([scores], lr=0.02)
    trace = []
    for _ in range(800):
        positives = torch.multinomial(popularity, 256, replacement=True, generator=generator)
        positions = torch.cat([positives, torch.randint(0, 4, (16,), generator=generator)])
        loss = sampled_softmax(
            torch.ones(256, 1), scores[positions, None], positions, log_expected[positions], temperature=1.0
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trace.append(scores.detach().softmax(0))
    np.testing.assert_allclose(torch.stack(trace[-200:]).mean(0), popularity, atol=0.02)
