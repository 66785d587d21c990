"""The layers of a reranker as the operator `rerank` takes them: with their biases, outputs padded to whole vectors.

Letters: D dims, H hidden units, S of the second layer, T tasks, F features of a candidate.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VECTOR = 16  # floats


class PackedLayers(NamedTuple):
    """`user [D + 2, H]`: rows of the query, of the length of the history, and the bias; `first [D + F, H]`: of query
    times vector, and of the features; `second [H + 1, S]`; `output [S + F + 1, T]`: of the second layer, of the
    features, and the bias. float32; D is 0 for a reranker that reads no vectors; columns are padded with zeros to
    multiples of 16.
    """

    user: Tensor
    first: Tensor
    second: Tensor
    output: Tensor


def packed(*parts: Tensor) -> Tensor:
    """`parts`, each `[rows, columns]` or `[columns]`, below one another, columns padded."""
    rows = torch.cat([part.reshape(-1, part.size(-1)) for part in parts]).detach().float()
    return F.pad(rows, (0, -rows.size(1) % VECTOR)).contiguous()


def of_inputs(layer: nn.Linear) -> Tensor:
    """A layer's weights `[inputs, outputs]`."""
    return layer.weight.t()
