"""A TensorRT plan of a network with the operators' kernels in it as plugins, or of a plain one. The stock server's
TensorRT backend serves either without any library of ours."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from builder.errors import BuilderError
from builder.export.formats import PLAIN_BATCH

LEAST_VERSION = (10, 9)  # the first whose parser reads ahead-of-time plugins
CONTAINER = "nvcr.io/nvidia/pytorch:26.06-py3"  # the tag of the server's container: plans are of one TensorRT release
# Of inputs of any length the least, the usual and the most; the server refuses what is longer.
LENGTHS = {"filter": (2, 16, 1024), "history": (1, 64, 512), "exclude": (1, 64, 1024), "items": (1, 128, 1024)}


def require_tensorrt() -> Any:
    """The module `tensorrt`. Raises `BuilderError` if it is absent or older than 10.9."""
    remedy = (
        f"Run it where TensorRT and a GPU are: docker run --rm --gpus all -v $PWD:/work -w /work {CONTAINER} "
        "sh -c \"pip install -e '.[builder,onnx]' && builder export SOURCE --format tensorrt\""
    )
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise BuilderError("TensorRT is not installed", where="--format tensorrt", remedy=remedy) from error
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < LEAST_VERSION:
        wanted = ".".join(map(str, LEAST_VERSION))
        raise BuilderError(
            f"got TensorRT {tensorrt.__version__}, expected {wanted} or newer",
            where="--format tensorrt",
            remedy=remedy,
        )
    return tensorrt


def write_plan(source: Path, path: Path, tensorrt: Any) -> None:
    """Build the plan of the network `source` with the module `tensorrt` and write it to `path`.

    It has been told of the network's plugins (`plugin_nodes.register`). TensorRT-RTX's module, which knows none, builds
    its engines of plain networks by the same calls. Raises `BuilderError` with what TensorRT reports.
    """
    errors: list[str] = []
    logger = _logger(tensorrt, errors)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        raise BuilderError(f"TensorRT does not read the network: {'; '.join(errors)}", where="--format tensorrt")
    config = builder.create_builder_config()
    config.clear_flag(tensorrt.BuilderFlag.TF32)  # its ten bits of mantissa would order items by rounding
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shapes = [_shape(tensor.name, tuple(tensor.shape), end) for end in range(3)]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuilderError(f"TensorRT builds no plan: {'; '.join(errors)}", where="--format tensorrt")
    path.write_bytes(plan)


def _logger(tensorrt: Any, errors: list[str]) -> Any:
    """A logger that keeps errors and says nothing."""

    class Logger(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (tensorrt.ILogger.Severity.INTERNAL_ERROR, tensorrt.ILogger.Severity.ERROR):
                errors.append(message)

    return Logger()


def _shape(name: str, shape: tuple[int, ...], end: int) -> tuple[int, ...]:
    """The `end`th (least, usual, most) of the shapes that an input may have."""
    batch = (1, 1, PLAIN_BATCH)[end]
    return (batch, *(LENGTHS[name][end] if size < 0 else size for size in shape[1:]))
