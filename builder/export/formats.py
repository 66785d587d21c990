"""What a version may hold beside model.pt: the same network in other formats."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from builder.errors import BuilderError

if TYPE_CHECKING:  # the command line names the formats without loading torch
    from builder.network.pipeline import Pipeline
    from client.schema import Schema

Format = Literal["onnx"]
FORMATS: tuple[Format, ...] = ("onnx",)
ONNX_FILE = "model.onnx"


def check_formats(formats: Collection[Format], *, own_tower: bool) -> None:
    """Raise `BuilderError` if one of them cannot be written here, before an index is built for nothing."""
    if not formats:
        return
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise BuilderError(
            f"not installed: {', '.join(missing)}", where="--format", remedy="pip install 'silvertriton[onnx]'"
        )
    if own_tower:
        raise BuilderError(
            "a user tower in TorchScript cannot become ONNX: torch exports Python modules only",
            where="embeddings.query",
            remedy="Leave it out, so that requests carry the query vector, or export without --format.",
        )


def formats_writer(
    formats: Collection[Format], network: Pipeline, schema: Schema, versions: dict[str, str]
) -> Callable[[Path, bool], None]:
    """What writes `formats` into a version's folder: of `network`, or (True) of its ranking model.

    `versions`: of what writes them, kept in the files.
    """
    from builder.export.manifest import OPERATORS

    metadata = {
        "schema": schema.to_json(),
        "fingerprint": str(schema.fingerprint),
        "operators": str(OPERATORS),
        **versions,
    }

    def write(folder: Path, ranking: bool) -> None:
        if "onnx" in formats:
            from builder.export.onnx import write_onnx
            from builder.network.ranking import Ranking

            write_onnx(Ranking(network) if ranking else network, schema, folder / ONNX_FILE, metadata)

    return write
