"""Fewer dims for the codes: as few as the data needs, and none fewer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builder.index.projection import (
    Projected,
    choose_projection,
    leading_directions,
    no_projection,
    principal_directions,
)

DIMS = 32


def of_rank(rank: int, count: int, seed: int, noise: float = 0.01) -> np.ndarray:
    """`[count, DIMS]` rows that fill `rank` dims, and a little of all."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).normal(size=(DIMS, rank)))[0]
    rows = rng.normal(size=(count, rank)) @ basis.T + noise * rng.normal(size=(count, DIMS))
    return np.asarray(rows, dtype=np.float32)


@pytest.mark.parametrize("rank", [3, 8, 14])
def test_as_many_dims_as_the_items_fill(rank: int) -> None:
    queries = torch.from_numpy(of_rank(rank, 60, seed=1))
    projection = choose_projection(of_rank(rank, 4000, seed=0), queries, results=20, seed=0)
    assert projection.shape == (DIMS, -(-rank // 4) * 4)
    torch.testing.assert_close(projection.T @ projection, torch.eye(projection.shape[1]), atol=1e-5, rtol=0)


def test_items_that_fill_all_dims_are_not_projected() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(3000, DIMS)).astype(np.float32)
    queries = torch.from_numpy(rng.normal(size=(50, DIMS)).astype(np.float32))
    assert choose_projection(vectors, queries, results=20, seed=0).shape == (0, DIMS)


@pytest.mark.parametrize("dims", [1, 3, 5])
def test_few_dims_are_left_as_they_are(dims: int) -> None:
    vectors = np.random.default_rng(3).normal(size=(100, dims)).astype(np.float32)
    assert choose_projection(vectors, torch.from_numpy(vectors[:9]), results=5, seed=0).shape == (0, dims)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_magnitude_changes_nothing(scale: float) -> None:
    rows = torch.from_numpy(of_rank(4, 500, seed=4))
    directions = principal_directions(rows * scale)
    torch.testing.assert_close(directions[:, :4], principal_directions(rows)[:, :4], atol=1e-4, rtol=0)


def test_directions_come_by_energy() -> None:
    rng = np.random.default_rng(5)
    rows = torch.from_numpy((rng.normal(size=(2000, 6)) * [1, 9, 2, 5, 3, 0.1]).astype(np.float32))
    strongest = principal_directions(rows).abs().argmax(0)
    assert strongest.tolist() == [1, 3, 4, 2, 0, 5]


def test_zero_rows_do_not_trip_it() -> None:
    zeros = np.zeros((50, 8), dtype=np.float32)
    projection = choose_projection(zeros, torch.ones(3, 8), results=5, seed=0)
    assert torch.isfinite(projection).all()


def test_given_dims_are_taken() -> None:
    vectors = of_rank(10, 300, seed=6)
    assert leading_directions(vectors, 7, seed=0).shape == (DIMS, 7)
    assert leading_directions(vectors, DIMS, seed=0).shape == no_projection(DIMS).shape == (0, DIMS)


def test_projected_rows_by_slice_and_by_position() -> None:
    vectors = of_rank(6, 40, seed=7)
    projection = leading_directions(vectors, 6, seed=0)
    projected = Projected(vectors, projection)
    expected = vectors @ projection.numpy()
    assert len(projected) == 40
    np.testing.assert_allclose(projected[3:9], expected[3:9], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(projected[np.array([5, 1])], expected[[5, 1]], rtol=1e-5, atol=1e-6)
