"""Several seeds in one number."""

from __future__ import annotations

import pytest

from perpgym.evaluation.seeds import interquartile_mean


def test_interquartile_mean_ignores_the_best_and_the_worst_of_five() -> None:
    spread = interquartile_mean([0.0, 0.97, 0.98, 0.99, 5.0])
    assert spread.mean == pytest.approx(0.98)
    assert spread.low < spread.mean < spread.high


def test_one_seed_has_no_interval_to_speak_of() -> None:
    assert interquartile_mean([0.7]) == (0.7, 0.7, 0.7)


def test_more_seeds_make_the_interval_narrower() -> None:
    few, many = (interquartile_mean([0.0, 1.0] * count) for count in (2, 50))
    assert few.mean == many.mean == pytest.approx(0.5)
    assert many.high - many.low < 0.5 * (few.high - few.low)
