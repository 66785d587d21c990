"""Client of a SilverTriton artifact on a Triton Inference Server. Needs numpy and tritonclient, never torch.

from client import F, RetrievalClient

with RetrievalClient("localhost:8001", model="retrieval", timeout=1.0) as client:
    for hit in client.retrieve(user={"user_id": 42}, filter=F.genres.any_of("Drama") & (F.year >= 1990), k=10):
        print(hit.item_id, hit.score)

`AsyncRetrievalClient` is the same for asyncio, `client.testing.FakeServer` a server for tests.
"""

from client._async_client import AsyncRetrievalClient
from client._client import RetrievalClient
from client._codec import Codec
from client._device import DeviceArray
from client._explanation import Explanation
from client._models import Hit, Ranking, Request, Retrieval, Stats
from client.contract import Contract, Rules
from client.errors import (
    AccessDenied,
    ClientClosed,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidValue,
    LimitExceeded,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
    RequestError,
    RowStatusError,
    SchemaError,
    SchemaMismatch,
    ServerError,
    SilverTritonError,
    UnknownName,
    Unsupported,
    WrongServer,
)
from client.filters import (
    AllOf,
    And,
    AnyOf,
    Condition,
    F,
    FilterCost,
    ItemIn,
    Not,
    Or,
    Range,
    Unknown,
    compile_filter,
    everything,
    filter_cost,
    item_in,
    matches,
    parse_filter,
)
from client.options import TLS, Retry
from client.schema import Feature, Schema, Status
from client.transport import Answer, AsyncTransport, ModelConfig, Transport

__all__ = [
    "TLS",
    "AccessDenied",
    "AllOf",
    "And",
    "Answer",
    "AnyOf",
    "AsyncRetrievalClient",
    "AsyncTransport",
    "ClientClosed",
    "Codec",
    "Condition",
    "ConnectionFailed",
    "Contract",
    "DeadlineExceeded",
    "DeviceArray",
    "Explanation",
    "F",
    "Feature",
    "FilterCost",
    "Hit",
    "InvalidValue",
    "ItemIn",
    "LimitExceeded",
    "ModelConfig",
    "ModelNotFound",
    "ModelUnavailable",
    "Not",
    "Or",
    "QueueFull",
    "Range",
    "Ranking",
    "Request",
    "RequestError",
    "Retrieval",
    "RetrievalClient",
    "Retry",
    "RowStatusError",
    "Rules",
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
    "Unsupported",
    "WrongServer",
    "compile_filter",
    "everything",
    "filter_cost",
    "item_in",
    "matches",
    "parse_filter",
]
