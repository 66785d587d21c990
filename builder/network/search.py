"""The item index as a network module: filtered search from a query vector to rescored candidates.

Letters as in docs/operators.md: B requests, D dims, F words of a program, E excluded items, M max candidates.
"""

import torch
from torch import Tensor, nn

from builder.index.build import Index
from builder.index.filters import FilterIndex
from client.filters.compiler import MAX_WORDS
from client.schema import Status

REACH = 3.0  # near what a million clustered vectors need for .95; an artifact's is measured (export/calibrate.py)


class Filters(nn.Module):
    """The filter index as buffers."""

    feature_terms: Tensor
    term_keys: Tensor
    term_bitmap: Tensor
    term_postings: Tensor
    postings: Tensor
    bitmaps: Tensor
    feature_number: Tensor
    number_values: Tensor
    number_rows: Tensor
    number_known: Tensor
    number_bitmaps: Tensor

    def __init__(self, index: FilterIndex, fingerprint: int) -> None:
        super().__init__()
        for name, tensor in index.tensors().items():
            self.register_buffer(name, tensor)
        self.fingerprint = fingerprint


class Search(nn.Module):
    """Filters, probing, block scan and rescoring as one operator. All tensors of the index are buffers.

    `probes`, `candidates`: what a request gets that asks for nothing; `max_candidates`: the most it may ask for;
    `exact_rows`: when at most that many items pass a filter, all of them are scanned; `probes` 0: as many clusters as
    may hold a candidate, their rows taken to lie up to `reach` standard deviations beyond their mean ([G] float32,
    where 4^-g of the items pass). `max_filter_words`: of a filter's program, at most 65,536.
    """

    projection: Tensor
    codes: Tensor
    scales: Tensor
    row_codes: Tensor
    vectors: Tensor
    ids: Tensor
    item_rows: Tensor
    centroid_codes: Tensor
    centroid_scales: Tensor
    centroid_spreads: Tensor
    reach: Tensor
    valid: Tensor
    cluster_blocks: Tensor

    def __init__(
        self,
        index: Index,
        *,
        fingerprint: int,
        candidates: int,
        max_candidates: int,
        probes: int = 0,
        exact_rows: int = 0,
        reach: Tensor | None = None,
        max_filter_words: int = MAX_WORDS,
    ) -> None:
        super().__init__()
        self.register_buffer("projection", index.projection)
        self.register_buffer("codes", index.codes)
        self.register_buffer("scales", index.scales)
        self.register_buffer("row_codes", index.row_codes)
        self.register_buffer("vectors", index.vectors)
        self.register_buffer("ids", index.ids)
        self.register_buffer("item_rows", index.item_rows)
        self.register_buffer("centroid_codes", index.centroid_codes)
        self.register_buffer("centroid_scales", index.centroid_scales)
        self.register_buffer("centroid_spreads", index.centroid_spreads)
        self.register_buffer("reach", torch.full((1,), REACH) if reach is None else reach)
        self.register_buffer("valid", index.valid)
        self.register_buffer("cluster_blocks", index.cluster_blocks)
        self.filters = Filters(index.filters, fingerprint)
        self.clusters = index.clusters
        self.probes = probes
        self.candidates = candidates
        self.max_candidates = max_candidates
        self.exact_rows = exact_rows
        self.max_filter_words = max_filter_words
        # TorchScript reads no global.
        self.malformed, self.too_long = Status.FILTER_MALFORMED.value, Status.FILTER_TOO_LONG.value

    def forward(
        self, query: Tensor, filter: Tensor, exclude: Tensor, search: Tensor, status: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Find the candidates of each request.

        `query [B, D] float32`, `filter [B, F] int64`, `exclude [B, E] int64` item ids, `search [B, 2] int32`, `status
        [B] int32` what is wrong with a request already. Returns, best first, `rows [B, M] int32` and `ids [B, M] int64`
        (-1 for none) and `scores [B, M] float32`; `stats [B, 4] int32` and `status [B] int32` (docs/wire-contract.md).
        """
        # Else an exporter may follow an example, and must not choose by a size.
        served = torch.jit.is_scripting()
        if served and filter.size(1) < 2:  # no place for a length: no program
            status = torch.where(status == 0, self.malformed, status)
            filter = filter.new_zeros(filter.size(0), 2)
        if not served or filter.size(1) > self.max_filter_words:  # no other programs are too long
            # A row with a status is not filtered. This is the largest one: another fault of the row takes its place.
            too_long = (filter[:, 1] > self.max_filter_words - 2) & (status == 0)
            status = torch.where(too_long, self.too_long, status)
        rows, ids, scores, stats, status = torch.ops.silvertriton.search(
            query.contiguous(),
            filter,
            exclude,
            search,
            status,
            self.projection,
            self.codes,
            self.scales,
            self.row_codes,
            self.vectors,
            self.ids,
            self.item_rows,
            self.centroid_codes,
            self.centroid_scales,
            self.centroid_spreads,
            self.reach,
            self.filters.feature_terms,
            self.filters.term_keys,
            self.filters.term_bitmap,
            self.filters.term_postings,
            self.filters.postings,
            self.filters.bitmaps,
            self.filters.feature_number,
            self.filters.number_values,
            self.filters.number_rows,
            self.filters.number_known,
            self.filters.number_bitmaps,
            self.valid,
            self.cluster_blocks,
            self.filters.fingerprint,
            self.probes,
            self.candidates,
            self.max_candidates,
            self.exact_rows,
        )
        return rows, ids, scores, stats, status


def flag(bad: Tensor, status: int) -> Tensor:
    """`bad [B] bool` -> `[B] int32`, `status` where bad and 0 elsewhere."""
    return bad.to(torch.int32) * status


def first_status(a: Tensor, b: Tensor) -> Tensor:
    """Of two statuses `[B] int32` the smaller one that is not 0."""
    return torch.where((a == 0) | ((b != 0) & (b < a)), b, a)
