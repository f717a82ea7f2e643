"""The scaler knows the training period and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from perpgym.data.features.scaler import Scaler, fit_scaler


@pytest.fixture
def features() -> np.ndarray:
    rng = np.random.default_rng(8)
    return (rng.normal(size=(2_000, 2, 4)) * [1, 10, 1e-4, 0] + [0, 5, 1e-4, 3]).astype(np.float32)


def test_scaled_training_columns_have_mean_zero_and_deviation_one(features: np.ndarray) -> None:
    scaler = fit_scaler(features, 100, 1_500)
    scaled = scaler.transform(features[100:1_500]).reshape(-1, 4)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(scaled[:, :3].std(axis=0), 1, atol=0.05)


def test_a_constant_column_gets_scale_one_and_becomes_zero(features: np.ndarray) -> None:
    scaler = fit_scaler(features, 0, 2_000)
    assert scaler.scale[3] == 1
    assert (scaler.transform(features)[..., 3] == 0).all()


def test_nothing_outside_the_training_period_moves_the_scaler(features: np.ndarray) -> None:
    scaler = fit_scaler(features, 100, 1_500)
    other = features.copy()
    other[:100] = np.nan
    other[1_500:] = 1e9
    same = fit_scaler(other, 100, 1_500)
    np.testing.assert_array_equal(scaler.center, same.center)
    np.testing.assert_array_equal(scaler.scale, same.scale)
    # the negative control: one bar inside it does
    other[1_499] += 100
    assert not np.array_equal(scaler.center, fit_scaler(other, 100, 1_500).center)


def test_one_crash_does_not_set_the_scale(features: np.ndarray) -> None:
    crash = features.copy()
    crash[1_000, :, 0] = -500
    np.testing.assert_allclose(
        fit_scaler(crash, 0, 2_000).scale[0], fit_scaler(features, 0, 2_000).scale[0], rtol=0.05
    )


def test_a_column_that_rests_at_one_value_keeps_a_scale_from_its_events() -> None:
    column = np.full((10_000, 1, 1), 1e-4)
    column[[50, 5_000], 0, 0] = 1e-3  # rarer than the winsorised tail
    scaler = fit_scaler(column, 0, 10_000)
    assert scaler.scale[0] == pytest.approx(column.std(), rel=1e-4)


def test_outliers_are_clipped_at_five_scales(features: np.ndarray) -> None:
    scaler = fit_scaler(features, 0, 2_000)
    assert scaler.transform(np.full(4, 1e9)) == pytest.approx([5, 5, 5, 5])
    assert scaler.transform(np.full(4, -1e9)) == pytest.approx([-5, -5, -5, -5])


def test_json_brings_back_the_same_bits(features: np.ndarray) -> None:
    scaler = fit_scaler(features, 0, 2_000)
    again = Scaler.from_json(json.loads(json.dumps(scaler.to_json())))
    for name in ("center", "scale", "clip"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scaler, name))
        assert getattr(again, name).dtype == np.float32


@pytest.mark.parametrize(("start", "stop"), [(10, 10), (-1, 5), (0, 2_001)])
def test_a_period_outside_the_tape_is_refused(features: np.ndarray, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="0 <= start < stop <= 2000"):
        fit_scaler(features, start, stop)


def test_a_damaged_scaler_is_refused(features: np.ndarray) -> None:
    raw = fit_scaler(features, 0, 2_000).to_json()
    with pytest.raises(ValueError, match="alike"):
        Scaler.from_json({**raw, "scale": raw["scale"][:-1]})
    with pytest.raises(ValueError, match="positive"):
        Scaler.from_json({**raw, "scale": [0.0, *raw["scale"][1:]]})
    with pytest.raises(ValueError, match="fields center, scale and clip"):
        Scaler.from_json({"center": raw["center"]})


def test_features_that_are_not_finite_are_named(features: np.ndarray) -> None:
    features[7, 0, 2] = np.nan
    with pytest.raises(ValueError, match=r"columns \[2\]"):
        fit_scaler(features, 0, 2_000)
    with pytest.raises(ValueError, match="winsor"):
        fit_scaler(features, 10, 2_000, winsor=0.5)
