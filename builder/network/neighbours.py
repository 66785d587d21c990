"""How near candidates are to a user's history in a graph of items, for the reranker.

Letters: B requests, M candidates, L history, N items, J neighbours of an item, R rows.
"""

import torch
from torch import Tensor, nn

FEATURES = 5
LIMIT = 8.0  # of a feature; they are of the order of 1


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
        self.limit = LIMIT  # TorchScript reads no global
        self.register_buffer("rows", rows)
        self.register_buffer("weights", weights)

    def forward(self, history: Tensor, rows: Tensor, scores: Tensor, ids: Tensor, item_rows: Tensor) -> Tensor:
        """Features of candidates beside the others of their request.

        `history [B, L] int64` item ids; `rows [B, M] int32`, -1 for none; `scores [B, M]` of the search, finite;
        `ids [R] int64` and `item_rows [N] int32` of the index. Returns `[B, M, 5]`: the score, the summed and the
        largest weight of an edge from the history, each standardised over the candidates, and the logarithms of both
        weights by their mean.
        """
        sums, maxima = torch.ops.silvertriton.neighbour_scores(
            history, rows, ids, item_rows, self.rows, self.weights, self.history
        )
        real = (rows >= 0).to(torch.float32)
        count = real.sum(1, keepdim=True).clamp(min=1)
        features = [self.standard(scores, real, count)]
        for weight in [sums, maxima]:
            mean = ((weight * real).sum(1, keepdim=True) / count).clamp(min=1e-6)
            features += [self.standard(weight, real, count), torch.log((weight + 1e-3 * mean) / mean)]
        return torch.stack(features, dim=2).clamp(-self.limit, self.limit) * real.unsqueeze(2)

    def standard(self, values: Tensor, real: Tensor, count: Tensor) -> Tensor:
        """`values [B, M]` less their mean over real candidates, by their standard deviation."""
        centred = (values - (values * real).sum(1, keepdim=True) / count) * real
        return centred / ((centred * centred).sum(1, keepdim=True) / count).sqrt().clamp(min=1e-6)
