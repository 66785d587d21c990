"""The LibTorch program on a small scripted model: names decide the binding, errors arrive as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builder import ops
from tests.end_to_end.libtorch import harness

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


class Model(nn.Module):
    """Two inputs of one shape and dtype, so that only their names tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.arange(64, dtype=torch.float32).reshape(32, 2).half())
        self.register_buffer("scales", torch.ones(1, 32))

    def forward(self, query: Tensor, offset: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.ops.silvertriton.rescore(query, self.vectors, self.scales, rows)
        ids = torch.where(rows >= 0, rows.long() + 100, -1)
        ok = torch.zeros_like(rows[:, 0])
        best, _, _, _ = torch.ops.silvertriton.select(scores, ids, scores.unsqueeze(2), ok, 3)
        return scores + offset[:, :1], best


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ops.load()
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.jit.script(Model()).save(str(path))
    return path


def inputs() -> dict[str, np.ndarray]:
    return {
        "rows": np.array([[1, -1, 30]], dtype=np.int32),
        "offset": np.array([[1000, 0]], dtype=np.float32),
        "query": np.array([[1, 0.5]], dtype=np.float32),
    }


def test_inputs_are_bound_by_name(model: Path) -> None:
    scores, best = harness.run(model, inputs())
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, [[1003.5, -np.inf, 1090.5]])
    np.testing.assert_array_equal(best, np.array([[130, 101, -1]]))


def test_missing_and_unknown_inputs_are_errors(model: Path) -> None:
    given = inputs()
    del given["offset"]
    with pytest.raises(harness.ServeModelError, match="forward takes offset"):
        harness.run(model, given)
    with pytest.raises(harness.ServeModelError, match="no argument for the input offsets"):
        harness.run(model, {**inputs(), "offsets": np.zeros((1, 2), np.float32)})


def test_an_operator_error_arrives_as_text(model: Path) -> None:
    with pytest.raises(harness.ServeModelError, match="silvertriton::rescore: query: got Double, expected Float"):
        harness.run(model, {**inputs(), "query": np.ones((1, 2))})


def test_tensor_files_keep_every_dtype_and_shape(tmp_path: Path) -> None:
    names = "float16 float32 float64 int8 int32 int64 uint8 bool".split()  # noqa: SIM905
    shapes = [(), (0,), (3,), (2, 3), (2, 0, 4)]
    tensors = {f"{d}_{i}": np.ones(s, dtype=d) for d in names for i, s in enumerate(shapes)}
    harness.write_tensors(tmp_path / "file", tensors)
    read = harness.read_tensors(tmp_path / "file")
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(read[name], tensor)
