"""Scripts the pipeline and gives it a `forward` whose arguments are named as the artifact's inputs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from builder import ops
from builder.errors import BuilderError
from builder.network.pipeline import Pipeline, forward_source, input_names
from client.schema import Schema


def script(pipeline: Pipeline, schema: Schema) -> torch.jit.ScriptModule:
    """Script, not trace: tracing would bake in the device and the shapes of the example."""
    ops.load()
    own_tower = isinstance(getattr(pipeline, "tower", None), torch.jit.ScriptModule)
    scripted = torch.jit.script(pipeline.eval())
    scripted.define(forward_source(schema, own_tower=own_tower))
    return scripted


def load_tower(path: Path, schema: Schema) -> nn.Module:
    """Load a TorchScript user tower of the user's own and check that it takes the user features by name.

    Its forward takes one tensor for each user feature (`[B, 1]` INT64 or FP32), and `history [B, L] int64` if the
    artifact has one, and returns `[B, D] float32`. Raises `BuilderError` if it cannot be read or takes other arguments.
    """
    try:
        tower = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BuilderError(
            f"{path} is not a TorchScript module ({reason}); write it with torch.jit.script(...).save(path)"
        ) from error
    expected = [name for name in input_names(schema) if name not in ("filter", "exclude", "task_weights", "search")]
    arguments = [argument.name for argument in tower.forward.schema.arguments[1:]]
    if sorted(arguments) != sorted(expected):
        raise BuilderError(
            f"{path}: forward takes ({', '.join(arguments)}), the configuration declares the user inputs "
            f"({', '.join(expected)}); name them alike"
        )
    return tower
