"""Several seeds in one number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perpgym.evaluation.seeds import interquartile_mean, mean_over_seeds


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


@pytest.mark.parametrize(("seeds", "bootstrap"), [(2, 0.50), (3, 0.75), (5, 0.91)])
def test_the_interval_for_conclusions_covers_what_it_claims_and_the_bootstrap_does_not(
    seeds: int, bootstrap: float
) -> None:
    samples = np.random.default_rng(0).standard_normal((1_000, seeds))
    honest, narrow = (
        np.mean([spread.low <= 0.0 <= spread.high for spread in map(rule, samples)])
        for rule in (mean_over_seeds, interquartile_mean)
    )
    assert honest == pytest.approx(0.95, abs=0.02)
    # the negative control, and what the docstring says of it
    assert narrow == pytest.approx(bootstrap, abs=0.03)


def test_five_seeds_have_the_t_interval_of_the_tables() -> None:
    # mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776
    spread = mean_over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spread == pytest.approx((3.0, 3.0 - 1.963, 3.0 + 1.963), abs=1e-3)


def test_of_one_seed_nobody_knows_how_far_luck_moved_it() -> None:
    spread = mean_over_seeds([0.7])
    assert spread.mean == 0.7
    assert math.isnan(spread.low)
    assert math.isnan(spread.high)
