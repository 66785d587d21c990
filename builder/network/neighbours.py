"""How near candidates are to a user's history in a graph of items, for the reranker.

Letters: B requests, M candidates, L history, N items, J neighbours of an item, R rows.
"""

import torch
from torch import Tensor, nn

FEATURES = 5
LEAST = 1e-3  # added to weights before their logarithm; those of neighbours are mostly between .01 and 1


class Neighbours(nn.Module):
    """The graph, and what it tells of candidates.

    `rows [N, J] int32`: the neighbours of the items by ascending id as rows of the index (or as positions in the
    catalogue, where rows are those), -1 past the last; `weights [N, J] float32`; `history`: newest items that count.
    """

    rows: Tensor
    weights: Tensor

    def __init__(self, rows: Tensor, weights: Tensor, *, history: int) -> None:
        super().__init__()
        self.history = history
        self.least = LEAST  # TorchScript reads no global
        self.register_buffer("rows", rows)
        self.register_buffer("weights", weights)

    def forward(self, history: Tensor, rows: Tensor, scores: Tensor, ids: Tensor, item_rows: Tensor) -> Tensor:
        """Features of candidates, each one's its own: they do not depend on what else is asked about.

        `history [B, L] int64` item ids, -1 for what does not count; `rows [B, M] int32`, -1 for none; `scores [B, M]`
        of the search, finite; `ids [R] int64` and `item_rows [N] int32` of the index. Returns `[B, M, 5]`: the score,
        the summed weight of the edges from the history by the root of its length, the largest weight, and the
        logarithms of sum and largest.
        """
        sums, maxima = torch.ops.silvertriton.neighbour_scores(
            history, rows, ids, item_rows, self.rows, self.weights, self.history
        )
        length = (history >= 0).sum(1, keepdim=True).clamp(1, max(self.history, 1)).to(sums.dtype)
        logs = [torch.log10(weights + self.least) for weights in [sums, maxima]]
        return torch.stack([scores, sums / length.sqrt(), maxima, logs[0], logs[1]], dim=2)
