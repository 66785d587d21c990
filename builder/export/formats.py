"""What a version may hold beside model.pt: the same network in other formats."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from builder.errors import BuilderError

if TYPE_CHECKING:  # the command line names the formats without loading torch
    from builder.network.pipeline import Pipeline
    from builder.network.ranking import Ranking
    from client.schema import Schema

Format = Literal["onnx", "onnx-plain", "tensorrt", "tensorrt-plain"]
FORMATS: tuple[Format, ...] = ("onnx", "onnx-plain", "tensorrt", "tensorrt-plain")
WITH_OPERATORS = {"onnx", "tensorrt"}
PLAIN_BATCH = 16  # requests in one call of a plain network, which scores every item for each of them, or of a plan
ONNX_FILE, PLAIN_FILE, PLAN_FILE = "model.onnx", "plain.onnx", "model.plan"


def check_formats(formats: Collection[Format], *, own_tower: bool, diverse: bool) -> None:
    """Raise `BuilderError` if one of them cannot be written here, before an index is built for nothing.

    `own_tower`: in TorchScript; `diverse`: results are chosen under rules.
    """
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
    if diverse and not WITH_OPERATORS.issuperset(formats):
        raise BuilderError(
            "rules of diversity cannot be written in operators of ONNX alone",
            where="diversity",
            remedy="Leave it out, or export with --format onnx or tensorrt only.",
        )
    if {"tensorrt", "tensorrt-plain"}.issubset(formats):
        raise BuilderError(
            "got tensorrt and tensorrt-plain, expected one of them",
            where="--format",
            remedy=f"A version has one {PLAN_FILE}: export twice, and promote the one to serve.",
        )
    if "tensorrt" in formats:
        from builder.export.plugins import require_nvcc

        require_nvcc()
    if not {"tensorrt", "tensorrt-plain"}.isdisjoint(formats):
        from builder.export.tensorrt import require_tensorrt

        require_tensorrt()


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
        if not formats:
            return
        from builder.export.onnx import write_onnx
        from builder.network.ranking import Ranking

        served = Ranking(network) if ranking else network
        if "onnx" in formats:
            write_onnx(served, schema, folder / ONNX_FILE, metadata)
        if "onnx-plain" in formats:
            write_onnx(served, schema, folder / PLAIN_FILE, metadata, plain=True)
        if "tensorrt" in formats:
            _write_plan_with_plugins(served, schema, folder, metadata)
        if "tensorrt-plain" in formats:
            from builder.export.tensorrt import require_tensorrt, write_plan

            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                of_plan = (folder if "onnx-plain" in formats else Path(scratch)) / PLAIN_FILE
                if "onnx-plain" not in formats:
                    write_onnx(served, schema, of_plan, metadata, plain=True)
                write_plan(of_plan, folder / PLAN_FILE, require_tensorrt())

    return write


def _write_plan_with_plugins(
    network: Pipeline | Ranking, schema: Schema, folder: Path, metadata: dict[str, str]
) -> None:
    from builder.export.onnx import write_with_plugins
    from builder.export.plugin_nodes import register
    from builder.export.tensorrt import require_tensorrt, write_plan

    tensorrt = require_tensorrt()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = Path(scratch) / ONNX_FILE
        register(write_with_plugins(network, schema, source, metadata), tensorrt)
        write_plan(source, folder / PLAN_FILE, tensorrt)
