import numpy as np
import pytest
import torch

from builder.index.quantize import quantize


@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_codes_are_within_half_a_step_at_any_magnitude(magnitude: float) -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 20)) * magnitude).to(torch.float32)
    codes, scales, vectors = quantize(rows)
    wide = rows.double() / scales.double()[:, None]
    assert codes.dtype == torch.int8
    assert int(codes.abs().amax()) == 127
    assert torch.equal(codes.abs().amax(1), torch.full((50,), 127, dtype=torch.int8))
    assert float((codes.double() - wide).abs().max()) <= 0.5 + 1e-6
    assert float((vectors.double() - wide).abs().max()) <= 127 * 2**-11  # half a unit in the last place of float16
    torch.testing.assert_close(scales, rows.abs().amax(1) / 127)


def test_zero_and_denormal_rows_have_no_scale_and_no_nan() -> None:
    codes, scales, vectors = quantize(torch.tensor([[0.0, 0.0], [1e-44, -1e-44]]))
    assert codes.tolist() == [[0, 0], [0, 0]]
    assert scales.tolist() == [0.0, 0.0]
    assert vectors.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_the_largest_float32_survives() -> None:
    largest = torch.finfo(torch.float32).max
    codes, scales, _ = quantize(torch.tensor([[largest, -largest, 0.0]]))
    assert codes.tolist() == [[127, -127, 0]]
    assert float(scales[0]) == pytest.approx(largest / 127)
