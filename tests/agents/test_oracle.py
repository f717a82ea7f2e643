"""The oracle: the value iteration against known optima, and what the simulated market gives it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from perpgym.agents.oracle import (
    NoTradeBand,
    OracleAgent,
    ProportionalCostProblem,
    _signal_chain,
    solve_proportional_cost,
)
from perpgym.data.bars import CLOSE, OPEN
from perpgym.data.synthetic import SimulatedMarket, SimulatedMarketConfig, simulate_market
from perpgym.data.synthetic_series import autoregression
from perpgym.data.tape import Tape
from perpgym.envs.actions import ActionKind
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES

Floats = NDArray[np.float64]

COST_RATE = 6e-4  # taker 4 bp, half spread 1 bp, impact 1 bp
HOURS_PER_YEAR = 8_760
SEEDS = (0, 1, 2, 3, 4, 5)

# Chaouki et al. 2020 (arXiv 2003.06497), problem "linear cost": psi = 4, lambda = 0.3, their ten test seeds
CHAOUKI_SEEDS = (989115, 730001, 375393, 887276, 19045, 918105, 660321, 973008, 801101, 928288)
CHAOUKI_SD = float(np.sqrt(0.2 / 0.19))
CHAOUKI = ProportionalCostProblem(
    persistence=0.9,
    signal_sd=CHAOUKI_SD,
    sigma_per_bar=1.0,
    cost_rate=4.0,
    risk_aversion=0.6,
    max_exposure=8.0,
    exposure_points=321,
)
HOURLY = ProportionalCostProblem(
    persistence=0.5 ** (1 / 48),
    signal_sd=1.8e-4,
    sigma_per_bar=0.0069,
    cost_rate=COST_RATE,
    risk_aversion=8.0,
)


def chaouki_signal(seed: int, bars: int = 5_000) -> Floats:
    """Their AR(1) from zero, innovations of variance 0.2."""
    normals = np.random.RandomState(seed).normal(0, 1, bars)
    out, state = np.empty(bars), 0.0
    for t in range(bars):
        state = 0.9 * state + np.sqrt(0.2) * normals[t]
        out[t] = state
    return out


def hold_band(lower: Floats, upper: Floats, start: float = 0.0) -> Floats:
    """Exposure after each decision when only the band's edges are traded to."""
    out, held = np.empty(lower.shape[0]), start
    for t, (low, high) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
        held = min(max(held, low), high)
        out[t] = held
    return out


def band_reward(signal: Floats, band: NoTradeBand, problem: ProportionalCostProblem) -> Floats:
    lower = np.interp(signal, band.signal, band.lower)
    upper = np.interp(signal, band.signal, band.upper)
    x = hold_band(lower, upper)
    risk = 0.5 * problem.risk_aversion * problem.sigma_per_bar**2
    return signal * x - risk * x**2 - problem.cost_rate * np.abs(np.diff(x, prepend=0.0))


def total_returns(market: SimulatedMarket) -> Floats:
    """(T,) simple return of a long over each bar: price change less funding."""
    bars = market.bars
    out = bars.last[:, CLOSE] / bars.last[:, OPEN] - 1.0
    out[bars.stamp_bar()] -= bars.stamp_rate
    return np.asarray(out)


def tape_of(market: SimulatedMarket) -> Tape:
    bars = market.bars
    count = len(bars)
    owners = np.searchsorted(bars.stamp_bar(), np.arange(count + 1))
    return Tape(
        contracts=(bars.contract,),
        bar_ms=bars.bar_ms,
        open_time_ms=bars.open_time_ms,
        last=bars.last[:, None],
        mark=bars.mark[:, None],
        volume=bars.volume[:, None],
        sigma_per_bar=np.full((count, 1), 0.007),
        stamp_start=owners[None],
        stamp_time_ms=bars.stamp_time_ms,
        stamp_rate=bars.stamp_rate,
        features=np.zeros((count, 1, 0), dtype=np.float32),
        risk=np.zeros((count, 1, 0), dtype=np.float32),
        feature_names=(),
        risk_names=(),
        first_valid_bar=0,
        mark_rules=("mark",),
        source="simulated",
        planted=market.planted[:, None],
    )


def exposures(tape: Tape, expected_return: Floats, risk_aversion: float) -> Floats:
    oracle = OracleAgent(tape, cost_rate=COST_RATE, risk_aversion=risk_aversion)
    return hold_band(*oracle.edges(expected_return))


def profits(x: Floats, returns: Floats, cost_rate: float = COST_RATE) -> Floats:
    """(T - 1,) position times the next bar's return less proportional costs, fraction of equity."""
    return np.asarray(x[:-1] * returns[1:] - cost_rate * np.abs(np.diff(x[:-1], prepend=0.0)))


def sharpe(returns: Floats) -> float:
    return float(returns.mean() / returns.std() * np.sqrt(HOURS_PER_YEAR))


@cache
def simulated(seed: int) -> tuple[SimulatedMarket, Tape]:
    market = simulate_market(SimulatedMarketConfig(seed=seed))
    return market, tape_of(market)


@cache
def oracle_exposures(seed: int) -> Floats:
    market, tape = simulated(seed)
    return exposures(tape, market.planted, 8.0)


@cache
def oracle_profits(seed: int) -> Floats:
    return profits(oracle_exposures(seed), total_returns(simulated(seed)[0]))


# ---------------------------------------------------------------- value iteration


def test_value_iteration_reaches_the_known_optimum_of_chaouki_et_al() -> None:
    band = solve_proportional_cost(CHAOUKI)
    # their environment acts on the signal from its second value to its last but one
    totals = [band_reward(chaouki_signal(s)[1:-1], band, CHAOUKI).sum() for s in CHAOUKI_SEEDS]
    assert np.mean(totals) == pytest.approx(1269.42, rel=2e-3)
    # their own no-trade band, the reference of the paper's notebook, is slightly worse
    assert np.mean(totals) > 1269.01


def test_a_wrong_band_earns_less_than_the_optimum() -> None:
    band = solve_proportional_cost(CHAOUKI)
    centre, half = 0.5 * (band.lower + band.upper), 0.5 * (band.upper - band.lower)
    signal = chaouki_signal(7, 100_000)
    best = band_reward(signal, band, CHAOUKI).sum()
    for scale in (0.5, 1.5):
        wrong = replace(band, lower=centre - scale * half, upper=centre + scale * half)
        assert band_reward(signal, wrong, CHAOUKI).sum() < 0.97 * best


def test_average_reward_is_what_the_band_earns_in_the_long_run() -> None:
    band = solve_proportional_cost(CHAOUKI)
    normals = np.random.default_rng(0).standard_normal(2_000_000)
    signal = autoregression(normals, CHAOUKI.persistence) * CHAOUKI_SD
    assert band.average_reward == pytest.approx(band_reward(signal, band, CHAOUKI).mean(), rel=0.01)


def test_running_maxima_find_what_trying_every_trade_finds() -> None:
    problem = replace(CHAOUKI, exposure_points=21)
    signal, transition = _signal_chain(problem.persistence, problem.signal_sd)
    x = np.linspace(-8.0, 8.0, 21)
    trades = problem.cost_rate * np.abs(x[:, None] - x)  # from to
    value = np.zeros((signal.shape[0], 21))
    for _ in range(400):
        held = signal[:, None] * x - 0.3 * x**2 + transition @ value
        updated = (held[:, None, :] - trades).max(axis=2)
        growth = updated - value
        value = updated - updated[0, 0]
    assert solve_proportional_cost(problem).average_reward == pytest.approx(growth.mean(), rel=1e-5)


def test_without_costs_the_optimum_is_markowitz() -> None:
    band = solve_proportional_cost(replace(HOURLY, cost_rate=0.0))
    markowitz = np.clip(band.signal / (8.0 * 0.0069**2), -2.0, 2.0)
    np.testing.assert_allclose(band.lower, markowitz, atol=1e-6)
    np.testing.assert_allclose(band.upper, markowitz, atol=1e-6)


def test_a_larger_cost_widens_the_band_and_lowers_the_reward() -> None:
    rates = (0.0, 2e-4, 6e-4, 1.2e-3)
    bands = [solve_proportional_cost(replace(HOURLY, cost_rate=rate)) for rate in rates]
    middle = bands[0].signal.shape[0] // 2
    widths = [float(band.upper[middle] - band.lower[middle]) for band in bands]
    assert np.diff(widths).min() > 1e-3
    rewards = [band.average_reward for band in bands]
    assert np.diff(rewards).max() < 0.0


def test_a_prohibitive_cost_leaves_every_exposure_near_flat_alone() -> None:
    band = solve_proportional_cost(replace(CHAOUKI, cost_rate=100.0))
    assert band.lower.max() <= 0.0 <= band.upper.min()


def test_the_band_is_odd_in_the_signal_and_rises_with_it() -> None:
    band = solve_proportional_cost(HOURLY)
    np.testing.assert_allclose(band.lower, -band.upper[::-1], atol=1e-6)
    assert (np.diff(band.lower) >= -1e-9).all()
    assert (band.lower <= band.upper).all()
    assert np.abs([band.lower, band.upper]).max() <= 2.0


def test_the_signal_chain_has_the_moments_of_the_autoregression() -> None:
    signal, transition = _signal_chain(0.985, 2.0)
    np.testing.assert_allclose(transition.sum(axis=1), 1.0, atol=1e-12)
    inner = np.abs(signal) < 6.0
    np.testing.assert_allclose((transition @ signal)[inner], 0.985 * signal[inner], atol=1e-6)
    variance = transition @ signal**2 - (transition @ signal) ** 2
    np.testing.assert_allclose(variance[inner], 4.0 * (1 - 0.985**2), rtol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"persistence": 1.0},
        {"signal_sd": 0.0},
        {"sigma_per_bar": float("nan")},
        {"cost_rate": -1e-4},
        {"exposure_points": 200},
    ],
)
def test_an_impossible_problem_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(HOURLY, **wrong)  # type: ignore[arg-type]


def test_value_iteration_that_runs_out_of_sweeps_says_so() -> None:
    with pytest.raises(RuntimeError, match="raise max_sweeps"):
        solve_proportional_cost(HOURLY, max_sweeps=3)


# ---------------------------------------------------------------- what the simulated market holds


def test_the_oracle_earns_a_sharpe_of_two_to_three_after_costs() -> None:
    sharpes = [sharpe(oracle_profits(seed)) for seed in SEEDS]
    assert 2.0 < np.mean(sharpes) < 3.0
    # 13.5 years leave a standard error of 0.27
    assert all(2.0 < s < 3.5 for s in sharpes)


def test_a_single_year_of_the_oracle_is_spread_by_about_one() -> None:
    years = [
        sharpe(earned[start : start + HOURS_PER_YEAR])
        for earned in map(oracle_profits, SEEDS)
        for start in range(0, earned.shape[0] - HOURS_PER_YEAR, HOURS_PER_YEAR)
    ]
    assert 2.0 < np.mean(years) < 3.2
    assert 0.7 < np.std(years) < 1.4


def test_the_log_growth_oracle_also_earns_a_sharpe_of_two_to_three_and_more_growth() -> None:
    sharpes, growths, careful = [], [], []
    for seed in SEEDS[:4]:
        market, tape = simulated(seed)
        earned = profits(exposures(tape, market.planted, 1.0), total_returns(market))
        sharpes.append(sharpe(earned))
        growths.append(np.log1p(earned).mean())
        careful.append(np.log1p(oracle_profits(seed)).mean())
    assert 1.9 < np.mean(sharpes) < 3.0
    assert np.mean(growths) > 1.2 * np.mean(careful)


def test_square_root_impact_of_a_million_leaves_the_oracle_above_two() -> None:
    for seed in SEEDS[:2]:
        market, _ = simulated(seed)
        x = oracle_exposures(seed)
        traded = np.abs(np.diff(x[:-1], prepend=0.0))
        notional = market.bars.volume[1:] * market.bars.last[1:, OPEN]
        impact = 0.007 * np.sqrt(traded * 1e6 / notional)
        earned = profits(x, total_returns(market), cost_rate=5e-4) - impact * traded
        assert 2.0 < sharpe(earned) < 3.5


def test_the_same_trades_on_the_edgeless_market_only_pay_costs() -> None:
    sharpes, gross = [], []
    for seed in SEEDS:
        x = oracle_exposures(seed)
        returns = total_returns(simulate_market(SimulatedMarketConfig(seed=seed, edge=0.0)))
        sharpes.append(sharpe(profits(x, returns)))
        gross.append(sharpe(profits(x, returns, cost_rate=0.0)))
    # six times 13.5 years: standard error 0.11
    assert abs(np.mean(gross)) < 0.35
    assert np.mean(sharpes) < np.mean(gross) - 0.15


def test_a_filter_of_the_observable_basis_earns_nine_tenths_of_the_oracle() -> None:
    for seed in SEEDS[:2]:
        market, tape = simulated(seed)
        basis_bps = 1e4 * (market.bars.last[:, CLOSE] / market.bars.mark[:, CLOSE] - 1.0)
        lags = np.lib.stride_tricks.sliding_window_view(basis_bps, 63)
        truth = market.planted[62:]
        half = truth.shape[0] // 2
        weights = np.linalg.solve(lags[:half].T @ lags[:half] + np.eye(63), lags[:half].T @ truth[:half])
        seen = np.zeros(len(tape))
        seen[62:] = lags @ weights
        returns = total_returns(market)
        filtered = profits(exposures(tape, seen, 8.0), returns)[half + 62 :]
        assert sharpe(filtered) > 0.9 * sharpe(oracle_profits(seed)[half + 62 :])


# ---------------------------------------------------------------- the agent


@pytest.fixture(scope="module")
def small() -> Tape:
    return tape_of(simulate_market(SimulatedMarketConfig(seed=3, start="2024-01-01", end="2024-12-31")))


def account_of(exposure: list[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    account = np.zeros((len(exposure), 1, len(ACCOUNT_NAMES)), dtype=np.float32)
    account[:, 0, ACCOUNT_NAMES.index("exposure")] = exposure
    return account, np.zeros((len(exposure), len(PORTFOLIO_NAMES)), dtype=np.float32)


@pytest.mark.parametrize("action", ["target", "band"])
def test_the_oracle_trades_to_the_nearer_edge_and_leaves_the_inside_alone(
    small: Tape, action: ActionKind
) -> None:
    oracle = OracleAgent(small, action=action)
    assert small.planted is not None
    bar = int(np.argmax(small.planted[:, 0]))
    lower, upper = (float(edge[bar]) for edge in oracle.edges(small.planted[:, 0]))
    assert 0 < lower < upper <= 2.0
    inside = 0.5 * (lower + upper)
    account, portfolio = account_of([-2.0, inside, 5.0])
    out = oracle.act(small, bar, account, portfolio)
    assert out.shape == (3, 1 if action == "target" else 2)
    assert out.dtype == np.float32
    np.testing.assert_allclose(2.0 * out[:, 0], [lower, inside, upper], atol=1e-6)


def test_the_oracle_holds_less_where_volatility_is_higher(small: Tape) -> None:
    oracle = OracleAgent(small)
    signal = np.full(2, 3e-4)
    lower, upper = oracle.edges(signal, np.array([0.003, 0.012]))
    assert lower[1] < lower[0]
    assert upper[1] < upper[0]


def test_one_volatility_level_is_constant_volatility(small: Tape) -> None:
    oracle = OracleAgent(small, volatility_levels=1)
    lower, upper = oracle.edges(np.full(2, 2e-4), np.array([0.003, 0.012]))
    assert lower[0] == lower[1]
    assert upper[0] == upper[1]


def test_more_risk_aversion_means_smaller_exposures(small: Tape) -> None:
    assert small.planted is not None
    bold, careful = (np.abs(exposures(small, small.planted[:, 0], gamma)).mean() for gamma in (1.0, 16.0))
    assert careful < 0.5 * bold


def test_on_the_edgeless_market_the_oracle_goes_flat() -> None:
    config = SimulatedMarketConfig(seed=3, start="2024-01-01", end="2024-02-01", edge=0.0)
    tape = tape_of(simulate_market(config))
    account, portfolio = account_of([0.0, 1.5])
    out = OracleAgent(tape).act(tape, 100, account, portfolio)
    np.testing.assert_array_equal(out[:, 0], 0.0)


def test_the_oracle_refuses_a_market_with_nothing_planted(small: Tape) -> None:
    with pytest.raises(ValueError, match="only simulated markets have"):
        OracleAgent(replace(small, planted=None, source="binance"))


def test_the_oracle_refuses_another_tape_than_its_own(small: Tape) -> None:
    oracle = OracleAgent(small)
    later = {n: getattr(small, n) + small.bar_ms for n in ("open_time_ms", "stamp_time_ms")}
    other = replace(small, **later)
    with pytest.raises(ValueError, match="one tape only"):
        oracle.act(other, 10, *account_of([0.0]))


def test_the_oracle_forecasts_volatility_from_the_past_alone(small: Tape) -> None:
    changed = small.last.copy()
    changed[5_000:] *= 1.5
    before, after = (OracleAgent(t)._sigma for t in (small, replace(small, last=changed)))
    # the start is the mean of the whole and forgotten within days
    np.testing.assert_allclose(before[2_000:5_000], after[2_000:5_000], rtol=1e-9)
    assert after[5_000] > 2 * before[5_000]


def test_the_oracle_refuses_several_contracts(small: Tape) -> None:
    twice = {name: np.concatenate([getattr(small, name)] * 2, axis=1) for name in ("last", "mark", "volume")}
    also = ("sigma_per_bar", "planted", "is_valid")
    more = {name: np.concatenate([getattr(small, name)] * 2, axis=1) for name in also}
    empty = np.zeros((len(small), 2, 0), dtype=np.float32)
    stamps = np.concatenate([small.stamp_start] * 2)
    with pytest.raises(ValueError, match="one contract at a time"):
        OracleAgent(
            replace(
                small,
                contracts=small.contracts * 2,
                stamp_start=stamps,
                features=empty,
                risk=empty,
                **twice,
                **more,
            )
        )
