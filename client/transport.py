"""The two calls that a client makes, so that tests and other channels can take the place of gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a client reads of Triton's model configuration: string parameters, and rows a request may have (0: one)."""

    parameters: Mapping[str, str]
    max_batch_size: int


class Transport(Protocol):
    """Carries tensors to a model and back. Both methods may be called from several threads at once.

    Both raise `ConnectionFailed`, `DeadlineExceeded`, `ModelUnavailable`, `SchemaMismatch` (the model does not take
    these tensors) or `ServerError`. `timeout`: seconds.
    """

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], timeout: float) -> Mapping[str, NDArray[Any]]:
        """Run the model on [B, ...] tensors by name and return its outputs by name."""
        ...

    def model_config(self, model: str, timeout: float) -> ModelConfig:
        """Read the model's configuration."""
        ...
