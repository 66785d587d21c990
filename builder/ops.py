"""The operators `torch.ops.silvertriton.*`: typed wrappers.

docs/operators.md is their contract. Letters: B requests, F words of a program, E excluded items, D dims, P dims of the
codes, P4 = ceil(P / 4), NB blocks, R = 32 NB rows, N items, C clusters, M candidates, T tasks, K results. Every tensor
is contiguous, and all are on the CPU or on one GPU. Every wrapper raises RuntimeError with operator, argument, got,
expected and fix when arguments do not agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from builder import op_fakes
from builder.oplib import library_path

_FAKES_REGISTERED = False


def load() -> None:
    """Load the operators into this process, compiling their library first if need be; later calls do nothing.

    Operators that are already there, as from a preloaded library, are used as they are.

    Raises:
        builder.oplib.OplibError: the library cannot be built.
    """
    global _FAKES_REGISTERED
    if _FAKES_REGISTERED:
        return
    if not hasattr(torch.ops.silvertriton, "filter_rows"):
        torch.ops.load_library(str(library_path()))
    op_fakes.register()
    _FAKES_REGISTERED = True


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
    """Run each request's filter program (docs/filter-program.md) over all rows.

    Args:
        program: [B, F] int64 filter programs, F >= 2.
        ids: [R] int64 item ids by row.
        item_rows: [N] int32 rows by ascending id.
        feature_terms .. number_bitmaps: the filter index, see docs/operators.md.
        valid: [NB] int32 mask of rows that hold an item.
        cluster_blocks: [C + 1] int32 first block of each cluster, and NB.
        fingerprint: the schema's; a program of another one gets status 5.

    Returns:
        words [B, NB] int32 masks of passing rows, passing [B] int32 how many those are, status [B] int32
        (0, 4 or 5).
    """
    words, passing, status = torch.ops.silvertriton.filter_rows(
        program,
        ids,
        item_rows,
        feature_terms,
        term_keys,
        term_bitmap,
        term_postings,
        postings,
        bitmaps,
        feature_number,
        number_values,
        number_rows,
        number_known,
        number_bitmaps,
        valid,
        cluster_blocks,
        fingerprint,
    )
    return words, passing, status


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
    """Find each request's candidates: filter, choose clusters, scan them, rescore.

    Args:
        query: [B, D] float32.
        filter: [B, F] int64 filter programs, F >= 2.
        exclude: [B, E] int64 item ids never to return, -1 for none.
        limits: [B, 2] int32 probes and candidates, 0 for the artifact's.
        status: [B] int32, what is wrong with a request already, 0 for nothing.
        projection .. cluster_blocks: the index, see docs/operators.md.
        fingerprint: the schema's.
        probes, candidates: what a request gets that asks for nothing; 0 probes: as many as may hold a candidate.
        max_candidates: M, the width of the results and the most a request may ask for.
        exact_rows: when at most that many items pass, all of them are scanned.

    Returns:
        rows [B, M] int32 and ids [B, M] int64, -1 past the end, scores [B, M] float32, -inf past the end, by score
        descending, then smaller id; stats [B, 4] int32 (docs/wire-contract.md); status [B] int32.
    """
    rows, found, scores, stats, first_status = torch.ops.silvertriton.search(
        query,
        filter,
        exclude,
        limits,
        status,
        projection,
        codes,
        scales,
        row_codes,
        vectors,
        ids,
        item_rows,
        centroid_codes,
        centroid_scales,
        centroid_spreads,
        reach,
        feature_terms,
        term_keys,
        term_bitmap,
        term_postings,
        postings,
        bitmaps,
        feature_number,
        number_values,
        number_rows,
        number_known,
        number_bitmaps,
        valid,
        cluster_blocks,
        fingerprint,
        probes,
        candidates,
        max_candidates,
        exact_rows,
    )
    return rows, found, scores, stats, first_status


def rescore(query: Tensor, vectors: Tensor, scales: Tensor, rows: Tensor) -> Tensor:
    """Score candidates from their float16 rows.

    Args:
        query: [B, D] float32.
        vectors: [R, D] float16 rows divided by their scale.
        scales: [NB, 32] float32.
        rows: [B, M] int32.

    Returns:
        scores [B, M] float32, bit for bit those of `search`; -inf where the row is outside 0 .. R - 1, as -1 is.
    """
    scores: Tensor = torch.ops.silvertriton.rescore(query, vectors, scales, rows)
    return scores


def resolve_weights(task_weights: Tensor, defaults: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
    """Take each request's task weights, and the artifact's where it asks for none.

    Args:
        task_weights: [B, T] float32, NaN for the artifact's.
        defaults: [T] float32, the artifact's.
        status: [B] int32, what is wrong with a request already, 0 for nothing.

    Returns:
        weights [B, T] float32, finite where the defaults are; status [B] int32, 7 where a weight is infinite.
    """
    weights, first_status = torch.ops.silvertriton.resolve_weights(task_weights, defaults, status)
    return weights, first_status


def neighbour_scores(
    history: Tensor, rows: Tensor, ids: Tensor, item_rows: Tensor, neighbours: Tensor, weights: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Sum and maximum of the weights of the edges from the items of a history to each candidate.

    Args:
        history: [B, L] int64 item ids, newest last; ids below 0 and those that are not in the catalogue are left out.
        rows: [B, M] int32 candidates, distinct, -1 for none.
        ids: [R] int64 item ids by row.
        item_rows: [N] int32 rows by ascending id.
        neighbours: [N, J] int32 rows of the neighbours of the items by ascending id, -1 past the last.
        weights: [N, J] float32, at least 0.
        most: how many ids of a history count, the newest.

    Returns:
        sums [B, M] and maxima [B, M] float32, 0 where no item of the history has such a neighbour.
    """
    sums, maxima = torch.ops.silvertriton.neighbour_scores(history, rows, ids, item_rows, neighbours, weights, most)
    return sums, maxima


def lookup(keys: Tensor, asked: Tensor) -> Tensor:
    """Find keys in a vocabulary, on the CPU alone.

    Args:
        keys: [V] int64, ascending and distinct.
        asked: [A] int64.

    Returns:
        slots [A] int64: the place of each key plus one, 0 where it is not in the vocabulary.
    """
    slots: Tensor = torch.ops.silvertriton.lookup(keys, asked)
    return slots


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
    """Score candidates by a reranker of two hidden layers, on the CPU alone.

    Args:
        query: [B, D] float32.
        history: [B, L] int64 item ids, as in `neighbour_scores`.
        rows: [B, M] int32 candidates, -1 for none.
        scores: [B, M] float32 of the search.
        vectors, scales: [R, D] float16 and [NB, 32] float32 of the index.
        items: [R, H] float16, an item's part of the first layer.
        ids .. weights: as in `neighbour_scores`.
        user .. output: the layers, `builder.network.layers.PackedLayers`.
        most: how many ids of a history count, the newest.
        tasks: T.

    Returns:
        logits [B, M, T] float32; where there is no candidate they mean nothing.
    """
    logits: Tensor = torch.ops.silvertriton.rerank(
        query,
        history,
        rows,
        scores,
        vectors,
        scales,
        items,
        ids,
        item_rows,
        neighbours,
        weights,
        user,
        first,
        second,
        output,
        most,
        tasks,
    )
    return logits


def select(
    values: Tensor, ids: Tensor, task_scores: Tensor, status: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Select the k best candidates by value descending, then smaller id; a value that is NaN counts as -inf.

    Args:
        values: [B, M] float32.
        ids: [B, M] int64 item ids, -1 where there is no candidate.
        task_scores: [B, M, T] float32.
        status: [B] int32; a request whose status is not 0 gets nothing.
        k: results, at least 0; may exceed M.

    Returns:
        ids [B, k] int64, scores [B, k] float32 and task_scores [B, k, T] float32 of the chosen, -1 and -inf past the
        end; count [B] int32 how many.
    """
    best, scores, tasks, count = torch.ops.silvertriton.select(values, ids, task_scores, status, k)
    return best, scores, tasks, count


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
    """Select up to k candidates one after the other, so that each of V groups has at most as many as it may have.

    With `mmr` of 1 in the order of `select`, else each time the one of the greatest maximal marginal relevance
    (Carbonell and Goldstein, SIGIR 1998) as docs/operators.md defines it.

    Args:
        values: [B, M] float32.
        ids: [B, M] int64 item ids, -1 where there is no candidate.
        rows: [B, M] int32 rows of the candidates.
        task_scores: [B, M, T] float32.
        status: [B] int32; a request whose status is not 0 gets nothing.
        vectors: [R, D] float16 rows in any units.
        inverse_lengths: [R] float32, 1 over the lengths of `vectors`, 0 for a zero row; [0] where `mmr` is 1.
        group_offsets: [R + 1] int64, row r is in groups[group_offsets[r]] .. groups[group_offsets[r + 1] - 1]; [0]
            where there are no groups.
        groups: [NV] int32 in 0 .. V - 1, distinct within a row.
        most: [V] int32, how many of the chosen may be in each group.
        mmr: share of the relevance, 0 to 1; the rest is similarity to what is chosen already.
        k: results, at least 0; may exceed M.

    Returns:
        As `select`, in the order chosen; fewer than k when no candidate is left that fits.
    """
    best, scores, tasks, count = torch.ops.silvertriton.select_diverse(
        values,
        ids,
        rows,
        task_scores,
        status,
        vectors,
        inverse_lengths,
        group_offsets,
        groups,
        most,
        mmr,
        k,
    )
    return best, scores, tasks, count


def cuda_targets() -> str:
    """What the CUDA operators of the library were compiled for, as "sm_80 sm_90 compute_90"; empty: for nothing."""
    targets: str = torch.ops.silvertriton.cuda_targets()
    return targets


def instruction_set() -> str:
    """The CPU instruction set in use: portable, avx2 or avx512vnni.

    Raises:
        RuntimeError: the environment variable SILVERTRITON_ISA names one that is unknown or not on this machine.
    """
    name: str = torch.ops.silvertriton.instruction_set()
    return name


def force_instruction_set(name: str) -> None:
    """Switch the whole process to an instruction set; "" returns to the default. For tests and benchmarks.

    Raises:
        RuntimeError: it is unknown or not on this machine.
    """
    torch.ops.silvertriton.force_instruction_set(name)
