"""Sampled softmax with corrected logits.

The batch's own items serve as negatives (drawn by popularity) together with items drawn uniformly (Yang et al. 2020,
doi:10.1145/3366424.3386195). The logit of a negative is lessened by the log of how often its item is expected among
the candidates, so that the sum over candidates stands for the sum over the catalogue (Yi et al. 2019,
doi:10.1145/3298689.3346996). A row's positive is there with certainty and stays as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def expected_counts(popularity: Tensor, batch: int, negatives: int) -> Tensor:
    """How often each item is expected among the candidates of a step, `[N] float32`.

    `popularity [N]`: share of each item in the training positives; `batch` positives and `negatives` uniform draws.
    """
    return batch * popularity + negatives / popularity.size(0)


def sampled_softmax(
    users: Tensor,
    items: Tensor,
    positions: Tensor,
    log_expected: Tensor,
    temperature: float,
    *,
    first: int = 0,
    counted: Tensor | None = None,
) -> Tensor:
    """Summed loss of some users of a batch, a scalar.

    `users [b, D]`, unit vectors of the rows `first` to `first` + b of a batch of B; `items [B + S, D]`: the positives
    of the whole batch in its order, then the negatives; `positions [B + S] int64`: which items these are;
    `log_expected [B + S]`: log of `expected_counts`. Every row sees all B + S candidates; one that is its positive by
    accident is left out of its negatives. `counted [b] bool`: the rows whose loss is summed, None for all.
    """
    last = first + users.size(0)
    logits = torch.addmm(-log_expected, users / temperature, items.T)  # [b, B + S]
    with torch.no_grad():
        accidental = positions[first:last].unsqueeze(1) == positions.unsqueeze(0)
        accidental.diagonal(first).fill_(False)
        row, column = accidental.nonzero(as_tuple=True)
    logits.index_put_((row, column), logits.new_tensor(-torch.inf))
    logits.diagonal(first).add_(log_expected[first:last])  # takes the correction back
    own = torch.arange(first, last, device=logits.device)
    if counted is None:
        return F.cross_entropy(logits, own, reduction="sum")
    return F.cross_entropy(logits, torch.where(counted, own, -1), reduction="sum", ignore_index=-1)
