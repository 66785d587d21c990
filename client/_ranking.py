"""One ranking request to tensors and tensors to its result: docs/wire-contract.md without any IO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client._codec import LEAST_IDS, Codec, Tensors, checked, padded, row_error
from client._models import Ranking, Request
from client._values import item_ids
from client.contract import Contract
from client.errors import LimitExceeded, invalid_value
from client.schema import Schema


class RankingCodec:
    """Encodes and decodes for one schema, as `Codec` does for retrieval. Threads may share it."""

    def __init__(self, schema: Schema, contract: Contract, device: int | None = None) -> None:
        self._codec = Codec(schema, contract, device)
        history = ("history",) if schema.history_length else ()
        features = (*(feature.name for feature in schema.user_features), *history)
        self._shared = (*(("query",) if schema.query_dims else features), "task_weights")
        self._tasks = schema.tasks

    def encode(self, request: Request, items: Iterable[int]) -> tuple[Tensors, NDArray[np.int64]]:
        """The tensors of a request for one user, and the ids in it; of `request` what says for whom, and task weights.

        Raises `RequestError`.
        """
        tensors = self._codec.encode([request])
        ids = item_ids("items", items)
        return {**{name: tensors[name] for name in self._shared}, "items": padded([ids.tobytes()], LEAST_IDS, -1)}, ids

    def decode(
        self,
        outputs: Mapping[str, NDArray[Any]],
        items: NDArray[np.int64],
        k: int,
        latency: float = 0.0,
        version: int | None = None,
    ) -> Ranking:
        """The answer to its result, the best `k`; `items` [n] as they were asked for. Latency in seconds.

        Raises `RowStatusError`, and `SchemaMismatch` for outputs that do not follow the contract.
        """
        width = padded([items.tobytes()], LEAST_IDS, -1).shape[1]
        scores, task_scores, known, status = checked(
            outputs,
            1,
            (
                ("scores", (width,), np.dtype(np.float32)),
                ("task_scores", (width, len(self._tasks)), np.dtype(np.float32)),
                ("known", (width,), np.dtype(np.int32)),
                ("status", (1,), np.dtype(np.int32)),
            ),
        )
        if status[0, 0]:
            raise row_error(int(status[0, 0]))
        found = known[0, : len(items)] != 0
        positions = np.flatnonzero(found)
        values = scores[0, positions]
        worst_first = np.where(np.isnan(values), np.inf, -values)  # in the order of select: NaN with -inf
        positions = positions[np.lexsort((items[positions], worst_first))][:k]
        return Ranking(
            items[positions],
            scores[0, positions],
            task_scores[0, positions],
            self._tasks,
            positions,
            items[~found],
            latency,
            version,
        )


def ranked_at_most(k: int | None, items: int) -> int:
    """The `k` of a request of that many items. Raises `RequestError`."""
    if k is None:
        return items
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise invalid_value("k", k, "an integer")
    if k < 1:
        raise LimitExceeded(f"k: got {k}, expected 1 or more")
    return int(k)
