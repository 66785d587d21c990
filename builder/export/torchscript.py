"""Scripts the pipeline and gives it a `forward` whose arguments are named as the artifact's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from builder import ops
from builder.errors import ConfigError
from builder.network.pipeline import Pipeline, forward_source
from client.schema import Feature, Schema


def script(pipeline: Pipeline, schema: Schema) -> torch.jit.ScriptModule:
    """Script, not trace: tracing would bake in the device and the shapes of the example."""
    ops.load()
    own_tower = isinstance(getattr(pipeline, "tower", None), torch.jit.ScriptModule)
    scripted = torch.jit.script(pipeline.eval())
    scripted.define(forward_source(schema, own_tower=own_tower))
    return scripted


def load_tower(path: Path, features: Sequence[Feature], history_length: int) -> torch.jit.ScriptModule:
    """Load a TorchScript user tower of the user's own and check that it takes the user features by name.

    Its forward takes one tensor for each user feature (`[B, 1]`, int64 keys or float32 numbers), and `history [B, L]
    int64` if `history_length` is not 0, and returns `[B, D] float32`. Raises `ConfigError` if it cannot be read or
    takes other arguments.
    """
    where = f"embeddings.query, {path}"
    try:
        tower: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
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
    return tower
