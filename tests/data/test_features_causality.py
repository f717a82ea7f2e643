"""Every column is causal and forgets: the property that makes live inference equal to training."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.contract import HOUR_MS, Contract
from perpgym.data.features import default_names, get_feature, sigma_per_bar
from perpgym.data.features.build import build_tape
from perpgym.data.features.volatility import SIGMA_LOOKBACK

SHARED = Path(
    os.environ.get("PERPGYM_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data")
)
ALL_NAMES = (*default_names("market"), *default_names("risk"), *default_names("named"))
OHLC = ["open", "high", "low", "close"]


def random_bars(count: int = 1_600, seed: int = 0) -> Bars:
    """A seeded walk with bursts of volatility, a filled gap, and funding every 8, 4, 2, then 8 hours."""
    rng = np.random.default_rng(seed)
    volatility = 0.01 * np.exp(rng.normal(size=count).cumsum() * 0.05)
    close = 100 * np.exp((rng.standard_t(4, count) * volatility).cumsum())
    opening = np.concatenate([[100.0], close[:-1]])
    wick = np.abs(rng.normal(size=(2, count))) * volatility / 2
    high = np.maximum(opening, close) * np.exp(wick[0])
    low = np.minimum(opening, close) * np.exp(-wick[1])
    last = np.stack([opening, high, low, close], axis=1)
    volume = rng.lognormal(3, 1, count)
    # a stretch without data, filled flat as the importers do
    last[900:1_020], volume[900:1_020] = last[899, 3], 0.0
    hours = np.arange(count + 1)
    interval = np.select([hours < 700, hours < 900, hours < 1_100], [8, 4, 2], 8)
    stamps = hours[(hours % interval == 0)] * HOUR_MS
    start = 1_600_000_000_000 // (8 * HOUR_MS) * (8 * HOUR_MS)
    return Bars(
        contract=Contract(symbol="RANDOM/USDT:USDT"),
        bar_ms=HOUR_MS,
        open_time_ms=start + np.arange(count) * HOUR_MS,
        last=last,
        mark=last * np.exp(rng.normal(size=(count, 1)) * 1e-3),
        volume=volume,
        stamp_time_ms=start + stamps,
        stamp_rate=rng.normal(1e-4, 1e-4, len(stamps)),
        premium=np.where(rng.random(count) < 0.05, np.nan, rng.normal(2e-4, 5e-4, count)),
    )


def real_bars(coin: str) -> Bars:
    """Hourly bars as freqtrade stores them; missing hours are filled flat without volume."""
    folder = SHARED / "freqtrade" / "binance" / "futures"
    if not (folder / f"{coin}_USDT_USDT-1h-futures.feather").exists():
        pytest.skip(f"needs the shared market data in {SHARED}; set PERPGYM_SHARED_DATA")

    def table(kind: str) -> pd.DataFrame:
        return pd.read_feather(folder / f"{coin}_USDT_USDT-{kind}.feather").set_index("date")

    last = table("1h-futures").asfreq("1h")
    volume = last["volume"].fillna(0.0)
    close = last["close"].ffill()
    last = last[OHLC].apply(lambda column: column.fillna(close))
    mark = last
    if (folder / f"{coin}_USDT_USDT-1h-mark.feather").exists():
        mark = table("1h-mark")[OHLC].reindex(last.index)
        mark = mark.where(mark.notna(), last)
    funding = table("8h-funding_rate")["open"]
    return Bars(
        contract=Contract(symbol=f"{coin}/USDT:USDT"),
        bar_ms=HOUR_MS,
        open_time_ms=pd.DatetimeIndex(last.index).as_unit("ms").asi8,
        last=last.to_numpy(),
        mark=mark.to_numpy(),
        volume=volume.to_numpy(),
        stamp_time_ms=pd.DatetimeIndex(funding.index).as_unit("ms").asi8,
        stamp_rate=funding.to_numpy(),
    )


@pytest.fixture(scope="module")
def synthetic() -> Bars:
    return random_bars()


@pytest.fixture(scope="module")
def btc() -> Bars:
    return real_bars("BTC")


def columns(bars: Bars) -> dict[str, NDArray[np.float64]]:
    return {name: get_feature(name).compute(bars) for name in ALL_NAMES} | {"sigma": sigma_per_bar(bars)}


def lookback(name: str) -> int:
    return SIGMA_LOOKBACK if name == "sigma" else get_feature(name).lookback_bars(HOUR_MS)


def one_column(name: str, bars: Bars) -> NDArray[np.float64]:
    return sigma_per_bar(bars) if name == "sigma" else get_feature(name).compute(bars)


def assert_prefix(bars: Bars, stops: list[int]) -> None:
    whole = columns(bars)
    for stop in stops:
        for name, values in columns(bars.slice(0, stop)).items():
            np.testing.assert_allclose(values, whole[name][:stop], rtol=1e-12, atol=1e-12, err_msg=name)


def assert_suffix(bars: Bars, rng: np.random.Generator, draws: int) -> None:
    whole = columns(bars)
    for name, values in whole.items():
        length = lookback(name)
        scale = values[length - 1 :].std()
        for t in rng.integers(length - 1, len(bars), draws):
            alone = one_column(name, bars.slice(t - length + 1, t + 1))
            assert alone.shape == (length,)
            np.testing.assert_allclose(
                alone[-1], values[t], rtol=1e-9, atol=1e-9 * scale, err_msg=f"{name} at bar {t}"
            )


def with_another_future(bars: Bars, t: int, rng: np.random.Generator) -> Bars:
    """The same bars up to the close of t; every number that became known later is another."""
    last, mark, volume = bars.last.copy(), bars.mark.copy(), bars.volume.copy()
    later = len(bars) - t - 1
    last[t + 1 :] *= np.exp(rng.normal(size=(later, 1)))
    mark[t + 1 :] *= np.exp(rng.normal(size=(later, 1)))
    volume[t + 1 :] = rng.lognormal(5, 2, later)
    close = bars.close_time_ms[t]
    known = bars.stamp_time_ms <= close
    # other rates, at other times: every minute may settle
    times = close + np.sort(rng.choice(later * 60, 50, replace=False) + 1) * 60_000
    premium = None
    if bars.premium is not None:
        premium = np.append(bars.premium[: t + 1], rng.normal(0, 0.01, later))
    return replace(
        bars,
        last=last,
        mark=mark,
        volume=volume,
        premium=premium,
        stamp_time_ms=np.concatenate([bars.stamp_time_ms[known], times]),
        stamp_rate=np.concatenate([bars.stamp_rate[known], rng.normal(0, 0.01, 50)]),
    )


def assert_blind_to_the_future(bars: Bars, ts: list[int], rng: np.random.Generator) -> None:
    names = (*default_names("market"), *default_names("named"))
    tape = build_tape(bars, features=names, source="as it was")
    for t in ts:
        later = with_another_future(bars, t, rng)
        other = build_tape(later, features=names, source="as it might have been")
        seen = slice(0, t + 1)
        np.testing.assert_array_equal(other.features[seen], tape.features[seen])
        np.testing.assert_array_equal(other.risk[seen], tape.risk[seen])
        np.testing.assert_array_equal(other.sigma_per_bar[seen], tape.sigma_per_bar[seen])
        # the negative control: the next bar does change
        assert not np.array_equal(other.features[t + 1], tape.features[t + 1])
        assert not np.array_equal(other.risk[t + 1], tape.risk[t + 1])
        assert other.sigma_per_bar[t + 1] != tape.sigma_per_bar[t + 1]


def test_every_column_of_a_prefix_is_the_prefix_of_the_column(synthetic: Bars) -> None:
    assert_prefix(synthetic, [1, 2, 25, 400, 721, 960, 1_300])


def test_every_column_depends_on_its_look_back_alone(synthetic: Bars) -> None:
    assert_suffix(synthetic, np.random.default_rng(1), draws=40)


def test_a_look_back_declared_too_short_is_noticed(synthetic: Bars) -> None:
    honest = get_feature("log_return_24")
    short = replace(honest, lookback=honest.lookback - 1)
    alone = short.compute(synthetic.slice(500 - 23, 501))
    assert abs(alone[-1] - honest.compute(synthetic)[500]) > 1e-6


def test_no_column_changes_when_the_future_does(synthetic: Bars) -> None:
    assert_blind_to_the_future(synthetic, [720, 899, 960, 1_400], np.random.default_rng(2))


def test_every_column_is_finite_and_in_its_range_through_a_filled_gap(synthetic: Bars) -> None:
    for name, values in columns(synthetic).items():
        assert np.isfinite(values).all(), name
        if name != "sigma":
            assert values.min() >= get_feature(name).low, name
            assert values.max() <= get_feature(name).high, name


def test_columns_survive_a_market_that_never_moves_or_trades() -> None:
    bars = random_bars().slice(0, 800)
    dead = replace(
        bars,
        last=np.full((800, 4), 97.3),
        mark=np.full((800, 4), 97.3),
        volume=np.zeros(800),
        stamp_time_ms=bars.stamp_time_ms[:0],
        stamp_rate=bars.stamp_rate[:0],
    )
    values = columns(dead)
    assert all(np.isfinite(v).all() for v in values.values())
    for name in ("rsi_14", "macd_12_26", "macd_histogram_12_26_9", "bollinger_20", "vwap_distance_24"):
        np.testing.assert_allclose(values[name], 0.0, atol=1e-6, err_msg=name)
    assert (values["sigma"] == 1e-6).all()


def test_on_real_btc_every_column_depends_on_its_look_back_alone(btc: Bars) -> None:
    assert_suffix(btc, np.random.default_rng(3), draws=300)


def test_on_real_btc_every_column_of_a_prefix_is_the_prefix_of_the_column(btc: Bars) -> None:
    assert_prefix(btc, [1_000, 1_730, 30_000])


def test_on_real_btc_no_column_changes_when_the_future_does(btc: Bars) -> None:
    crash = int(np.searchsorted(btc.open_time_ms, np.datetime64("2020-03-12T10", "ms").astype(np.int64)))
    assert_blind_to_the_future(btc, [crash, 20_003, 40_007], np.random.default_rng(4))


@pytest.mark.parametrize("coin", ["BTC", "SOL"])
def test_real_columns_are_finite_and_almost_never_clipped(coin: str) -> None:
    bars = real_bars(coin)
    circle = {"hour_sin", "hour_cos", "weekday_sin", "weekday_cos", "time_to_settlement"}
    at_bound = {"market_drawdown_720", "volume_z_168"}  # a new high, an untraded bar
    for name in ALL_NAMES:
        column = get_feature(name)
        values = column.compute(bars)[lookback(name) - 1 :]
        assert np.isfinite(values.astype(np.float32)).all(), name
        if name not in circle | at_bound:
            assert np.mean((values <= column.low) | (values >= column.high)) < 0.01 or np.ptp(values) == 0, (
                name
            )


def test_the_crash_of_march_2020_shows_in_the_risk_columns(btc: Bars) -> None:
    tape = build_tape(btc, source="freqtrade")
    before, after = tape.bar_at("2020-03-11T00:00"), tape.bar_at("2020-03-13T12:00")
    risk = {name: tape.risk[:, 0, i] for i, name in enumerate(tape.risk_names)}
    assert risk["market_drawdown_720"][after] > 0.4
    assert risk["realised_vol_72"][after] > 3 * risk["realised_vol_72"][before]
    assert risk["vol_regime_720"][after] > 1.0
    assert (
        risk["unit_es_95_720"][after] > risk["unit_var_95_720"][after] > risk["unit_var_95_720"][before] > 0
    )


def test_on_sol_of_november_2022_the_time_to_settlement_follows_the_interval_in_force() -> None:
    bars = real_bars("SOL")
    gap_hours = np.diff(bars.stamp_time_ms) / HOUR_MS
    assert {8.0, 4.0, 2.0} <= set(gap_hours.tolist())
    first_short = int(np.argmax(gap_hours < 8))
    left = get_feature("time_to_settlement").compute(bars)
    # at the stamp before the first short gap nothing says that it will be short
    before = int(bars.stamp_bar()[first_short])
    shortened = bars.stamp_time_ms[first_short + 1] - bars.stamp_time_ms[first_short]
    hours = int(shortened // HOUR_MS)
    np.testing.assert_allclose(left[before : before + hours], 1 - np.arange(hours) / 8)
    # once it has settled, the new interval is in force
    np.testing.assert_allclose(left[before + hours : before + 2 * hours], 1 - np.arange(hours) / hours)
