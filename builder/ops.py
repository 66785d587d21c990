"""The operators `torch.ops.silvertriton.*`: typed wrappers, and the fake kernels that export and `opcheck` need.

docs/operators.md is their contract. Letters: B requests, F words of a program, E excluded rows, D dims,
D4 = ceil(D / 4), NB blocks, R = 32 NB rows, C clusters, M candidates, K results. Every tensor is contiguous and on the
CPU. Every wrapper raises RuntimeError with operator, argument, got, expected and fix when arguments do not agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    torch.library.register_fake("silvertriton::filter_rows", _fake_filter_rows)
    torch.library.register_fake("silvertriton::probe", _fake_probe)
    torch.library.register_fake("silvertriton::scan", _fake_scan)
    torch.library.register_fake("silvertriton::rescore", _fake_rescore)
    torch.library.register_fake("silvertriton::top_k", _fake_top_k)
    _FAKES_REGISTERED = True


def filter_rows(
    program: Tensor,
    exclude: Tensor,
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
        exclude: [B, E] int32 rows never to pass; those outside 0 .. R - 1, as -1, are ignored.
        feature_terms .. number_bitmaps: the filter index, see docs/operators.md.
        valid: [NB] int32 mask of rows that hold an item.
        cluster_blocks: [C + 1] int32 first block of each cluster, and NB.
        fingerprint: the schema's; a program of another one gets status 5.

    Returns:
        words [B, NB] int32 masks of passing rows, passing [B, C] int32 passing rows of each cluster, status [B] int32
        (0, 4 or 5).
    """
    words, passing, status = torch.ops.silvertriton.filter_rows(
        program,
        exclude,
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


def probe(
    query: Tensor,
    centroid_codes: Tensor,
    centroid_scales: Tensor,
    passing: Tensor,
    probes: Tensor,
    candidates: Tensor,
) -> tuple[Tensor, Tensor]:
    """Choose the clusters to scan: the best with passing rows, until `probes` and `candidates` are both covered.

    Args:
        query: [B, D] float32, finite.
        centroid_codes: [ceil(C / 32), D4, 32, 4] int8.
        centroid_scales: [ceil(C / 32), 32] float32.
        passing: [B, C] int32 passing rows of each cluster.
        probes: [B] int32 clusters to take at least.
        candidates: [B] int32 passing rows they must sum to at least.

    Returns:
        clusters [B, C] int32 in order of score, -1 past the end; probed [B] int32 how many.
    """
    clusters, probed = torch.ops.silvertriton.probe(query, centroid_codes, centroid_scales, passing, probes, candidates)
    return clusters, probed


def scan(
    query: Tensor,
    codes: Tensor,
    scales: Tensor,
    vectors: Tensor,
    ids: Tensor,
    cluster_blocks: Tensor,
    words: Tensor,
    clusters: Tensor,
    probed: Tensor,
    candidates: Tensor,
    max_candidates: int,
) -> tuple[Tensor, Tensor]:
    """Find the best masked rows of the taken clusters by their int8 scores.

    Args:
        query: [B, D] float32, finite.
        codes: [NB, D4, 32, 4] int8.
        scales: [NB, 32] float32.
        vectors: [R, D] float16 rows divided by their scale.
        ids: [R] int64 item ids.
        cluster_blocks: [C + 1] int32.
        words: [B, NB] int32 masks of rows to consider.
        clusters: [B, C] int32 clusters to scan, -1 past `probed`.
        probed: [B] int32.
        candidates: [B] int32 rows wanted, clipped to 0 .. max_candidates.
        max_candidates: width of the result.

    Returns:
        rows [B, max_candidates] int32 by score descending, then smaller id, -1 past the end; scanned [B] int32 rows
        scored.
    """
    rows, scanned = torch.ops.silvertriton.scan(
        query, codes, scales, vectors, ids, cluster_blocks, words, clusters, probed, candidates, max_candidates
    )
    return rows, scanned


def rescore(query: Tensor, vectors: Tensor, scales: Tensor, rows: Tensor) -> Tensor:
    """Score candidates from their float16 rows.

    Args:
        query: [B, D] float32.
        vectors: [R, D] float16 rows divided by their scale.
        scales: [NB, 32] float32.
        rows: [B, M] int32.

    Returns:
        scores [B, M] float32, -inf where the row is outside 0 .. R - 1, as -1 is.
    """
    scores: Tensor = torch.ops.silvertriton.rescore(query, vectors, scales, rows)
    return scores


def top_k(scores: Tensor, ids: Tensor, k: int) -> Tensor:
    """Select the k best candidates by score descending, then smaller id; NaN counts as -inf.

    Args:
        scores: [B, M] float32.
        ids: [B, M] int64 item ids, -1 where there is no candidate.
        k: results, at least 0; may exceed M.

    Returns:
        positions [B, k] int64 into the candidates, -1 past the end.
    """
    positions: Tensor = torch.ops.silvertriton.top_k(scores, ids, k)
    return positions


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


def _fake_filter_rows(
    program: Tensor,
    exclude: Tensor,
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
        program.new_empty((batch, cluster_blocks.shape[0] - 1), dtype=torch.int32),
        program.new_empty((batch,), dtype=torch.int32),
    )


def _fake_probe(
    query: Tensor,
    centroid_codes: Tensor,
    centroid_scales: Tensor,
    passing: Tensor,
    probes: Tensor,
    candidates: Tensor,
) -> tuple[Tensor, Tensor]:
    return passing.new_empty(passing.shape), probes.new_empty(probes.shape)


def _fake_scan(
    query: Tensor,
    codes: Tensor,
    scales: Tensor,
    vectors: Tensor,
    ids: Tensor,
    cluster_blocks: Tensor,
    words: Tensor,
    clusters: Tensor,
    probed: Tensor,
    candidates: Tensor,
    max_candidates: int,
) -> tuple[Tensor, Tensor]:
    return words.new_empty((words.shape[0], max_candidates)), probed.new_empty(probed.shape)


def _fake_rescore(query: Tensor, vectors: Tensor, scales: Tensor, rows: Tensor) -> Tensor:
    return query.new_empty(rows.shape)


def _fake_top_k(scores: Tensor, ids: Tensor, k: int) -> Tensor:
    return ids.new_empty((scores.shape[0], k))
