"""The same questions as exact search, asked of a running server over gRPC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from builder.data.catalogue import Catalogue
from builder.errors import BuilderError
from builder.training.run import Requests
from client import Codec, Request, Retrieval, RetrievalClient
from client.hashing import UNKNOWN_KEY
from client.schema import Schema
from client.transport import Transport

REQUESTS_PER_CALL = 64


def served_search(
    transport: Transport,
    model: str,
    asking: Requests,
    catalogue: Catalogue,
    k: int,
    *,
    depth: int = 0,
    timeout: float = 60.0,
    on_requests: Callable[[int], None] = lambda count: None,
) -> NDArray[np.int64]:
    """Retrieve for held-out users; returns positions in the catalogue `[Q, k]`, -1 past what came back.

    With a `depth` above `k`, as many results as that, if the artifact gives so many. The items each user has seen are
    excluded. `timeout`: seconds for each call of 64 users; `on_requests` receives how many were answered since its last
    call. Raises `BuilderError` if the server has an artifact of other user features, and the client's errors, a row's
    too: an evaluation with holes would say nothing.
    """
    with RetrievalClient("the server", model=model, timeout=timeout, transport=transport) as client:
        schema = client.schema
    names = [feature.name for feature in schema.user_features]
    if names != list(asking.features):
        raise BuilderError(
            f"model {model!r} takes the user features {names}, the run has {list(asking.features)}",
            remedy="Serve the version that was exported from this run, or name its model with --model.",
        )
    codec = Codec(_keys_as_they_are(schema))
    k = max(k, min(depth, schema.max_results))
    found = np.full((len(asking), k), -1, dtype=np.int64)
    for start in range(0, len(asking), REQUESTS_PER_CALL):
        rows = range(start, min(start + REQUESTS_PER_CALL, len(asking)))
        inputs = codec.encode([_request(asking, row, codec.schema, k) for row in rows])
        results = codec.decode(transport.infer(model, inputs, timeout).outputs, [k] * len(rows))
        for row, result in zip(rows, results, strict=True):
            if not isinstance(result, Retrieval):
                raise result
            found[row, : result.count] = catalogue.find(result.item_ids)
        on_requests(len(rows))
    return found


def _keys_as_they_are(schema: Schema) -> Schema:
    """The schema with user strings as integers: held-out users are kept as keys, which is what travels anyway."""
    features = tuple(
        replace(feature, values="integer") if feature.values else feature for feature in schema.user_features
    )
    return replace(schema, user_features=features)


def _request(asking: Requests, row: int, schema: Schema, k: int) -> Request:
    values = {feature.name: asking.features[feature.name][row, 0].item() for feature in schema.user_features}
    history = asking.history[row]
    return Request(
        user={name: None if value == UNKNOWN_KEY else value for name, value in values.items()},
        history=history[history >= 0] if schema.history_length else None,
        exclude=asking.exclude[row],
        k=k,
    )
