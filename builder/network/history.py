"""From the items of a user's history to one vector: their mean, or self-attention over their order.

Letters: B users, L history as it comes, R entries that are read at most, P entries behind one another, D dims.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pooling = Literal["mean", "attention"]
INITIAL_STD = 0.1  # of positions, as of the items they are added to
FEED_FORWARD = 2  # hidden units a dimension
MASKED = -1e9  # finite: a history without any entry must not become NaN; exp of it is 0 beside any real logit


def newest(history: Tensor, length: int) -> Tensor:
    """`history [B, L] int64`, newest last, with all but the newest `length` entries that are not negative set to -1."""
    present = (history >= 0).to(torch.int64)  # [B, L]
    age = present.sum(1, keepdim=True) - present.cumsum(1)  # newer entries than this one
    return torch.where(age < length, history, -1)


class MeanPooling(nn.Module):
    """The mean of the items' embeddings; zero for an empty history."""

    def forward(self, slots: Tensor, table: Tensor) -> Tensor:
        """`slots [B, L] int64` rows of `table [V, D]`, 0 where there is no item -> `[B, D]`."""
        summed = F.embedding_bag(slots, table, mode="sum", padding_idx=0)
        return summed / (slots > 0).sum(1, keepdim=True).clamp(min=1)

    def behind_one_another(self, slots: Tensor, offsets: Tensor, table: nn.Embedding) -> Tensor:
        """`slots [P] int64`, row b's from `offsets[b]` to `offsets[b + 1]`, none of them 0 -> `[B, D]`."""
        summed = F.embedding_bag(slots, table.weight, offsets[:-1], mode="sum", sparse=table.sparse)
        return summed / offsets.diff().clamp(min=1).unsqueeze(1)


class AttentionPooling(nn.Module):
    """Self-attention over the history, as SASRec has it (Kang and McAuley 2018, doi:10.1109/ICDM.2018.00035).

    The input is an item's embedding plus that of its position, counted from the newest item, so that it does not depend
    on how much older history there is. The result is what the last block makes of the newest item; zero for an empty
    history. Unlike SASRec, which trains on all positions of a sequence at once, every example has one target and a
    history that ended before it: nothing needs a causal mask, and the last block computes the newest position alone.

    `length`: most entries of a history.
    """

    def __init__(self, dims: int, length: int, *, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.length, self.masked = length, MASKED  # TorchScript reads no global
        self.positions = nn.Parameter(torch.empty(length, dims))
        nn.init.normal_(self.positions, std=INITIAL_STD)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dims, heads, dropout, last=i == blocks - 1) for i in range(blocks))

    def forward(self, slots: Tensor, table: Tensor) -> Tensor:
        """`slots [B, L] int64` rows of `table [V, D]`, 0 where there is no item, newest last; at most `length` of a row
        are items -> `[B, D]`."""
        newest_first = self.newest_first(slots)  # [B, R]
        return self.attend(newest_first, F.embedding(newest_first, table))

    def newest_first(self, slots: Tensor) -> Tensor:
        """`slots [B, L]` without what is between and beside the items: `[B, R]`, newest first, then 0."""
        known = slots > 0
        newer = known.flip(1).cumsum(1).flip(1) - 1  # [B, L]: items newer than this one
        width = min(slots.size(1), self.length)
        place = torch.where(known, newer, width)
        return slots.new_zeros(slots.size(0), width + 1).scatter_(1, place, slots)[:, :width]

    def attend(self, slots: Tensor, items: Tensor) -> Tensor:
        """`slots [B, R]`, newest first, and their embeddings `items [B, R, D]` -> `[B, D]`."""
        known = slots > 0
        mask = torch.where(known, 0.0, self.masked).to(items.dtype)[:, None, None]  # [B, 1, 1, R]
        hidden = self.dropout(items + self.positions[: slots.size(1)])
        for block in self.blocks:
            hidden = block(hidden, mask)
        return torch.where(known[:, :1], hidden[:, 0], 0.0)

    def behind_one_another(self, slots: Tensor, offsets: Tensor, table: nn.Embedding) -> Tensor:
        """As `MeanPooling.behind_one_another`; no row longer than `length`."""
        lengths = offsets.diff()
        rows = torch.arange(len(lengths), device=slots.device).repeat_interleave(lengths)
        columns = offsets[rows + 1] - 1 - torch.arange(len(slots), device=slots.device)  # newest first
        padded = slots.new_zeros(len(lengths), self.length)
        padded[rows, columns] = slots
        return self.attend(padded, table(padded))


class Block(nn.Module):
    """Attention and a feed-forward layer, each on normalised input and added to it (pre-norm, Xiong et al. 2020).

    `last`: only the first position is computed.
    """

    def __init__(self, dims: int, heads: int, dropout: float, *, last: bool) -> None:
        super().__init__()
        self.heads, self.rate, self.last = heads, dropout, last
        self.before_attention = nn.LayerNorm(dims)
        self.query = nn.Linear(dims, dims)
        self.key_value = nn.Linear(dims, 2 * dims)
        self.attended = nn.Linear(dims, dims)
        self.before_feed_forward = nn.LayerNorm(dims)
        self.widen = nn.Linear(dims, FEED_FORWARD * dims)
        self.narrow = nn.Linear(FEED_FORWARD * dims, dims)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`hidden [B, R, D]`, `mask [B, 1, 1, R]` added to the logits -> `[B, R, D]`, `[B, 1, D]` if the last."""
        normed = self.before_attention(hidden)
        keys, values = self.key_value(normed).chunk(2, dim=2)  # [B, R, D] each
        if self.last:
            hidden, normed = hidden[:, :1], normed[:, :1]
        attended = F.scaled_dot_product_attention(
            self.split(self.query(normed)),
            self.split(keys),
            self.split(values),
            attn_mask=mask,
            dropout_p=self.rate if self.training else 0.0,
        )  # [B, heads, R, D / heads]
        hidden = hidden + self.dropout(self.attended(attended.transpose(1, 2).flatten(2)))
        inner = self.dropout(F.gelu(self.widen(self.before_feed_forward(hidden))))
        result: Tensor = hidden + self.dropout(self.narrow(inner))
        return result

    def split(self, joined: Tensor) -> Tensor:
        """`[B, R, D]` -> `[B, heads, R, D / heads]`."""
        each = joined.size(2) // self.heads  # -1 would not do: a process may have no row
        return joined.view(joined.size(0), joined.size(1), self.heads, each).transpose(1, 2)
