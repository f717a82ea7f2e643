"""The simulated market: its calibration against real BTC, its planted edge, and the market without it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from perpgym.data import synthetic_series as series
from perpgym.data.bars import CLOSE, HIGH, LOW, OPEN, Bars
from perpgym.data.contract import HOUR_MS, load_contract
from perpgym.data.stylised_facts import BTC_FACTS, autocorrelation, stylised_facts, tail_index
from perpgym.data.synthetic import (
    SimulatedMarket,
    SimulatedMarketConfig,
    simulate_market,
    simulate_markets,
    simulated_contract,
)

Floats = NDArray[np.float64]

SEEDS = (0, 1, 2, 3, 4, 5)


@cache
def market_of(seed: int, edge: float = 1.0) -> SimulatedMarket:
    return simulate_market(SimulatedMarketConfig(seed=seed, edge=edge))


def price_returns(bars: Bars) -> Floats:
    return np.asarray(bars.last[:, CLOSE] / bars.last[:, OPEN] - 1.0)


def total_returns(bars: Bars) -> Floats:
    """(T,) of a long: price change less the funding of the bar that owns the stamp."""
    out = price_returns(bars)
    out[bars.stamp_bar()] -= bars.stamp_rate
    return out


def basis_of(bars: Bars) -> Floats:
    return np.asarray(bars.last[:, CLOSE] / bars.mark[:, CLOSE] - 1.0)


def slope_t(signal: Floats, outcome: Floats) -> tuple[float, float]:
    """Least-squares slope through the origin and its t statistic, robust to clustered volatility (White)."""
    slope = float(signal @ outcome / (signal @ signal))
    error = np.sqrt(np.sum((signal * (outcome - slope * signal)) ** 2)) / (signal @ signal)
    return slope, slope / float(error)


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("edge", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 6])
def test_every_stylised_fact_lies_in_the_range_of_real_btc(seed: int, edge: float) -> None:
    measured = stylised_facts(market_of(seed, edge).bars)
    wrong = {
        name: (value, BTC_FACTS[name].low, BTC_FACTS[name].high)
        for name, value in measured.items()
        if not BTC_FACTS[name].low <= value <= BTC_FACTS[name].high
    }
    assert not wrong
    assert measured.keys() == BTC_FACTS.keys()


def test_the_recorded_facts_are_those_of_the_real_bars(shared_data: Path) -> None:
    folder = shared_data / "freqtrade" / "binance" / "futures"
    last = pd.read_feather(folder / "BTC_USDT_USDT-1h-futures.feather")
    mark = pd.read_feather(folder / "BTC_USDT_USDT-1h-mark.feather")
    funding = pd.read_feather(folder / "BTC_USDT_USDT-8h-funding_rate.feather")
    mark = mark[mark["date"].isin(last["date"])]
    names = ["open", "high", "low", "close"]
    measured = stylised_facts(
        Bars(
            contract=load_contract("BTC/USDT:USDT"),
            bar_ms=HOUR_MS,
            open_time_ms=milliseconds(last),
            last=last[names].to_numpy(),
            mark=mark[names].to_numpy(),
            volume=last["volume"].to_numpy(),
            stamp_time_ms=milliseconds(funding),
            stamp_rate=funding["open"].to_numpy(),
        )
    )
    assert measured == pytest.approx({name: fact.measured for name, fact in BTC_FACTS.items()}, rel=1e-3)


def milliseconds(frame: pd.DataFrame) -> NDArray[np.int64]:
    return frame["date"].dt.tz_localize(None).to_numpy().astype("datetime64[ms]").astype(np.int64)


def test_every_recorded_fact_lies_in_its_own_range() -> None:
    for name, fact in BTC_FACTS.items():
        assert fact.low <= fact.measured <= fact.high, name


def test_hill_finds_the_index_of_a_pareto_tail() -> None:
    pareto = np.random.default_rng(0).pareto(3.0, 200_000) + 1.0
    assert tail_index(pareto, 0.01) == pytest.approx(3.0, rel=0.1)


def test_facts_are_of_hourly_bars_only() -> None:
    config = SimulatedMarketConfig(start="2024-01-01", end="2024-01-31", bar_ms=HOUR_MS // 4)
    with pytest.raises(ValueError, match="hourly"):
        stylised_facts(simulate_market(config).bars)


def test_volatility_rises_with_the_regime() -> None:
    market = market_of(0)
    sigma = [price_returns(market.bars)[market.regime == k].std() for k in range(3)]
    assert sigma[0] < 0.8 * sigma[1]
    assert sigma[1] < 0.8 * sigma[2]


def test_the_spread_is_wider_at_weekends_than_in_american_hours() -> None:
    market = market_of(0)
    days = market.bars.open_time_ms // (24 * HOUR_MS)
    hours = market.bars.open_time_ms // HOUR_MS % 24
    weekend, busy = (days + 3) % 7 >= 5, ((days + 3) % 7 < 5) & (hours >= 13) & (hours < 17)
    assert market.half_spread_bps[weekend].mean() > 1.2 * market.half_spread_bps[busy].mean()
    assert np.median(market.half_spread_bps) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("bar_minutes", [15, 240])
def test_other_bars_have_the_volatility_and_the_edge_of_the_hour(bar_minutes: int) -> None:
    config = SimulatedMarketConfig(start="2018-01-01", seed=1, bar_ms=bar_minutes * 60_000)
    hour, other = (simulate_market(c) for c in (replace(config, bar_ms=HOUR_MS), config))
    scale = bar_minutes / 60
    assert price_returns(other.bars).std() == pytest.approx(
        price_returns(hour.bars).std() * np.sqrt(scale), rel=0.25
    )
    assert other.planted_sd == pytest.approx(hour.planted_sd * scale)
    assert other.persistence == pytest.approx(hour.persistence**scale)
    assert other.bars.stamp_time_ms.tolist() == hour.bars.stamp_time_ms.tolist()


# ---------------------------------------------------------------- the planted edge


def test_planted_is_an_autoregression_of_the_stated_size() -> None:
    market = market_of(0)
    # 118,000 bars hold some 1,700 independent values
    assert market.planted.std() == pytest.approx(market.planted_sd, rel=0.08)
    assert market.planted_sd == pytest.approx(1.8e-4)
    assert autocorrelation(market.planted, 1) == pytest.approx(market.persistence, abs=2e-3)
    assert market.persistence == pytest.approx(0.5 ** (1 / 48))


def test_without_shocks_every_bar_returns_what_was_planted_and_its_funding() -> None:
    market = simulate_market(SimulatedMarketConfig(seed=2, start="2024-01-01", sigma_per_hour=1e-9))
    # rounding to a tick of 0.001 on 20,000
    np.testing.assert_allclose(total_returns(market.bars)[1:], market.planted[:-1], atol=2e-7)
    assert np.abs(price_returns(market.bars)[1:] - market.planted[:-1]).max() > 1e-4


def test_realised_returns_follow_what_was_planted_one_for_one() -> None:
    planted = np.concatenate([market_of(seed).planted[:-1] for seed in SEEDS])
    realised = np.concatenate([total_returns(market_of(seed).bars)[1:] for seed in SEEDS])
    slope, t = slope_t(planted, realised)
    assert t > 10
    assert slope == pytest.approx(1.0, abs=3.5 / t)


def test_the_basis_reveals_nine_tenths_of_the_signal_to_a_causal_filter() -> None:
    market = market_of(0)
    lags = np.lib.stride_tricks.sliding_window_view(1e4 * basis_of(market.bars), 63)
    truth = market.signal[62:]
    half = truth.shape[0] // 2
    weights = np.linalg.solve(lags[:half].T @ lags[:half] + np.eye(63), lags[:half].T @ truth[:half])
    unexplained = np.mean((truth[half:] - lags[half:] @ weights) ** 2) / truth[half:].var()
    assert 0.90 < 1.0 - unexplained < 0.96


def test_crowded_markets_fall_and_the_edgeless_one_does_not() -> None:
    t = {}
    for edge in (0.0, 1.0):
        basis = np.concatenate([basis_of(market_of(seed, edge).bars)[:-1] for seed in SEEDS])
        after = np.concatenate([total_returns(market_of(seed, edge).bars)[1:] for seed in SEEDS])
        t[edge] = slope_t(basis - basis.mean(), after)[1]
    assert t[1.0] < -10
    assert abs(t[0.0]) < 3.5


def test_high_funding_goes_with_a_low_drift() -> None:
    market = market_of(0)
    owner = market.bars.stamp_bar()
    assert np.corrcoef(market.bars.stamp_rate, market.planted[owner])[0, 1] < -0.3


# ---------------------------------------------------------------- the market without an edge


def test_the_edgeless_market_differs_in_the_drift_alone() -> None:
    with_edge, without = market_of(0, 1.0), market_of(0, 0.0)
    assert not without.planted.any()
    assert without.planted_sd == 0.0
    np.testing.assert_array_equal(with_edge.signal, without.signal)
    np.testing.assert_array_equal(with_edge.bars.stamp_rate, without.bars.stamp_rate)
    np.testing.assert_array_equal(with_edge.regime, without.regime)
    # to the tick
    np.testing.assert_allclose(basis_of(with_edge.bars), basis_of(without.bars), atol=1e-6)
    drift = np.log(with_edge.bars.last[:, CLOSE] / with_edge.bars.last[:, OPEN]) - np.log(
        without.bars.last[:, CLOSE] / without.bars.last[:, OPEN]
    )
    np.testing.assert_allclose(drift[1:], with_edge.planted[:-1], atol=2e-6)


def test_a_long_of_the_edgeless_market_earns_nothing_on_average() -> None:
    returns = np.concatenate([total_returns(market_of(seed, 0.0).bars) for seed in SEEDS])
    assert abs(returns.mean()) < 3.5 * returns.std() / np.sqrt(returns.shape[0])


def test_simple_returns_have_the_planted_mean_only_because_half_the_variance_is_taken_off() -> None:
    rng = np.random.default_rng(0)
    sigma, normals = 0.05 * rng.random(1_000_000), rng.standard_normal(1_000_000)
    right = np.expm1(series.log_returns(np.full(1_000_000, 1e-3), sigma, normals))
    assert right.mean() == pytest.approx(1e-3, abs=1e-4)
    # without it a flat log price would pay half its variance, 4 bp here
    assert np.expm1(sigma * normals).mean() > 3e-4


@pytest.mark.parametrize("what", ["return", "size", "funding", "volume", "hour"])
def test_nothing_seen_foretells_the_edgeless_market(what: str) -> None:
    seen, after = [], []
    for seed in SEEDS:
        bars = market_of(seed, 0.0).bars
        returns = total_returns(bars)
        latest = np.searchsorted(bars.stamp_time_ms, bars.close_time_ms, side="right") - 1
        columns = {
            "return": np.clip(returns, -0.02, 0.02),
            "size": np.minimum(np.abs(returns), 0.02),
            "funding": bars.stamp_rate[np.maximum(latest, 0)],
            "volume": np.log(bars.volume * bars.last[:, CLOSE]),
            "hour": np.cos(bars.open_time_ms / HOUR_MS * 2 * np.pi / 24),
        }
        seen.append(columns[what][:-1] - columns[what].mean())
        after.append(returns[1:])
    assert abs(slope_t(np.concatenate(seen), np.concatenate(after))[1]) < 3.5


def test_the_price_makes_good_the_funding() -> None:
    rate, price, total = [], [], []
    for seed in SEEDS:
        bars = market_of(seed, 0.0).bars
        rate.append(bars.stamp_rate)
        price.append(price_returns(bars)[bars.stamp_bar()])
        total.append(total_returns(bars)[bars.stamp_bar()])
    slope, t = slope_t(np.concatenate(rate), np.concatenate(price))
    assert t > 4
    assert slope == pytest.approx(1.0, abs=3.5 / t)
    assert abs(slope_t(np.concatenate(rate), np.concatenate(total))[1]) < 3.5


# ---------------------------------------------------------------- form


def test_the_same_seed_is_the_same_market_and_another_is_not() -> None:
    config = SimulatedMarketConfig(start="2024-01-01", end="2024-03-31")
    one, again, other = (simulate_market(c) for c in (config, config, replace(config, seed=99)))
    for name in ("last", "mark", "volume", "stamp_rate"):
        np.testing.assert_array_equal(getattr(one.bars, name), getattr(again.bars, name))
    np.testing.assert_array_equal(one.planted, again.planted)
    assert not np.array_equal(one.bars.last, other.bars.last)
    assert abs(np.corrcoef(price_returns(one.bars), price_returns(other.bars))[0, 1]) < 0.1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    edge=st.sampled_from([0.0, 1.0, -3.0]),
    bar_minutes=st.sampled_from([5, 60, 480]),
    symbol=st.sampled_from(["BTC/USDT:USDT", "ETH/USDT:USDT"]),
)
def test_bars_are_possible_and_join(seed: int, edge: float, bar_minutes: int, symbol: str) -> None:
    bars = simulate_market(
        SimulatedMarketConfig(
            symbol=symbol,
            seed=seed,
            edge=edge,
            bar_ms=bar_minutes * 60_000,
            start="2024-01-01",
            end="2024-01-20",
        )
    ).bars
    for prices in (bars.last, bars.mark):
        assert np.isfinite(prices).all()
        assert (prices[:, LOW] > 0).all()
        assert (prices[:, LOW] <= np.minimum(prices[:, OPEN], prices[:, CLOSE])).all()
        assert (prices[:, HIGH] >= np.maximum(prices[:, OPEN], prices[:, CLOSE])).all()
        np.testing.assert_array_equal(prices[1:, OPEN], prices[:-1, CLOSE])
    ticks = bars.last / bars.contract.tick_size
    np.testing.assert_allclose(ticks, np.round(ticks), atol=1e-3)
    assert (bars.volume > 0).all()
    assert (np.diff(bars.open_time_ms) == bars.bar_ms).all()


def test_stamps_are_eight_hours_apart_and_each_belongs_to_a_bar() -> None:
    bars = market_of(0).bars
    assert (np.diff(bars.stamp_time_ms) == 8 * HOUR_MS).all()
    assert (bars.stamp_time_ms % (8 * HOUR_MS) == 0).all()
    assert bars.stamp_time_ms[0] > bars.open_time_ms[0]
    assert bars.stamp_time_ms[-1] == bars.close_time_ms[-1]
    # a stamp at a close belongs to the bar that ends there
    np.testing.assert_array_equal(bars.close_time_ms[bars.stamp_bar()], bars.stamp_time_ms)


def test_the_period_is_the_one_asked_for() -> None:
    bars = market_of(0).bars
    assert bars.open_time_ms[0] == np.datetime64("2012-01-01", "ms").astype(np.int64)
    assert bars.close_time_ms[-1] == np.datetime64("2025-07-01", "ms").astype(np.int64)


def test_the_last_price_sometimes_runs_where_the_mark_does_not_follow() -> None:
    bars = market_of(0).bars
    beyond = bars.mark[:, LOW] / bars.last[:, LOW] - 1.0
    assert beyond.max() > 0.01
    assert np.median(beyond) < 0.001


def test_tick_and_lot_stay_small_wherever_the_price_wanders() -> None:
    rules = simulated_contract("BTC/USDT:USDT")
    for seed in SEEDS:
        close = market_of(seed).bars.last[:, CLOSE]
        assert rules.tick_size / close.min() < 2e-5
        assert rules.lot_size * close.max() < 100.0
    assert rules.brackets == load_contract("BTC/USDT:USDT").brackets


# ---------------------------------------------------------------- several markets


@cache
def company(correlation: float) -> tuple[SimulatedMarket, ...]:
    configs = tuple(SimulatedMarketConfig(seed=seed) for seed in SEEDS[:3])
    return simulate_markets(configs, correlation=correlation, seed=5)


def pairwise_correlations(series: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(np.corrcoef(series)[np.triu_indices(len(series), 1)])


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.85])
def test_returns_of_markets_in_company_correlate_as_asked(correlation: float) -> None:
    returns = [price_returns(market.bars) for market in company(correlation)]
    np.testing.assert_allclose(pairwise_correlations(returns), correlation, atol=0.02)


def test_their_volatility_and_their_jumps_come_together_as_those_of_real_contracts_do() -> None:
    large = {}
    for correlation in (0.0, 0.6):
        returns = [price_returns(market.bars) for market in company(correlation)]
        large[correlation] = pairwise_correlations([(np.abs(r) > 8 * r.std()).astype(float) for r in returns])
    np.testing.assert_allclose(pairwise_correlations([daily_size(r) for r in returns]), 0.77, atol=0.03)
    assert large[0.6].min() > 0.05
    assert large[0.0].max() < 0.04


def daily_size(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of log |return| by day."""
    size = np.log(np.abs(returns) + 1e-5)
    return np.asarray(size[: size.shape[0] // 24 * 24].reshape(-1, 24).mean(axis=1))


def test_real_contracts_move_together_as_the_page_says(shared_data: Path) -> None:
    folder = shared_data / "freqtrade" / "binance" / "futures"
    closes = {
        coin: pd.read_feather(folder / f"{coin}_USDT_USDT-1h-futures.feather").set_index("date")["close"]
        for coin in ("BTC", "ETH", "XRP", "BNB", "DOGE", "SOL", "AVAX")
    }
    returns = np.log(pd.DataFrame(closes)).diff().dropna().to_numpy().T
    found = pairwise_correlations(list(returns)), pairwise_correlations([daily_size(r) for r in returns])
    text = (
        "correlate {:.2f} to {:.2f}, {:.2f} in the median, and their daily means of log |return| {:.2f} to "
        "{:.2f}, {:.2f} in the median"
    ).format(*(f(c) for c in found for f in (np.min, np.max, np.median)))
    page = Path(__file__).resolve().parents[2] / "docs" / "simulated_market.md"
    assert text in " ".join(page.read_text("utf-8").split()), f"docs/simulated_market.md must say: {text}"


def test_every_market_in_company_keeps_its_own_signal_funding_and_facts() -> None:
    markets = company(0.6)
    signals = [market.signal for market in markets]
    assert (np.abs(pairwise_correlations(signals)) < 0.15).all()
    for market, seed in zip(markets, SEEDS[:3], strict=True):
        alone = market_of(seed)
        np.testing.assert_array_equal(market.signal, alone.signal)
        np.testing.assert_array_equal(market.bars.stamp_rate, alone.bars.stamp_rate)
        wrong = {
            name: value
            for name, value in stylised_facts(market.bars).items()
            if not BTC_FACTS[name].low <= value <= BTC_FACTS[name].high
        }
        assert not wrong


def test_the_same_seeds_are_the_same_company_and_another_common_seed_is_not() -> None:
    base = SimulatedMarketConfig(start="2024-01-01", end="2024-03-31", seed=1)
    configs = (base, replace(base, seed=2, symbol="ETH/USDT:USDT", start_price=1_500.0))
    one, again, other = (simulate_markets(configs, seed=seed) for seed in (5, 5, 6))
    for mine, same, another in zip(one, again, other, strict=True):
        np.testing.assert_array_equal(mine.bars.last, same.bars.last)
        assert abs(np.corrcoef(price_returns(mine.bars), price_returns(another.bars))[0, 1]) < 0.9


@pytest.mark.parametrize(
    ("seeds", "starts", "correlation", "message"),
    [
        ((1, 1), ("2024-01-01", "2024-01-01"), 0.5, "different seeds"),
        ((1, 2), ("2024-01-01", "2024-01-02"), 0.5, "share start"),
        ((1, 2), ("2024-01-01", "2024-01-01"), 1.5, "correlation must lie"),
    ],
)
def test_markets_that_cannot_be_joined_are_refused(
    seeds: tuple[int, int], starts: tuple[str, str], correlation: float, message: str
) -> None:
    configs = tuple(SimulatedMarketConfig(seed=a, start=b) for a, b in zip(seeds, starts, strict=True))
    with pytest.raises(ValueError, match=message):
        simulate_markets(configs, correlation=correlation)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bar_ms": 7 * 60_000}, "bar_ms must divide 8 hours"),
        ({"end": "2011-01-01"}, "end must lie"),
        ({"seed": -1}, "seed must not be negative"),
        ({"sigma_per_hour": 0.0}, "sigma_per_hour must be positive"),
        ({"signal_half_life_hours": -1.0}, "signal_half_life_hours must be positive"),
        ({"edge": 1_000.0}, "edge is a multiple"),
        ({"trace_noise": -0.1}, "trace_noise"),
    ],
)
def test_an_impossible_config_says_what_is_allowed(wrong: dict[str, float | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedMarketConfig(**wrong)  # type: ignore[arg-type]
