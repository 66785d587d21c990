"""State of a training run on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from builder.errors import BuilderError


def save(state: dict[str, Any], path: Path) -> None:
    """Write tensors, numbers, strings, lists and dicts to `path` through a temporary file in the same folder."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def restore(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save` wrote. Raises BuilderError for a file that is none of that."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # for bytes that are none of ours torch's reader raises whatever they lead it to
        raise BuilderError(
            f"cannot be read as a checkpoint: {error}", where=str(path), remedy="Delete the run folder and train again."
        ) from error
    return state


def write_text(text: str, path: Path) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
