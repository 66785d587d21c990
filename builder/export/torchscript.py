"""Scripts a network and gives it a `forward` whose arguments are named as the artifact's inputs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from builder import ops
from builder.errors import ConfigError
from builder.network.pipeline import Pipeline, forward_source
from builder.network.ranking import Ranking, ranking_source
from client.hashing import UNKNOWN_KEY
from client.schema import Feature, Schema

_USERS, _LONG = 3, 3072  # users that a tower is tried on at once, entries of a long history
_SCRIPTING = threading.Lock()  # torch.jit.script is not safe on several threads at once


def script(network: Pipeline | Ranking, schema: Schema) -> torch.jit.ScriptModule:
    """Script, not trace: tracing would bake in the device and the shapes of the example."""
    ops.load()
    own_tower = isinstance(getattr(network, "tower", None), torch.jit.ScriptModule)
    source = ranking_source if isinstance(network, Ranking) else forward_source
    # TorchScript gives modules that look alike one type, which takes one forward for the life of the process. A class
    # of its own keeps this export apart from earlier ones.
    alone = copy.copy(network.eval())
    alone.__class__ = type(type(network).__name__, (type(network),), {})
    with _SCRIPTING:
        scripted = torch.jit.script(alone)
        scripted.define(source(schema, own_tower=own_tower))
    return scripted


def load_tower(path: Path, features: Sequence[Feature], history_length: int, dims: int) -> torch.jit.ScriptModule:
    """Load a TorchScript user tower of the user's own, check its arguments, and run it once on neutral inputs.

    Its forward takes one tensor for each user feature (`[B, 1]`, int64 keys or float32 numbers), and `history [B, L]
    int64` if `history_length` is not 0, and returns `[B, dims] float32`. Raises `ConfigError` if it cannot be read,
    takes other arguments, raises, or returns anything else.
    """
    where = f"embeddings.query, {path}"
    try:
        tower: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"is not a TorchScript module ({reason})",
            where=where,
            remedy="Write it with torch.jit.script(tower).save(path).",
        ) from error
    expected = [*(feature.name for feature in features), *(["history"] if history_length else [])]
    forward: Any = tower.forward
    arguments = [argument.name for argument in forward.schema.arguments[1:]]
    if sorted(arguments) != sorted(expected):
        raise ConfigError(
            f"forward takes ({', '.join(arguments)}), the configuration declares ({', '.join(expected)})",
            where=where,
            remedy="Name the arguments of forward as data.users.features, and history unless network.history is 0.",
        )
    _try(tower, features, history_length, dims, where)
    return tower


def _try(
    tower: torch.jit.ScriptModule, features: Sequence[Feature], history_length: int, dims: int, where: str
) -> None:
    """What the tower cannot digest or returns wrongly would fail every request of a batch on the server."""
    for whom, inputs, remedy in _users(features, history_length):
        try:
            with torch.inference_mode():
                query: Any = tower(**inputs)
        except RuntimeError as error:
            said = str(error).strip().splitlines()
            raise ConfigError(
                f"raises on a user {whom}: {said[-1] if said else type(error).__name__}", where=where, remedy=remedy
            ) from error
        expected = f"[{_USERS}, {dims}] float32"
        if not isinstance(query, torch.Tensor):
            raise ConfigError(f"returns {type(query).__name__}, expected one tensor {expected}", where=where)
        if query.shape != (_USERS, dims) or query.dtype != torch.float32:
            got = f"{list(query.shape)} {str(query.dtype).removeprefix('torch.')}"
            raise ConfigError(
                f"returns {got} for {_USERS} users, expected {expected}: one vector a user, as long as the items'",
                where=where,
                remedy="Correct the tower, or embeddings.path if it holds vectors of another model.",
            )


def _users(features: Sequence[Feature], history_length: int) -> Iterator[tuple[str, dict[str, torch.Tensor], str]]:
    """Users that every client may send: what to call them, a tower's inputs, and what to do if it raises."""

    def inputs(keys: list[int], numbers: list[float], history: torch.Tensor) -> dict[str, torch.Tensor]:
        of_kind = {"category": torch.tensor(keys).unsqueeze(1), "number": torch.tensor(numbers).unsqueeze(1)}
        given = {feature.name: of_kind[feature.kind] for feature in features}
        return {**given, "history": history} if history_length else given

    largest = torch.iinfo(torch.int64).max
    unknown, numbers = [UNKNOWN_KEY] * _USERS, [float("nan")] * _USERS
    yield (
        "of whom nothing is known",
        inputs(unknown, numbers, torch.full((_USERS, 2), -1)),
        f"Every client may send such a user: category {UNKNOWN_KEY}, number NaN, history of -1 alone.",
    )
    yield (
        "with values that it has not seen",
        inputs([-1, 0, largest], [-3.4e38, 0.0, float("inf")], torch.tensor([[-1], [0], [largest]])),
        "Every client may send any int64 as a category and as an id of the history, and any float32 as a number.",
    )
    yield (
        f"with a history of {_LONG:,} entries",
        inputs(unknown, numbers, torch.tensor([-1, 0, largest]).repeat(_USERS, _LONG // 3)),
        "Read the newest of them: histories come padded to any length.",
    )
