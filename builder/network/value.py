"""The value model: from the scores of the tasks to the one score that orders results."""

import torch
from torch import Tensor, nn

from builder.network.search import flag
from client.schema import Status


class ValueModel(nn.Module):
    """Weighted sum over tasks, with the artifact's weights unless the request brings its own."""

    weights: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(tasks))

    def forward(self, task_scores: Tensor, weights: Tensor) -> Tensor:
        """`task_scores [B, M, T]`, `weights [B, T]` -> value `[B, M]`."""
        return (task_scores * weights.unsqueeze(1)).sum(2)

    @torch.jit.export
    def check_weights(self, task_weights: Tensor) -> tuple[Tensor, Tensor]:
        """`task_weights [B, T]`, NaN: the artifact's -> the weights to use `[B, T]`, status `[B] int32`."""
        bad = torch.isinf(task_weights)
        weights = torch.where(bad | torch.isnan(task_weights), self.weights, task_weights)
        return weights, flag(bad.any(1), Status.TASK_WEIGHTS.value)
