"""The two networks of the mesh, made of the unified network's own modules and tensors.

Letters: B requests, D dims, M candidates, L history, T tasks, K results.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Scoring(nn.Module):
    """Candidates by position in the catalogue -> results, with the modules and tensors of the unified network."""

    vectors: Tensor
    scales: Tensor
    ids: Tensor
    item_rows: Tensor

    def __init__(self, network: Any) -> None:
        super().__init__()
        for name in ("vectors", "scales", "ids", "item_rows"):
            self.register_buffer(name, getattr(network.search, name))
        self.rerank, self.value, self.items = network.rerank, network.value, network.items
        self.results = int(network.results)

    def forward(
        self, query: Tensor, history: Tensor, positions: Tensor, retrieved: Tensor, task_weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`query [B, D]`, `history [B, L] int64`, `positions [B, M] int32` and scores `retrieved [B, M]`, -1 and -inf
        past the last, `task_weights [B, T]` -> the outputs of the unified network, without status and stats."""
        status = torch.zeros(query.size(0), dtype=torch.int32)
        weights, status = self.value.resolve_weights(task_weights, status)
        rows = torch.where(positions < 0, -1, self.item_rows[positions.clamp(min=0).long()])
        ids = torch.where(rows < 0, -1, self.ids[rows.clamp(min=0).long()])
        task_scores = self.rerank(
            query, history, rows, retrieved, self.vectors, self.scales, self.ids, self.item_rows
        )  # [B, M, T]
        value = self.value(task_scores, self.items.read_numbers(rows), weights)  # [B, M]
        item_ids, scores, tasks, count = torch.ops.silvertriton.select(value, ids, task_scores, status, self.results)
        return item_ids, scores, tasks, count.unsqueeze(1)


class Tower(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.tower = network.tower
