"""What each figure of merit says, on numbers worked by hand, and what must hold for any path."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from perpgym.evaluation import metrics

PATHS = arrays(np.float64, st.integers(5, 60), elements=st.floats(-0.2, 0.2)).map(
    lambda r: 1e6 * np.exp(np.concatenate(([0.0], np.cumsum(r))))
)


def test_log_returns_of_a_doubling_and_a_halving_cancel() -> None:
    returns = metrics.log_returns(np.array([100.0, 200.0, 100.0]))
    assert returns == pytest.approx([math.log(2), -math.log(2)])


def test_a_ruined_bar_is_floored_and_a_dead_account_returns_nothing() -> None:
    returns = metrics.log_returns(np.array([100.0, 0.0, 0.0]), floor=0.01)
    assert returns == pytest.approx([math.log(0.01), 0.0])


def test_growth_of_21_percent_in_two_years_is_10_percent_a_year() -> None:
    equity = np.concatenate((np.full(20, 100.0), [121.0]))
    assert metrics.annual_growth(equity, bars_per_year=10) == pytest.approx(0.10)
    assert metrics.total_return(equity) == pytest.approx(0.21)


def test_sharpe_ratio_worked_by_hand() -> None:
    # mean 0.01, sample variance (0.02^2 + 0.02^2) / 3, four bars a year
    excess = np.array([0.03, -0.01, 0.01, 0.01])
    expected = 0.01 / math.sqrt(2 * 0.02**2 / 3) * 2
    assert metrics.sharpe_ratio(excess, bars_per_year=4) == pytest.approx(expected)


def test_the_risk_free_rate_is_spread_over_the_bars_of_a_year() -> None:
    returns = np.full(8_760, math.log1p(0.03) / 8_760)
    excess = metrics.excess_returns(returns, risk_free_rate=0.03, bars_per_year=8_760)
    assert excess.sum() == pytest.approx(0.0, abs=1e-12)


def test_an_account_that_never_moved_has_no_sharpe_ratio() -> None:
    excess = metrics.excess_returns(np.zeros(100), risk_free_rate=0.03, bars_per_year=8_760)
    assert math.isnan(metrics.sharpe_ratio(excess, bars_per_year=8_760))
    assert math.isnan(metrics.sharpe_standard_error(excess, bars_per_year=8_760))
    assert math.isnan(metrics.probabilistic_sharpe(excess))


def test_standard_error_of_a_two_point_sample_follows_mertens() -> None:
    # ten gains of 2 and ten losses of 1: skewness 0, kurtosis 1, so Var = (1 + SR^2/2 - SR^2/2) / n = 1 / n
    excess = np.array([0.02, -0.01] * 10)
    assert metrics.bar_sharpe_standard_error(excess) == pytest.approx(1 / math.sqrt(20))


def test_standard_error_agrees_with_the_scatter_of_fat_tailed_samples() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_t(5, size=(3_000, 500)) * 0.01 + 0.002
    scatter = np.std([metrics.bar_sharpe(s) for s in samples])
    stated = np.mean([metrics.bar_sharpe_standard_error(s) for s in samples])
    assert stated == pytest.approx(scatter, rel=0.05)


def test_skewed_losses_make_the_standard_error_larger_than_the_normal_formula_says() -> None:
    excess = np.concatenate((np.full(95, 0.01), np.full(5, -0.05)))
    sharpe = metrics.bar_sharpe(excess)
    normal = math.sqrt((1 + sharpe**2 / 2) / 100)
    assert metrics.bar_sharpe_standard_error(excess) > 1.1 * normal


def test_probabilistic_sharpe_is_one_half_at_its_own_value() -> None:
    excess = np.random.default_rng(1).normal(0.001, 0.01, 300)
    own = metrics.bar_sharpe(excess)
    assert metrics.probabilistic_sharpe(excess, benchmark=own) == pytest.approx(0.5)
    assert metrics.probabilistic_sharpe(excess, benchmark=own + 1) < 1e-6


def test_the_best_of_many_worthless_trials_is_what_simulation_says() -> None:
    rng = np.random.default_rng(2)
    best = rng.standard_normal((20_000, 50)).max(axis=1).mean()
    assert metrics.expected_best_sharpe(trials=50, sharpe_std=1.0) == pytest.approx(best, rel=0.02)


def test_the_deflated_sharpe_of_the_papers_example_is_about_90_percent() -> None:
    # Bailey and Lopez de Prado (2014), "A numerical example": 100 trials with variance 1/2, five years of
    # 250 days, annual Sharpe ratio 2.5, skewness -3, kurtosis 10: SR0 = 0.1132 a day and DSR = 0.9004
    threshold = metrics.expected_best_sharpe(trials=100, sharpe_std=math.sqrt(0.5 / 250))
    assert threshold == pytest.approx(0.1132, abs=2e-4)
    sharpe = 2.5 / math.sqrt(250)
    z = (sharpe - threshold) * math.sqrt(1249) / math.sqrt(1 + 3 * sharpe + 9 / 4 * sharpe**2)
    assert 0.5 * (1 + math.erf(z / math.sqrt(2))) == pytest.approx(0.9004, abs=2e-3)


def test_more_trials_never_make_a_result_more_convincing() -> None:
    excess = np.random.default_rng(3).normal(0.0008, 0.01, 2_000)
    values = [
        metrics.deflated_sharpe(excess, trials=n, trial_sharpe_std=0.02) for n in (1, 2, 10, 100, 1_000)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(metrics.probabilistic_sharpe(excess))


def test_maximum_drawdown_sortino_and_calmar_worked_by_hand() -> None:
    equity = np.array([100.0, 120.0, 90.0, 99.0])
    assert metrics.max_drawdown(equity) == pytest.approx(0.25)
    excess = np.array([0.03, -0.02, 0.02])
    # downside deviation over all three bars: sqrt(0.02^2 / 3)
    assert metrics.sortino_ratio(excess, bars_per_year=1) == pytest.approx(0.01 / math.sqrt(0.02**2 / 3))
    assert metrics.calmar_ratio(equity, bars_per_year=3) == pytest.approx(-0.01 / 0.25)


def test_rolling_sharpe_is_the_plain_one_of_each_window() -> None:
    excess = np.random.default_rng(4).normal(1e-4, 5e-3, 400)
    rolling = metrics.rolling_sharpe(excess, window=50, bars_per_year=8_760)
    assert np.isnan(rolling[:49]).all()
    for i in (49, 200, 399):
        plain = metrics.sharpe_ratio(excess[i - 49 : i + 1], bars_per_year=8_760)
        assert rolling[i] == pytest.approx(plain, rel=1e-9)


def test_rolling_sharpe_refuses_a_window_of_one_bar() -> None:
    with pytest.raises(ValueError, match="window must be at least 2 bars, was 1"):
        metrics.rolling_sharpe(np.zeros(10), window=1, bars_per_year=8_760)


def test_timing_p_value_counts_the_agent_among_the_draws() -> None:
    draws = np.arange(199, dtype=np.float64)
    assert metrics.timing_p_value(1_000.0, draws) == pytest.approx(1 / 200)
    assert metrics.timing_p_value(-1.0, draws) == 1.0
    # 0 and above: all; above 149.5: 49 draws
    assert metrics.timing_p_value(149.5, draws) == pytest.approx(50 / 200)


def test_a_tie_with_the_draws_is_no_evidence_of_timing() -> None:
    assert metrics.timing_p_value(1.5, np.full(200, 1.5 + 1e-12)) == 1.0
    assert metrics.timing_p_value(math.nan, np.zeros(200)) == 1.0


@given(PATHS)
@settings(max_examples=60, deadline=None)
def test_log_returns_add_up_to_the_whole(equity: np.ndarray) -> None:
    assert metrics.log_returns(equity).sum() == pytest.approx(math.log(equity[-1] / equity[0]), abs=1e-9)


@given(PATHS, st.floats(0.1, 10.0))
@settings(max_examples=60, deadline=None)
def test_the_size_of_the_account_changes_no_ratio(equity: np.ndarray, scale: float) -> None:
    for figure in (metrics.total_return, metrics.max_drawdown):
        assert figure(scale * equity) == pytest.approx(figure(equity), abs=1e-9)


@given(PATHS)
@settings(max_examples=60, deadline=None)
def test_drawdown_is_a_fraction_and_leverage_leaves_the_sharpe_ratio_alone(equity: np.ndarray) -> None:
    assert 0.0 <= metrics.max_drawdown(equity) < 1.0
    returns = metrics.log_returns(equity)
    once = metrics.sharpe_ratio(returns, bars_per_year=8_760)
    if math.isfinite(once) and returns.std() > 1e-6:
        assert metrics.sharpe_ratio(2 * returns, bars_per_year=8_760) == pytest.approx(once, rel=1e-6)


@given(PATHS)
@settings(max_examples=40, deadline=None)
def test_losses_are_the_mirror_image_of_gains(equity: np.ndarray) -> None:
    returns = metrics.log_returns(equity)
    if returns.std() > 1e-6:
        mirrored = metrics.sharpe_ratio(-returns, bars_per_year=8_760)
        assert mirrored == pytest.approx(-metrics.sharpe_ratio(returns, bars_per_year=8_760))
