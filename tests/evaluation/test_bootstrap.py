"""Bootstrap intervals cover what they claim, and only because they resample in blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perpgym.evaluation.bootstrap import block_length, sharpe_difference_interval, sharpe_interval
from perpgym.evaluation.metrics import sharpe_ratio, sharpe_standard_error

YEAR = 8_760


def _autoregressive(rng: np.random.Generator, bars: int, memory: float, mean: float) -> np.ndarray:
    noise = rng.standard_normal(bars + 100) * 0.01
    for i in range(1, noise.shape[0]):
        noise[i] += memory * noise[i - 1]
    return noise[100:] + mean


def test_the_same_seed_gives_the_same_interval() -> None:
    excess = np.random.default_rng(0).normal(1e-4, 0.01, 1_000)
    one = sharpe_interval(excess, bars_per_year=YEAR, draws=200, seed=3)
    assert one == sharpe_interval(excess, bars_per_year=YEAR, draws=200, seed=3)
    assert one != sharpe_interval(excess, bars_per_year=YEAR, draws=200, seed=4)


def test_of_independent_returns_the_interval_is_as_wide_as_the_standard_error_says() -> None:
    excess = np.random.default_rng(1).normal(2e-4, 0.01, 4_000)
    interval = sharpe_interval(excess, bars_per_year=YEAR, draws=1_000)
    error = sharpe_standard_error(excess, bars_per_year=YEAR)
    assert (interval.high - interval.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.12)
    assert interval.low < sharpe_ratio(excess, bars_per_year=YEAR) < interval.high


def test_intervals_cover_the_truth_of_dependent_returns_and_without_blocks_they_would_not() -> None:
    rng = np.random.default_rng(2)
    covered, naive, samples = 0, 0, 100
    for _ in range(samples):
        excess = _autoregressive(rng, 800, 0.6, 0.0)
        interval = sharpe_interval(excess, bars_per_year=YEAR, draws=200)
        covered += interval.low <= 0.0 <= interval.high
        error = sharpe_standard_error(excess, bars_per_year=YEAR)
        naive += abs(sharpe_ratio(excess, bars_per_year=YEAR)) <= 1.96 * error
    assert covered >= 85
    # the negative control: the formula for independent returns is far too sure of itself
    assert naive <= 75


def test_blocks_grow_with_memory() -> None:
    rng = np.random.default_rng(3)
    short = block_length(_autoregressive(rng, 2_000, 0.0, 0.0))
    long = block_length(_autoregressive(rng, 2_000, 0.9, 0.0))
    assert 1 <= short < long <= 200


def test_what_never_moved_has_no_interval() -> None:
    interval = sharpe_interval(np.zeros(500), bars_per_year=YEAR, draws=100)
    assert math.isnan(interval.low)
    assert not interval.excludes_zero


def test_an_account_that_mostly_slept_still_has_an_interval() -> None:
    excess = np.zeros(2_000)
    excess[40:60] = np.random.default_rng(4).normal(0.001, 0.01, 20)
    interval = sharpe_interval(excess, bars_per_year=YEAR, draws=200)
    assert interval.low <= 0.0 <= interval.high


def test_accounts_in_one_market_are_compared_pair_by_pair() -> None:
    rng = np.random.default_rng(5)
    market = rng.normal(0.0, 0.01, 3_000)
    better = market + 2e-4
    paired = sharpe_difference_interval(better, market, bars_per_year=YEAR, draws=300)
    # each Sharpe ratio alone is uncertain by about one, their difference hardly at all
    assert paired.low > 0
    assert paired.high - paired.low < 0.5


def test_an_account_differs_from_itself_by_nothing() -> None:
    excess = np.random.default_rng(6).normal(0.0, 0.01, 500)
    same = sharpe_difference_interval(excess, excess, bars_per_year=YEAR, draws=100)
    assert (same.low, same.high) == (0.0, 0.0)


def test_the_difference_from_an_account_that_never_moved_is_as_uncertain_as_the_other_alone() -> None:
    excess = np.random.default_rng(7).normal(1e-3, 0.01, 2_000)
    alone = sharpe_interval(excess, bars_per_year=YEAR, draws=300)
    above = sharpe_difference_interval(excess, np.zeros(2_000), bars_per_year=YEAR, draws=300)
    below = sharpe_difference_interval(np.zeros(2_000), excess, bars_per_year=YEAR, draws=300)
    assert (above.low, above.high) == pytest.approx((alone.low, alone.high))
    assert (below.low, below.high) == pytest.approx((-alone.high, -alone.low))
    assert above.low > 0


def _of_sharpe(rng: np.random.Generator, own: float, seeds: int) -> np.ndarray:
    """(3000, seeds) returns of one common market and of a noise of each, all with the same Sharpe ratio."""
    common, noise = rng.standard_normal((3_000, 1)), rng.standard_normal((3_000, seeds))
    mixed = (1.0 - own) * common + own * noise
    return 0.01 * (mixed - mixed.mean(axis=0)) / mixed.std(axis=0) + 3e-4


def test_seeds_that_disagree_are_not_better_for_it() -> None:
    rng = np.random.default_rng(8)
    apart, alike = _of_sharpe(rng, 1.0, 5), _of_sharpe(rng, 0.01, 5)
    held = sharpe_difference_interval(apart, alike, bars_per_year=YEAR, draws=300)
    assert abs(held.low + held.high) / 2 < 0.5
    # the negative control: nobody holds the mean of five seeds, whose Sharpe ratio is twice theirs
    averaged = sharpe_difference_interval(
        apart.mean(axis=1), alike.mean(axis=1), bars_per_year=YEAR, draws=300
    )
    assert (averaged.low + averaged.high) / 2 > 2.0


def test_several_seeds_of_one_account_are_one_account() -> None:
    excess = np.random.default_rng(9).normal(1e-3, 0.01, 1_000)
    once = sharpe_difference_interval(excess, np.zeros(1_000), bars_per_year=YEAR, draws=100)
    twice = sharpe_difference_interval(
        np.column_stack((excess, excess)), np.zeros((1_000, 2)), bars_per_year=YEAR, draws=100
    )
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
