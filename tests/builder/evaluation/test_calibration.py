import numpy as np
import pytest

from builder.evaluation.calibration import reliability


def test_by_hand() -> None:
    predicted = np.array([0.9, 0.1, 0.2, 0.7])
    came_true = np.array([True, False, True, True])
    measured = reliability(predicted, came_true, bins=2)
    np.testing.assert_allclose(measured.predicted, [0.15, 0.8])
    assert measured.observed == (0.5, 1.0)
    assert measured.count == (2, 2)
    assert measured.ece == pytest.approx((0.35 + 0.2) / 2)


def test_calibrated_predictions_have_a_small_error() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.random(200_000).astype(np.float32) ** 3
    came_true = rng.random(200_000) < predicted
    assert reliability(predicted, came_true).ece < 0.005
    assert reliability(predicted / 2, came_true).ece == pytest.approx(predicted.mean() / 2, abs=0.005)


def test_fewer_predictions_than_bins() -> None:
    measured = reliability(np.array([0.5, 0.25]), np.array([True, False]))
    assert measured.count == (1, 1)
    with pytest.raises(ValueError, match="no predictions"):
        reliability(np.array([]), np.array([], dtype=bool))
