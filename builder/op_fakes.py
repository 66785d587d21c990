"""Fake kernels of the operators: the shapes and dtypes of their results, which export and `opcheck` need.

Arguments and results are those of builder/ops.py, which is also where the letters are explained.
"""

from __future__ import annotations

import torch
from torch import Tensor


def register() -> None:
    """Register them; the operators' library is loaded already."""
    for fake in (
        filter_rows,
        search,
        rescore,
        resolve_weights,
        neighbour_scores,
        lookup,
        rerank,
        select,
        select_diverse,
    ):
        torch.library.register_fake(f"silvertriton::{fake.__name__}", fake)


def filter_rows(
    program: Tensor,
    ids: Tensor,
    item_rows: Tensor,
    feature_terms: Tensor,
    term_keys: Tensor,
    term_bitmap: Tensor,
    term_postings: Tensor,
    postings: Tensor,
    bitmaps: Tensor,
    feature_number: Tensor,
    number_values: Tensor,
    number_rows: Tensor,
    number_known: Tensor,
    number_bitmaps: Tensor,
    valid: Tensor,
    cluster_blocks: Tensor,
    fingerprint: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = program.shape[0]
    return (
        program.new_empty((batch, valid.shape[0]), dtype=torch.int32),
        program.new_empty((batch,), dtype=torch.int32),
        program.new_empty((batch,), dtype=torch.int32),
    )


def search(
    query: Tensor,
    filter: Tensor,
    exclude: Tensor,
    limits: Tensor,
    status: Tensor,
    projection: Tensor,
    codes: Tensor,
    scales: Tensor,
    row_codes: Tensor,
    vectors: Tensor,
    ids: Tensor,
    item_rows: Tensor,
    centroid_codes: Tensor,
    centroid_scales: Tensor,
    centroid_spreads: Tensor,
    reach: Tensor,
    feature_terms: Tensor,
    term_keys: Tensor,
    term_bitmap: Tensor,
    term_postings: Tensor,
    postings: Tensor,
    bitmaps: Tensor,
    feature_number: Tensor,
    number_values: Tensor,
    number_rows: Tensor,
    number_known: Tensor,
    number_bitmaps: Tensor,
    valid: Tensor,
    cluster_blocks: Tensor,
    fingerprint: int,
    probes: int,
    candidates: int,
    max_candidates: int,
    exact_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch = query.shape[0]
    width = torch.library.get_ctx().new_dynamic_size(max=max(max_candidates, 2))  # it refuses a smaller bound
    return (
        status.new_empty((batch, width)),
        exclude.new_empty((batch, width)),
        query.new_empty((batch, width)),
        status.new_empty((batch, 4)),
        status.new_empty((batch,)),
    )


def rescore(query: Tensor, vectors: Tensor, scales: Tensor, rows: Tensor) -> Tensor:
    return query.new_empty(rows.shape)


def resolve_weights(task_weights: Tensor, defaults: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
    return task_weights.new_empty(task_weights.shape), status.new_empty(status.shape)


def neighbour_scores(
    history: Tensor, rows: Tensor, ids: Tensor, item_rows: Tensor, neighbours: Tensor, weights: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    return weights.new_empty(rows.shape), weights.new_empty(rows.shape)


def lookup(keys: Tensor, asked: Tensor) -> Tensor:
    return asked.new_empty(asked.shape)


def rerank(
    query: Tensor,
    history: Tensor,
    rows: Tensor,
    scores: Tensor,
    vectors: Tensor,
    scales: Tensor,
    items: Tensor,
    ids: Tensor,
    item_rows: Tensor,
    neighbours: Tensor,
    weights: Tensor,
    user: Tensor,
    first: Tensor,
    second: Tensor,
    output: Tensor,
    most: int,
    tasks: int,
) -> Tensor:
    return query.new_empty((*rows.shape, tasks))


def select(
    values: Tensor, ids: Tensor, task_scores: Tensor, status: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = values.shape[0]
    return (
        ids.new_empty((batch, k)),
        values.new_empty((batch, k)),
        task_scores.new_empty((batch, k, task_scores.shape[2])),
        status.new_empty((batch,)),
    )


def select_diverse(
    values: Tensor,
    ids: Tensor,
    rows: Tensor,
    task_scores: Tensor,
    status: Tensor,
    vectors: Tensor,
    inverse_lengths: Tensor,
    group_offsets: Tensor,
    groups: Tensor,
    most: Tensor,
    mmr: float,
    k: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return select(values, ids, task_scores, status, k)
