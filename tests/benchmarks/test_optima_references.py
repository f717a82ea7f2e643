"""The optima themselves: published numbers come out, and other answers earn less."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from references import (
    CHAOUKI_LINEAR_COST,
    CHAOUKI_PERSISTENCE,
    CHAOUKI_QUADRATIC,
    CHAOUKI_RISK,
    CHAOUKI_SD,
    CHAOUKI_SEEDS,
    GP_H,
    Liquidation,
    best_constant_exposure,
    chaouki_linear_band,
    growth,
    shorts_for_funding,
    switching_threshold,
)
from tapes import chaouki_signal, countdown_tape, mirrored_tape, net_returns, stationary_signal

Floats = NDArray[np.float64]
Trade = Callable[[float, float], float]


def chaouki_total(trade: Trade, *, risk: float, linear: float = 0.0, quadratic: float = 0.0) -> float:
    """Mean of ten test episodes, in plain Python; decisions from the second signal to the last but one."""
    totals = []
    for seed in CHAOUKI_SEEDS:
        held, total = 0.0, 0.0
        for signal in chaouki_signal(seed)[1:-1].tolist():
            wanted = trade(signal, held)
            traded = abs(wanted - held)
            total += signal * wanted - 0.5 * risk * wanted**2 - linear * traded - 0.5 * quadratic * traded**2
            held = wanted
        totals.append(total)
    return float(np.mean(totals))


# ---------------------------------------------------------------- quadratic costs


def test_the_trading_rate_aim_and_average_reward_of_gp_h() -> None:
    assert GP_H.trading_rate() == pytest.approx(0.29653517, abs=5e-9)
    assert GP_H.aim_per_signal() == pytest.approx(7059.991, abs=5e-4)
    assert GP_H.average_reward() == pytest.approx(1.9470107e-4, rel=5e-8)


def test_any_other_rate_or_aim_earns_less_than_g_star() -> None:
    rate, aim = GP_H.trading_rate(), GP_H.aim_per_signal()
    assert GP_H.average_reward_of(rate, aim) == pytest.approx(GP_H.average_reward(), rel=1e-12)
    for wrong in ((1.01 * rate, aim), (0.99 * rate, aim), (rate, 1.01 * aim), (rate, 0.99 * aim)):
        assert GP_H.average_reward_of(*wrong) < GP_H.average_reward()


def test_myopic_static_and_markowitz_trading_earn_the_known_fractions() -> None:
    myopic = GP_H.average_reward_of(GP_H.risk / (GP_H.risk + GP_H.cost), 1.0 / GP_H.risk)
    markowitz = GP_H.average_reward_of(1.0, 1.0 / GP_H.risk)
    static = max(GP_H.average_reward_of(1.0, aim) for aim in np.linspace(1.0, 8_000.0, 8_000))
    fractions = np.array([myopic, static, markowitz]) / GP_H.average_reward()
    np.testing.assert_allclose(fractions, [0.863, 0.677, 0.131], atol=5e-4)


def test_a_simulated_path_earns_what_the_stationary_moments_say() -> None:
    signal = GP_H.signal_sd * stationary_signal(400_000, GP_H.persistence, seed=3)
    rate, aim = 0.2, 5_000.0
    held = np.zeros(signal.size)
    for bar in range(1, signal.size):
        held[bar] = (1.0 - rate) * held[bar - 1] + rate * aim * signal[bar]
    traded = np.diff(held, prepend=0.0)
    rewards = signal * held - 0.5 * GP_H.risk * held**2 - 0.5 * GP_H.cost * traded**2
    # scaled to the sample's own variance of the signal, which is all that the moments leave to chance
    share = signal.var() / GP_H.signal_sd**2
    assert rewards.mean() / share == pytest.approx(GP_H.average_reward_of(rate, aim), rel=0.01)


def test_the_closed_form_on_the_ten_episodes_of_chaouki_et_al() -> None:
    assert CHAOUKI_QUADRATIC.trading_rate() == pytest.approx(0.41789, abs=5e-6)
    assert CHAOUKI_QUADRATIC.aim_per_signal() == pytest.approx(1.46289, abs=5e-6)

    def trade(signal: float, held: float) -> float:
        return float(CHAOUKI_QUADRATIC.trade(np.array(signal), np.array(held)))

    total = chaouki_total(trade, risk=CHAOUKI_RISK, quadratic=CHAOUKI_QUADRATIC.cost)
    assert 0.1 * total == pytest.approx(341.05, abs=5e-3)
    # the paper's own answer, optimal for one bar only
    assert 0.1 * total > 340.69


# ---------------------------------------------------------------- linear costs


def test_value_iteration_on_the_ten_episodes_of_chaouki_et_al() -> None:
    band = chaouki_linear_band()

    def optimal(signal: float, held: float) -> float:
        return float(band.trade(signal, held))

    def published(signal: float, held: float) -> float:
        # their band: hold while |p - 2 lambda x| <= psi', with the width that their notebook fits
        lower, upper = (signal - 0.6) / 0.6, (signal + 0.6) / 0.6
        return min(max(held, lower), upper)

    costs = {"risk": CHAOUKI_RISK, "linear": CHAOUKI_LINEAR_COST}
    best = chaouki_total(optimal, **costs)
    assert best == pytest.approx(1269.42, abs=0.5)
    assert chaouki_total(published, **costs) < best


def test_beyond_the_threshold_all_that_the_limit_admits_is_held() -> None:
    threshold = switching_threshold(
        persistence=CHAOUKI_PERSISTENCE, signal_sd=CHAOUKI_SD, cost=CHAOUKI_LINEAR_COST
    )
    assert threshold == pytest.approx(0.91, abs=0.01)

    def beyond(edge: float) -> Trade:
        return lambda signal, held: held if abs(signal) < edge else float(np.sign(signal)) * 2.0

    total = chaouki_total(beyond(threshold), risk=0.0, linear=CHAOUKI_LINEAR_COST)
    assert 0.1 * total == pytest.approx(447.81, abs=0.5)
    for wrong in (0.6, 1.4):
        assert chaouki_total(beyond(wrong), risk=0.0, linear=CHAOUKI_LINEAR_COST) < total


def test_without_a_cost_the_threshold_is_zero_and_it_rises_with_the_cost() -> None:
    edges = [
        switching_threshold(persistence=0.9, signal_sd=1.0, cost=cost) for cost in (1e-6, 1.0, 4.0, 16.0)
    ]
    assert edges[0] == pytest.approx(0.0, abs=1e-5)
    assert np.all(np.diff(edges) > 0.0)


# ---------------------------------------------------------------- growth


def test_kelly_of_a_mirrored_tape_is_drift_over_variance() -> None:
    tape = mirrored_tape(pairs=50, half_bars=100, drift=2e-4, sigma_per_bar=0.01, funding_rate=0.0, seed=1)
    returns = net_returns(tape)
    assert returns.mean() == pytest.approx(2e-4, rel=1e-9)
    best = best_constant_exposure(returns)
    # of two equally likely returns 2 bp +- 1 %; a Gaussian's has a little less
    assert best == pytest.approx(1.9997, abs=2e-3)
    assert growth(best, returns) == pytest.approx(0.5 * 2e-4**2 / 1e-4, rel=2e-3)
    for wrong in (0.9 * best, 1.1 * best):
        assert growth(wrong, returns) == pytest.approx(0.99 * growth(best, returns), rel=1e-3)


def test_longs_that_pay_funding_on_a_fair_price_are_best_short() -> None:
    tape = mirrored_tape(pairs=50, half_bars=100, drift=0.0, sigma_per_bar=0.01, funding_rate=1e-4, seed=1)
    assert best_constant_exposure(net_returns(tape)) == pytest.approx(-0.9996, abs=2e-3)


def test_an_exposure_that_a_bar_wipes_out_does_not_grow() -> None:
    returns = np.array([0.1, -0.1])
    assert growth(10.0, returns) == -np.inf
    assert np.isfinite(growth(9.9, returns))


def test_returns_of_one_sign_have_no_best_exposure() -> None:
    with pytest.raises(RuntimeError, match="both signs"):
        best_constant_exposure(np.array([0.01, 0.02]))


def test_funding_pays_for_two_fees_or_is_left_alone() -> None:
    assert shorts_for_funding(1.1e-4, 8, fee_rate=4e-4)
    assert not shorts_for_funding(0.9e-4, 8, fee_rate=4e-4)


# ---------------------------------------------------------------- execution


def test_the_example_of_almgren_and_chriss() -> None:
    block = Liquidation()
    assert block.urgency == pytest.approx(0.60708, abs=5e-6)
    np.testing.assert_allclose(block.schedule(), [1e6, 541_956, 289_854, 147_897, 62_142, 0.0], atol=0.5)
    assert block.utility_cost(block.schedule()) == pytest.approx(1_275_355.6, abs=0.05)
    assert block.utility_cost(block.equal_slices()) == pytest.approx(1_745_500.0, abs=0.05)


def test_every_other_schedule_costs_more() -> None:
    block = Liquidation()
    best = block.utility_cost(block.schedule())
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = block.schedule()
        other[1:-1] *= 1.0 + 0.05 * rng.standard_normal(block.steps - 1)
        assert block.utility_cost(other) > best


# ---------------------------------------------------------------- tapes


def test_the_countdown_runs_from_one_to_zero_and_settles_every_bar() -> None:
    tape = countdown_tape(4, funding_rate=1e-4)
    np.testing.assert_allclose(tape.features[:, 0, 0], [1.0, 0.75, 0.5, 0.25, 0.0])
    assert tape.stamp_start.tolist() == [[0, 1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(tape.stamp_time_ms, tape.open_time_ms + tape.bar_ms)
