"""The two calls that a client makes, so that tests and other channels can take the place of gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from numpy.typing import NDArray

Headers = Mapping[str, str]
NO_HEADERS: Headers = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a client reads of Triton's model configuration: string parameters, and rows a request may have (0: one)."""

    parameters: Mapping[str, str]
    max_batch_size: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's outputs by name, and the version of it that computed them ("" from a transport that cannot tell)."""

    outputs: Mapping[str, NDArray[Any]]
    version: str = ""


class Transport(Protocol):
    """Carries tensors to a model of one endpoint and back. Several threads may call both methods at once.

    Both raise `ConnectionFailed`, `DeadlineExceeded`, `ModelUnavailable`, `SchemaMismatch` (the model does not take
    these tensors) or `ServerError`. `timeout`: seconds. `version` of the model, "" for the one that the server chooses.
    `headers` travel with the call.
    """

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        *,
        version: str = "",
        headers: Headers = NO_HEADERS,
    ) -> Answer:
        """Run the model on [B, ...] tensors by name."""
        ...

    def model_config(
        self, model: str, timeout: float, *, version: str = "", headers: Headers = NO_HEADERS
    ) -> ModelConfig:
        """Read the model's configuration."""
        ...


class AsyncTransport(Protocol):
    """`Transport` for asyncio. A call that is cancelled is given up on the server too, where the channel can."""

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float,
        *,
        version: str = "",
        headers: Headers = NO_HEADERS,
    ) -> Answer:
        """See `Transport.infer`."""
        ...

    async def model_config(
        self, model: str, timeout: float, *, version: str = "", headers: Headers = NO_HEADERS
    ) -> ModelConfig:
        """See `Transport.model_config`."""
        ...
