"""The same questions as exact search, asked of a running server through the client."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from builder.data.catalogue import Catalogue
from client import Request, Retrieval, RetrievalClient

REQUESTS_PER_CALL = 64


def served_search(
    client: RetrievalClient,
    requests: Sequence[Request],
    catalogue: Catalogue,
    k: int,
    *,
    timeout: float = 60.0,
    on_requests: Callable[[int], None] = lambda count: None,
) -> NDArray[np.int64]:
    """Retrieve for many users; returns positions in the catalogue `[Q, k]`, -1 past what came back.

    `timeout`: seconds for each call of 64 requests; `on_requests` receives how many were answered since its last call.
    Raises the client's errors, a row's too: an evaluation with holes would say nothing.
    """
    found = np.full((len(requests), k), -1, dtype=np.int64)
    for start in range(0, len(requests), REQUESTS_PER_CALL):
        part = requests[start : start + REQUESTS_PER_CALL]
        for row, result in enumerate(client.retrieve_many(part, timeout=timeout), start=start):
            if not isinstance(result, Retrieval):
                raise result
            found[row, : result.count] = catalogue.find(result.item_ids)
        on_requests(len(part))
    return found
