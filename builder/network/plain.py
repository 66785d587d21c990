"""The network in operations that every runtime has: exact search in place of the operators, for the plain ONNX file.

Letters: B requests, D dims, F words of a program, E excluded items, R rows of the index, N items by ascending id, M
candidates, T tasks, K results, L history, J neighbours of an item.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from builder.network.filter_machine import FilterMachine
from builder.network.neighbours import Neighbours
from builder.network.search import Search, first_status, flag
from client.schema import Status

NO_ID = 2**63 - 1  # sorts behind every id


class PlainSearch(nn.Module):
    """`Search` by scoring every item: filters, exclusions and limits as there, and nothing is ever missed."""

    vectors: Tensor
    scales: Tensor
    ids: Tensor
    item_rows: Tensor
    item_ids: Tensor

    def __init__(self, search: Search) -> None:
        super().__init__()
        for name in ("vectors", "scales", "ids", "item_rows"):
            self.register_buffer(name, getattr(search, name))
        self.register_buffer("item_ids", search.ids[search.item_rows.long()])
        self.filters = FilterMachine(search.filters, search.item_rows, self.item_ids, search.max_filter_words)
        self.clusters, self.candidates, self.max_candidates = search.clusters, search.candidates, search.max_candidates
        self.max_filter_words = search.max_filter_words

    def forward(
        self, query: Tensor, filter: Tensor, exclude: Tensor, search: Tensor, status: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As `Search.forward`, always M wide; stats are those of a search of all clusters."""
        finite = query.isfinite()
        bad_limits = (search < 0).any(1) | (search[:, 0] > self.clusters) | (search[:, 1] > self.max_candidates)
        passes, of_filter = self.filters(filter)
        for other in (
            flag(~finite.all(1), Status.QUERY.value),
            of_filter,
            flag((exclude < -1).any(1), Status.EXCLUDE.value),
            flag(bad_limits, Status.SEARCH.value),
            flag(filter[:, 1] > self.max_filter_words - 2, Status.FILTER_TOO_LONG.value),
        ):
            status = first_status(status, other)
        passes = passes & ~self._excluded(exclude) & (status == 0).unsqueeze(1)  # [B, N]
        passing = passes.sum(1)

        rows = self.item_rows.long()
        products = torch.where(finite, query, 0.0) @ self.vectors.to(torch.float32).t()  # [B, R]
        scores = products.index_select(1, rows) * self.scales.flatten()[rows]
        scores = torch.where(passes & ~scores.isnan(), scores, float("-inf"))
        most = min(self.max_candidates, self.item_rows.size(0))
        _, place = scores.topk(most, 1)  # equal ones by place, which is by id
        wanted = torch.where(search[:, 1] == 0, self.candidates, search[:, 1]).unsqueeze(1)
        there = passes.gather(1, place) & (torch.arange(most, device=place.device) < wanted)
        found = padded(torch.where(there, self.item_rows[place], -1), self.max_candidates, -1)
        ids = padded(torch.where(there, self.item_ids[place], -1), self.max_candidates, -1)
        best = rescore(query, self.vectors, self.scales, found)
        stats = torch.stack([torch.full_like(passing, self.clusters), passing, passing, torch.ones_like(passing)], 1)
        stats = torch.where((status == 0).unsqueeze(1), stats, 0).to(torch.int32)
        return found, ids, best, stats, status

    def _excluded(self, exclude: Tensor) -> Tensor:
        """`exclude [B, E]` ids -> which items they are `[B, N]`."""
        count = self.item_ids.size(0)
        place = torch.searchsorted(self.item_ids, exclude).clamp(max=count - 1)
        place = torch.where(self.item_ids[place] == exclude, place, count)  # one column more for ids of no item
        none = torch.zeros_like(exclude[:, :1]).expand(-1, count + 1).contiguous()
        return none.scatter(1, place, torch.ones_like(place))[:, :count] > 0


class PlainNeighbours(nn.Module):
    """`Neighbours` by looking each candidate up among the sorted neighbours of each item of the history."""

    rows: Tensor
    weights: Tensor

    def __init__(self, graph: Neighbours) -> None:
        super().__init__()
        there = (graph.rows >= 0).cumprod(1) > 0  # up to the first that is none
        rows, order = torch.where(there, graph.rows, 2**31 - 1).sort(1)
        self.register_buffer("rows", rows.flatten())
        self.register_buffer("weights", graph.weights.gather(1, order).flatten())
        self.history, self.least, self.each = graph.history, graph.least, graph.rows.size(1)

    def forward(self, history: Tensor, rows: Tensor, scores: Tensor, ids: Tensor, item_rows: Tensor) -> Tensor:
        """As `Neighbours.forward`; no more than `history` of a row's ids are not negative."""
        item_ids = ids[item_rows.long()]
        item = torch.searchsorted(item_ids, history).clamp(max=item_ids.size(0) - 1)
        known = (item_ids[item] == history).unsqueeze(2)  # [B, L, 1]
        first, sought = (item * self.each).unsqueeze(2), rows.unsqueeze(1)
        place, end = first, first + self.each
        for bit in reversed(range(self.each.bit_length())):
            further = place + (1 << bit)
            less = self.rows[(further - 1).clamp(max=self.rows.size(0) - 1)] < sought  # [B, L, M]
            place = torch.where((further <= end) & less, further, place)
        at = place.clamp(max=self.rows.size(0) - 1)
        edge = known & (place < end) & (self.rows[at] == sought) & (sought >= 0)
        weights = torch.where(edge, self.weights[at], 0.0)
        sums, maxima = weights.sum(1), weights.amax(1)
        length = (history >= 0).sum(1, keepdim=True).clamp(1, max(self.history, 1)).to(sums.dtype)
        logs = [torch.log10(of_edges + self.least) for of_edges in (sums, maxima)]
        return torch.stack([scores, sums / length.sqrt(), maxima, logs[0], logs[1]], dim=2)


def rescore(query: Tensor, vectors: Tensor, scales: Tensor, rows: Tensor) -> Tensor:
    """The operator rescore."""
    existing = rows.clamp(min=0).long()
    products = (vectors[existing].to(torch.float32) * query.unsqueeze(1)).sum(2) * scales.flatten()[existing]
    return torch.where((rows < 0) | products.isnan(), float("-inf"), products)


def resolve_weights(task_weights: Tensor, defaults: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
    """The operator resolve_weights."""
    infinite = flag(task_weights.isinf().any(1), Status.TASK_WEIGHTS.value)
    return torch.where(task_weights.isfinite(), task_weights, defaults), first_status(status, infinite)


def select(
    values: Tensor, ids: Tensor, task_scores: Tensor, status: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator select."""
    there = (ids != -1) & (status == 0).unsqueeze(1)
    width = values.size(1)
    ids, order = torch.where(there, ids, NO_ID).topk(width, 1, largest=False)
    of_order = torch.where(there & ~values.isnan(), values, float("-inf")).gather(1, order)
    most = min(k, width)
    _, best = of_order.topk(most, 1)  # equal ones by place, which is by id
    count = there.sum(1).clamp(max=most)
    counts = torch.arange(most, device=ids.device) < count.unsqueeze(1)
    place = order.gather(1, best).unsqueeze(2).expand(-1, -1, task_scores.size(2))
    tasks = torch.where(counts.unsqueeze(2), task_scores.gather(1, place), float("-inf"))
    found = torch.where(counts, ids.gather(1, best), -1)
    scores = torch.where(counts, values.gather(1, order.gather(1, best)), float("-inf"))  # NaN is told as it is
    return (
        padded(found, k, -1),
        padded(scores, k, float("-inf")),
        padded(tasks, k, float("-inf")),
        count.to(torch.int32),
    )


def add_by_index(summed: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """`summed.index_add(1, index, source)` of `summed [B, G]`, `source [B, T]`: TensorRT scatters without adding."""
    of_group = index.unsqueeze(1) == torch.arange(summed.size(dim), device=index.device)  # [T, G]
    return summed + torch.where(of_group, source.unsqueeze(2), 0).sum(1)


def padded(tensor: Tensor, width: int, value: float) -> Tensor:
    """`[B, M, ...]` with M made `width`, at least M, by `value`."""
    more = width - tensor.size(1)
    return nn.functional.pad(tensor, [0] * 2 * (tensor.dim() - 2) + [0, more], value=value) if more else tensor
