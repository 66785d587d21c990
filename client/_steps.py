"""What a call (client/_core.py) yields to be carried out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from client._balancer import Endpoint
from client.transport import Headers

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Answered with a `ModelConfig`."""

    endpoint: Endpoint
    model: str
    timeout: float
    version: str
    headers: Headers


@dataclass(frozen=True, slots=True)
class Infer:
    """Answered with an `Answer` and the endpoint that gave it: another one if `hedge` offered it and it was faster."""

    endpoint: Endpoint
    model: str
    inputs: Mapping[str, NDArray[Any]]
    timeout: float
    version: str
    headers: Headers
    hedge: Callable[[], Endpoint | None]


@dataclass(frozen=True, slots=True)
class Pause:
    """Answered with None after so many seconds."""

    seconds: float


Step = ReadConfig | Infer | Pause
Steps = Generator[Step, Any, R]
