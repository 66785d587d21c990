"""The item index as a network module: filtered search from a query vector to rescored candidates.

Letters as in docs/operators.md: B requests, D dims, N items, R rows, C clusters, NB blocks, M max candidates.
"""

import torch
from torch import Tensor, nn

from builder.index.build import Index
from builder.index.filters import FilterIndex
from client.schema import Status


class Filters(nn.Module):
    """The filter index as buffers. Runs one program a request."""

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

    def forward(
        self, program: Tensor, exclude: Tensor, valid: Tensor, cluster_blocks: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`program [B, F] int64`, `exclude [B, E] int32` rows -> words `[B, NB]`, passing `[B, C]`, status `[B]`."""
        words, passing, status = torch.ops.silvertriton.filter_rows(
            program,
            exclude,
            self.feature_terms,
            self.term_keys,
            self.term_bitmap,
            self.term_postings,
            self.postings,
            self.bitmaps,
            self.feature_number,
            self.number_values,
            self.number_rows,
            self.number_known,
            self.number_bitmaps,
            valid,
            cluster_blocks,
            self.fingerprint,
        )
        return words, passing, status


class Search(nn.Module):
    """Filter-aware probing, block scan and rescoring. All tensors of the index are buffers."""

    codes: Tensor
    scales: Tensor
    vectors: Tensor
    ids: Tensor
    sorted_ids: Tensor
    item_rows: Tensor
    cluster_blocks: Tensor
    centroid_codes: Tensor
    centroid_scales: Tensor
    valid: Tensor

    def __init__(self, index: Index, *, fingerprint: int, probes: int, candidates: int, max_candidates: int) -> None:
        super().__init__()
        self.register_buffer("codes", index.codes)
        self.register_buffer("scales", index.scales)
        self.register_buffer("vectors", index.vectors)
        self.register_buffer("ids", index.ids)
        self.register_buffer("sorted_ids", index.ids[index.item_rows.long()])
        self.register_buffer("item_rows", index.item_rows)
        self.register_buffer("cluster_blocks", index.cluster_blocks)
        self.register_buffer("centroid_codes", index.centroid_codes)
        self.register_buffer("centroid_scales", index.centroid_scales)
        self.register_buffer("valid", index.valid)
        self.filters = Filters(index.filters, fingerprint)
        self.clusters = index.clusters
        self.probes = probes
        self.candidates = candidates
        self.max_candidates = max_candidates

    def forward(
        self, query: Tensor, filter: Tensor, exclude: Tensor, search: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find the candidates of each request.

        `query [B, D] float32`, `filter [B, F] int64`, `exclude [B, E] int64` item ids, `search [B, 2] int32`.
        Returns `rows [B, M] int32` (-1 for none), `scores [B, M] float32`, `stats [B, 4] int32` and `status [B] int32`
        (docs/wire-contract.md).
        """
        probes, candidates, search_status = self.limits(search)
        query, query_status = finite(query)
        words, passing, filter_status = self.filters(filter, self.rows_of(exclude), self.valid, self.cluster_blocks)
        clusters, probed = torch.ops.silvertriton.probe(
            query, self.centroid_codes, self.centroid_scales, passing, probes, candidates
        )
        rows, scanned = torch.ops.silvertriton.scan(
            query,
            self.codes,
            self.scales,
            self.vectors,
            self.ids,
            self.cluster_blocks,
            words,
            clusters,
            probed,
            candidates,
            self.max_candidates,
        )
        scores = torch.ops.silvertriton.rescore(query, self.vectors, self.scales, rows)
        total = passing.sum(1).to(torch.int32)
        exhaustive = (probed == (passing > 0).sum(1)).to(torch.int32)
        stats = torch.stack([probed, total, scanned, exhaustive], dim=1)
        exclude_status = flag((exclude < -1).any(1), Status.EXCLUDE.value)
        status = first_status([query_status, filter_status, exclude_status, search_status])
        return rows, scores, stats, status

    def limits(self, search: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`search [B, 2] int32` -> probes, candidates, status, `[B] int32` each; bad: the artifact's."""
        probes, candidates = search[:, 0], search[:, 1]
        bad = (probes < 0) | (probes > self.clusters) | (candidates < 0) | (candidates > self.max_candidates)
        probes = torch.where(bad | (probes == 0), self.probes, probes).to(torch.int32)
        candidates = torch.where(bad | (candidates == 0), self.candidates, candidates).to(torch.int32)
        return probes, candidates, flag(bad, Status.SEARCH.value)

    def rows_of(self, ids: Tensor) -> Tensor:
        """`ids [B, E] int64` -> the rows they stand at `[B, E] int32`, -1 for ids that are not in the catalogue."""
        position = torch.searchsorted(self.sorted_ids, ids).clamp(max=self.sorted_ids.size(0) - 1)
        found = self.sorted_ids[position] == ids
        return torch.where(found, self.item_rows[position], -1).to(torch.int32)


def finite(query: Tensor) -> tuple[Tensor, Tensor]:
    """Replace queries that have a NaN or an infinity by zeros: `[B, D]`, `status [B] int32`."""
    good = torch.isfinite(query).all(1)
    return torch.where(good.unsqueeze(1), query, torch.zeros_like(query)).contiguous(), flag(~good, Status.QUERY.value)


def flag(bad: Tensor, status: int) -> Tensor:
    """`bad [B] bool` -> `[B] int32`, `status` where bad and 0 elsewhere."""
    return bad.to(torch.int32) * status


def first_status(statuses: list[Tensor]) -> Tensor:
    """The smallest nonzero status of each request: `[B] int32`."""
    stacked = torch.stack(statuses)
    none = 2**31 - 1  # above every status
    smallest = torch.where(stacked == Status.OK.value, none, stacked).amin(0)
    return torch.where(smallest == none, Status.OK.value, smallest).to(torch.int32)
