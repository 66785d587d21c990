"""The value model: from the scores of the tasks to the one score that orders results."""

import torch
from torch import Tensor, nn


class ValueModel(nn.Module):
    """Weighted sum over tasks, with the artifact's weights unless the request brings its own."""

    weights: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(tasks))

    def forward(self, task_scores: Tensor, weights: Tensor) -> Tensor:
        """`task_scores [B, M, T]`, `weights [B, T]` -> value `[B, M]`."""
        if task_scores.size(2) == 1:
            return task_scores.squeeze(2) * weights
        # Task by task: a batched matrix product of so few tasks took 5% of a whole search of 64 requests.
        value = task_scores[:, :, 0] * weights[:, :1]
        for task in range(1, task_scores.size(2)):
            value = value + task_scores[:, :, task] * weights[:, task : task + 1]
        return value

    @torch.jit.export
    def resolve_weights(self, task_weights: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
        """`task_weights [B, T]`, NaN: the artifact's; `status [B] int32` -> weights `[B, T]`, status `[B] int32`."""
        weights, status = torch.ops.silvertriton.resolve_weights(task_weights, self.weights, status)
        return weights, status
