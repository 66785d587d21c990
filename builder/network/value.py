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
        return torch.bmm(task_scores, weights.unsqueeze(2)).squeeze(2)

    @torch.jit.export
    def resolve_weights(self, task_weights: Tensor, status: Tensor) -> tuple[Tensor, Tensor]:
        """`task_weights [B, T]`, NaN: the artifact's; `status [B] int32` -> weights `[B, T]`, status `[B] int32`."""
        weights, status = torch.ops.silvertriton.resolve_weights(task_weights, self.weights, status)
        return weights, status
