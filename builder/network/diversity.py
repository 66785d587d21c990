"""The last selection under rules: at most so many results that share a value of a feature, and similar ones apart.

Letters as in docs/operators.md: B requests, M candidates, T tasks, D dims, R rows, K results, V groups, NV their rows.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROWS_PER_CHUNK = 65_536  # 32 MiB of float32 at 128 dims


class DiverseSelection(nn.Module):
    """Selects results under rules, from all candidates that the search has found.

    A group is one value of one feature that has a rule; the rows of an item list its groups. All groups stand in one
    list by row, so that a candidate costs one look-up, however many rules there are.
    """

    inverse_lengths: Tensor
    group_offsets: Tensor
    groups: Tensor
    most: Tensor

    def __init__(
        self, columns: Mapping[str, Tensor], vectors: Tensor, *, at_most: Mapping[str, int], mmr: float | None
    ) -> None:
        """`columns`: those of `builder.index.forward`; `vectors [R, D] float16` of the index.

        `at_most`: how many results may share a value of each feature, a category or tags; `mmr`: the share of relevance
        in maximal marginal relevance, 0 to 1, None: relevance alone.
        """
        super().__init__()
        group_offsets, groups, most = _groups(columns, len(vectors), at_most)
        self.register_buffer("group_offsets", group_offsets)
        self.register_buffer("groups", groups)
        self.register_buffer("most", most)
        self.mmr = 1.0 if mmr is None else float(mmr)
        self.register_buffer("inverse_lengths", _inverse_lengths(vectors) if self.mmr < 1 else torch.empty(0))

    def forward(
        self, values: Tensor, ids: Tensor, rows: Tensor, task_scores: Tensor, status: Tensor, vectors: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Choose up to `k` candidates of each request.

        `values [B, M] float32`, `ids [B, M] int64`, `rows [B, M] int32`, `task_scores [B, M, T] float32`, `status [B]
        int32`, `vectors [R, D] float16`. Returns ids `[B, K]`, values `[B, K]` and task scores `[B, K, T]` in the order
        chosen, and how many `[B] int32`.
        """
        best, scores, tasks, count = torch.ops.silvertriton.select_diverse(
            values,
            ids,
            rows,
            task_scores,
            status,
            vectors,
            self.inverse_lengths,
            self.group_offsets,
            self.groups,
            self.most,
            self.mmr,
            k,
        )
        return best, scores, tasks, count


def _groups(columns: Mapping[str, Tensor], rows: int, at_most: Mapping[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """`group_offsets [R + 1] int64`, `groups [NV] int32` and `most [V] int32`; `group_offsets` is [0] where V is 0."""
    of_rows, of_groups, most = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    first = 0
    for name, limit in at_most.items():
        row, code = _values(columns, name)
        values = len(columns[f"{name}.keys"])
        of_rows.append(row)
        of_groups.append((code + (first - 1)).astype(np.int32))
        most.append(np.full(values, limit, np.int32))
        first += values
    row = np.concatenate(of_rows)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]) if first else np.empty(0)
    groups = np.concatenate(of_groups)[np.argsort(row, kind="stable")]
    return torch.from_numpy(offsets.astype(np.int64)), torch.from_numpy(groups), torch.from_numpy(np.concatenate(most))


def _values(columns: Mapping[str, Tensor], name: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Every value of a category or of tags: its row, and its code (from 1)."""
    codes = columns[f"{name}.codes"].numpy()
    if f"{name}.offsets" in columns:
        sizes = np.diff(columns[f"{name}.offsets"].numpy())
        return np.repeat(np.arange(len(sizes)), sizes), codes
    known = np.flatnonzero(codes)
    return known, codes[known]


def _inverse_lengths(vectors: Tensor) -> Tensor:
    """1 over the lengths of `vectors [R, D] float16`, 0 for zero rows: [R] float32."""
    lengths = torch.cat([part.to(torch.float32).norm(dim=1) for part in vectors.split(ROWS_PER_CHUNK)])
    return torch.where(lengths > 0, 1 / lengths, torch.zeros_like(lengths))
