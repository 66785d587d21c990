"""Several vectors of a user over the same vectors of items: one for each group of tasks.

The sum over groups g of w_g <q_g, v> is <sum of w_g q_g, v>: whatever a request's weights of the groups are, one search
finds the items of the largest weighted sum.

Letters: B users, G groups, T tasks, D dims, M candidates, R rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMALLEST = 1e-300  # a divisor where all weights are 0; weights are float64, so that sums and products stay finite


class TaskGroups(nn.Module):
    """From the vectors of a user to the one that is searched with.

    The weight of a group is the sum of those of its tasks, each times the task's factor.
    """

    group_of_task: Tensor
    factors: Tensor
    default_weights: Tensor

    def __init__(self, groups: Sequence[Sequence[int]], factors: Sequence[float]) -> None:
        """`groups`: the tasks of each, every task in one; `factors` [T]: those of a value formula, 1 without one."""
        super().__init__()
        self.count, self.smallest = len(groups), SMALLEST  # TorchScript reads no global
        of_task = {task: group for group, tasks in enumerate(groups) for task in tasks}
        # What the configuration says is no part of what is learned.
        self.register_buffer("group_of_task", torch.tensor([of_task[t] for t in range(len(factors))]), persistent=False)
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.float64), persistent=False)
        self.register_buffer("default_weights", self.scaled(self.factors.unsqueeze(0)), persistent=False)  # [1, G]

    def forward(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """`vectors [B, G, D]` of users and finite `weights [B, T]` of their tasks -> queries `[B, D]`, of any length.

        Where the weights are all 0, or their vectors cancel, nothing is said about what to find: the default's query.
        """
        query = self.combined(vectors, self.scaled(weights * self.factors))
        return torch.where((query == 0).all(1, keepdim=True), self.default(vectors), query)

    @torch.jit.export
    def default(self, vectors: Tensor) -> Tensor:
        """The queries `[B, D]` of weights that are all 1, which are the artifact's."""
        return self.combined(vectors, self.default_weights)

    @torch.jit.export
    def by_group(self, of_tasks: Tensor) -> Tensor:
        """`[B, T]` summed over the tasks of each group: `[B, G]`."""
        return of_tasks.new_zeros(of_tasks.size(0), self.count).index_add(1, self.group_of_task, of_tasks)

    def scaled(self, of_tasks: Tensor) -> Tensor:
        """`[B, T] float64` summed over the tasks of each group, the largest sum made 1 or -1: `[B, G] float32`."""
        weights = self.by_group(of_tasks)
        return (weights / weights.abs().amax(1, keepdim=True).clamp(min=self.smallest)).to(torch.float32)

    def combined(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """Sums `[B, D]` of `vectors [B, G, D]` times `weights [B, G]`.

        Group by group: a product of matrices would round otherwise for another B.
        """
        query = vectors[:, 0] * weights[:, 0:1]
        for g in range(1, vectors.size(1)):
            query = query + vectors[:, g] * weights[:, g : g + 1]
        return query


class GroupScores(nn.Module):
    """No reranker: a task's score is the inner product of its group's vector and the item's."""

    def __init__(self, groups: TaskGroups) -> None:
        super().__init__()
        self.groups = groups

    def forward(
        self,
        query: Tensor,
        history: Tensor,
        rows: Tensor,
        scores: Tensor,
        vectors: Tensor,
        scales: Tensor,
        ids: Tensor,
        item_rows: Tensor,
    ) -> Tensor:
        """As `Reranking.forward`, but `query [B, G, D]`; -inf where there is no row."""
        found = [
            torch.ops.silvertriton.rescore(of_group.contiguous(), vectors, scales, rows) for of_group in query.unbind(1)
        ]
        return torch.stack(found, 2)[:, :, self.groups.group_of_task]


class GroupReranking(nn.Module):
    """A reranker that reads the query of the artifact's own weights, with which it was trained, and its scores.

    A request's weights choose the candidates; the probability of a task for a candidate they leave alone.
    """

    def __init__(self, groups: TaskGroups, rerank: nn.Module) -> None:
        super().__init__()
        self.groups = groups
        self.rerank = rerank

    def forward(
        self,
        query: Tensor,
        history: Tensor,
        rows: Tensor,
        scores: Tensor,
        vectors: Tensor,
        scales: Tensor,
        ids: Tensor,
        item_rows: Tensor,
    ) -> Tensor:
        """As `Reranking.forward`, but `query [B, G, D]`."""
        of_default = self.groups.default(query)
        scores = torch.ops.silvertriton.rescore(of_default, vectors, scales, rows)
        probabilities: Tensor = self.rerank(of_default, history, rows, scores, vectors, scales, ids, item_rows)
        return probabilities
