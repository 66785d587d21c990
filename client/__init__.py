"""Client of a SilverTriton artifact on a Triton Inference Server. Needs numpy and tritonclient, never torch.

from client import F, RetrievalClient

with RetrievalClient("localhost:8001", model="retrieval", timeout=1.0) as client:
    for hit in client.retrieve(user={"user_id": 42}, filter=F.genres.any_of("Drama") & (F.year >= 1990), k=10):
        print(hit.item_id, hit.score)
"""

from client._client import RetrievalClient
from client._codec import Codec
from client._models import Hit, Ranking, Request, Retrieval, Stats
from client.errors import (
    ClientClosed,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidValue,
    LimitExceeded,
    ModelUnavailable,
    RequestError,
    RowStatusError,
    SchemaError,
    SchemaMismatch,
    ServerError,
    SilverTritonError,
    UnknownName,
)
from client.filters import (
    AllOf,
    And,
    AnyOf,
    Condition,
    F,
    Not,
    Or,
    Range,
    Unknown,
    compile_filter,
    everything,
    matches,
)
from client.schema import Feature, Schema, Status
from client.transport import ModelConfig, Transport

__all__ = [
    "AllOf",
    "And",
    "AnyOf",
    "ClientClosed",
    "Codec",
    "Condition",
    "ConnectionFailed",
    "DeadlineExceeded",
    "F",
    "Feature",
    "Hit",
    "InvalidValue",
    "LimitExceeded",
    "ModelConfig",
    "ModelUnavailable",
    "Not",
    "Or",
    "Range",
    "Ranking",
    "Request",
    "RequestError",
    "Retrieval",
    "RetrievalClient",
    "RowStatusError",
    "Schema",
    "SchemaError",
    "SchemaMismatch",
    "ServerError",
    "SilverTritonError",
    "Stats",
    "Status",
    "Transport",
    "Unknown",
    "UnknownName",
    "compile_filter",
    "everything",
    "matches",
]
