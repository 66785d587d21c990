"""What a call asks to be carried out, and what is known of a model that an endpoint serves. No IO."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from client._codec import Codec
from client._ranking import RankingCodec
from client.transport import Headers

if TYPE_CHECKING:
    from client._balancer import Endpoint

_TRUSTED = 60.0  # seconds for which a schema is taken to be that of the version it was read of

R = TypeVar("R")


@dataclass(slots=True)
class Served:
    """What an endpoint serves under a model's name, as last read."""

    codec: Codec | RankingCodec
    snapshot: str
    max_batch: int
    read_at: float
    snapshots: dict[str, str] = field(default_factory=dict)  # by version of the model, of those with this schema

    def trusted(self) -> bool:
        """Whether it need not be read again yet. Of several calls at once only the first is told so."""
        now = monotonic()
        if now - self.read_at <= _TRUSTED:
            return True
        self.read_at = now
        return False

    def is_of(self, version: str) -> bool:
        """Whether the version that answered is known to have this schema; if so, its snapshot is what is served now."""
        snapshot = self.snapshots.get(version)
        if snapshot is not None:
            self.snapshot = snapshot
        return snapshot is not None


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
