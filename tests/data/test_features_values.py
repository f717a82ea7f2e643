"""What the columns are worth: numbers worked by hand, and TA-Lib beyond the warm-up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import talib
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, HIGH, LOW, Bars
from perpgym.data.contract import HOUR_MS, Contract
from perpgym.data.features import get_feature, sigma_per_bar
from perpgym.data.features.volatility import average_true_range
from perpgym.data.features.windows import (
    exponential_weights,
    last_bars,
    lowest_of_window,
    mean_and_std,
    weighted_window,
)

MONDAY_MS = 1_577_836_800_000 + 5 * 24 * HOUR_MS  # 2020-01-06 00:00 UTC


def bars_of(
    close: NDArray[np.float64],
    *,
    volume: NDArray[np.float64] | None = None,
    mark_over_last: float = 1.0,
    stamps: dict[int, float] | None = None,
    usual_interval_hours: int = 8,
) -> Bars:
    """Flat-bodied hourly bars from Monday 00:00 UTC; stamps by hours after the first open."""
    last = np.repeat(np.asarray(close, dtype=np.float64)[:, None], 4, axis=1)
    stamps = {} if stamps is None else stamps
    return Bars(
        contract=Contract(symbol="TEST/USDT:USDT", funding_interval_ms=usual_interval_hours * HOUR_MS),
        bar_ms=HOUR_MS,
        open_time_ms=MONDAY_MS + np.arange(len(last)) * HOUR_MS,
        last=last,
        mark=last * mark_over_last,
        volume=np.ones(len(last)) if volume is None else volume,
        stamp_time_ms=MONDAY_MS + np.array(list(stamps), dtype=np.int64) * HOUR_MS,
        stamp_rate=np.array(list(stamps.values()), dtype=np.float64),
    )


@pytest.fixture(scope="module")
def walk() -> Bars:
    rng = np.random.default_rng(5)
    close = 30_000 * np.exp(rng.normal(0, 0.01, 3_000).cumsum())
    bars = bars_of(close)
    last = bars.last.copy()
    last[:, HIGH] *= np.exp(np.abs(rng.normal(0, 0.005, 3_000)))
    last[:, LOW] *= np.exp(-np.abs(rng.normal(0, 0.005, 3_000)))
    return replace(bars, last=last)


def value(name: str, bars: Bars) -> NDArray[np.float64]:
    return get_feature(name).compute(bars)


def test_a_doubling_over_four_bars_is_a_log_return_of_log_two() -> None:
    returns = value("log_return_4", bars_of(np.array([1.0, 5.0, 5.0, 5.0, 2.0])))
    np.testing.assert_allclose(returns, [0, 0, 0, 0, math.log(2)])


def test_the_basis_is_positive_where_the_last_price_is_above_the_mark() -> None:
    np.testing.assert_allclose(value("basis", bars_of(np.ones(3), mark_over_last=0.99)), -math.log(0.99))


def test_alternating_returns_of_one_percent_have_one_percent_volatility() -> None:
    bars = bars_of(np.exp(0.01 * (np.arange(200) % 2)))
    np.testing.assert_allclose(value("realised_vol_24", bars)[24:], 0.01)
    np.testing.assert_allclose(sigma_per_bar(bars)[24:], 0.01)
    assert (sigma_per_bar(bars)[:24] == 1e-6).all()


def test_parkinson_volatility_of_a_constant_range_is_the_range_over_two_root_log_two() -> None:
    bars = bars_of(np.ones(30))
    last = bars.last.copy()
    last[:, HIGH] = math.exp(0.02)
    volatility = value("parkinson_vol_24", replace(bars, last=last))
    np.testing.assert_allclose(volatility[23:], 0.02 / (2 * math.sqrt(math.log(2))))


def test_vwap_weighs_prices_by_volume() -> None:
    close, volume = np.array([1.0] * 23 + [4.0]), np.array([0.0] * 22 + [2.0, 1.0])
    # (2 * 1 + 1 * 4) / 3 = 2; log(4 / 2)
    assert value("vwap_distance_24", bars_of(close, volume=volume))[-1] == pytest.approx(math.log(2))


def test_volume_z_leaves_untraded_bars_out_of_the_mean() -> None:
    volume = np.exp(np.tile([1.0, 3.0], 100))
    volume[150:160] = 0.0
    z = value("volume_z_168", bars_of(np.ones(200), volume=volume))
    np.testing.assert_allclose(z[[168, 169]], [-1, 1], atol=0.01)
    assert (value("volume_z_20", bars_of(np.ones(200), volume=volume))[150:160] == -5).all()


def test_var_is_the_loss_that_five_percent_of_bars_reach_and_es_the_mean_beyond_it() -> None:
    losses = np.arange(1, 101) / 1_000
    order = np.random.default_rng(6).permutation(100)
    bars = bars_of(np.concatenate([[1.0], np.cumprod(1 - losses[order])]))
    # the five worst of a hundred bars: 9.6, 9.7, 9.8, 9.9 and 10 %
    assert value("unit_var_95_100", bars)[-1] == pytest.approx(0.096)
    assert value("unit_es_95_100", bars)[-1] == pytest.approx(0.098)


def test_market_drawdown_forgets_a_high_that_left_its_window() -> None:
    bars = bars_of(np.array([10.0, 5.0, 4.0, 4.0, 4.0]))
    np.testing.assert_allclose(value("market_drawdown_3", bars), [0, 0, 0.6, 0.2, 0.0])


def test_the_volatility_regime_is_positive_when_the_last_day_is_wilder() -> None:
    returns = np.where(np.arange(300) < 270, 0.001, 0.01) * np.where(np.arange(300) % 2, 1, -1)
    regime = value("vol_regime_100", bars_of(np.exp(returns.cumsum())))
    assert regime[250] == pytest.approx(0.0, abs=1e-9)
    assert regime[-1] > 0.5


def test_amihud_falls_by_log_two_when_volume_doubles() -> None:
    close = np.exp(0.01 * (np.arange(200) % 2))
    thin = value("amihud_168", bars_of(close, volume=np.full(200, 1e6)))
    thick = value("amihud_168", bars_of(close, volume=np.full(200, 2e6)))
    np.testing.assert_allclose(thin[168:] - thick[168:], math.log(2))
    assert (value("amihud_168", bars_of(close, volume=np.zeros(200)))[168:] == 5.0).all()


def test_monday_midnight_is_the_origin_of_both_circles() -> None:
    bars = bars_of(np.ones(169))
    last_of_week = 167  # closes on the next Monday 00:00
    assert value("hour_cos", bars)[[23, last_of_week]] == pytest.approx([1, 1])
    assert value("weekday_cos", bars)[last_of_week] == pytest.approx(1)
    assert value("hour_sin", bars)[5] == pytest.approx(1)  # closes at 06:00
    assert value("weekday_sin", bars)[41] == pytest.approx(1)  # a quarter of a week is Tuesday 18:00


def test_a_rate_is_known_from_the_close_that_is_its_stamp() -> None:
    rate = value("funding_rate", bars_of(np.ones(80), stamps={32: 0.001, 40: -0.002}))
    # the bar that opens at hour 31 closes at hour 32 and owns that stamp; a day without stamps forgets
    np.testing.assert_allclose(rate[[30, 31, 38, 39, 62, 63]], [0, 0.001, 0.001, -0.002, -0.002, 0])


def test_funding_z_of_a_rate_that_never_changed_is_zero() -> None:
    stamps = {8 * i: 1e-4 for i in range(1, 100)}
    assert np.abs(value("funding_z", bars_of(np.ones(800), stamps=stamps))).max() < 1e-9
    stamps[99 * 8] = 3e-4  # 20 times the floor of the deviation above the rest
    assert value("funding_z", bars_of(np.ones(800), stamps=stamps))[791] > 5


def test_one_basis_point_every_eight_hours_is_eleven_percent_a_year() -> None:
    stamps = {8 * i: 1e-4 for i in range(100)}
    pressure = value("funding_pressure", bars_of(np.ones(400), stamps=stamps))
    np.testing.assert_allclose(pressure[200:], 3 * 365 * 1e-4)


def test_time_to_settlement_knows_an_interval_only_from_its_stamps() -> None:
    stamps = dict.fromkeys([8, 16, 24, 32, 36, 40, 42, 44, 52], 0.0)  # 8 h -> 4 h -> 2 h -> 8 h
    left = value("time_to_settlement", bars_of(np.ones(60), stamps=stamps))
    at_hour = {hour: left[hour - 1] for hour in range(25, 61)}  # bar t closes at hour t + 1
    assert [at_hour[h] for h in (32, 33, 35)] == [1, 7 / 8, 5 / 8]  # the old interval still counts
    assert [at_hour[h] for h in (36, 37, 39, 40)] == [1, 3 / 4, 1 / 4, 1]
    assert [at_hour[h] for h in (41, 42, 43, 44)] == [3 / 4, 1, 1 / 2, 1]
    assert [at_hour[h] for h in (46, 47, 51)] == [0, 0, 0]  # overdue
    assert [at_hour[h] for h in (52, 53)] == [1, 7 / 8]


def test_moving_the_next_stamp_changes_nothing_before_it() -> None:
    known = dict.fromkeys([8, 16, 24, 32], 1e-4)
    early = bars_of(np.ones(60), stamps=known | {36: 5e-4, 44: 5e-4})
    late = bars_of(np.ones(60), stamps=known | {40: -5e-4, 48: 5e-4})
    for name in ("time_to_settlement", "funding_rate"):
        before, after = value(name, early), value(name, late)
        np.testing.assert_array_equal(before[:35], after[:35])
        assert before[35] != after[35]


def test_a_missing_stamp_is_not_taken_for_a_sixteen_hour_interval() -> None:
    left = value("time_to_settlement", bars_of(np.ones(60), stamps=dict.fromkeys([8, 16, 32], 0.0)))
    np.testing.assert_allclose(left[[31, 32]], [1, 7 / 8])


def test_one_known_stamp_takes_the_contracts_own_interval() -> None:
    left = value("time_to_settlement", bars_of(np.ones(60), stamps={32: 0.0}, usual_interval_hours=4))
    np.testing.assert_allclose(left[[30, 31, 32]], [1, 1, 3 / 4])


def test_rsi_agrees_with_talib_beyond_the_warm_up(walk: Bars) -> None:
    ours = value("rsi_14", walk)[800:] * 50 + 50
    np.testing.assert_allclose(ours, talib.RSI(walk.last[:, CLOSE], 14)[800:], rtol=1e-8)


def test_macd_agrees_with_talib_beyond_the_warm_up(walk: Bars) -> None:
    line, _, histogram = talib.MACD(walk.last[:, CLOSE], 12, 26, 9)
    true_range = average_true_range(walk)
    np.testing.assert_allclose((value("macd_12_26", walk) * true_range)[800:], line[800:], atol=1e-5)
    ours = value("macd_histogram_12_26_9", walk) * true_range
    np.testing.assert_allclose(ours[800:], histogram[800:], atol=1e-5)


def test_atr_agrees_with_talib_beyond_the_warm_up(walk: Bars) -> None:
    theirs = talib.ATR(walk.last[:, HIGH], walk.last[:, LOW], walk.last[:, CLOSE], 14)
    np.testing.assert_allclose(average_true_range(walk)[800:], theirs[800:], rtol=1e-9)
    np.testing.assert_allclose(value("atr_14", walk)[800:], theirs[800:] / walk.last[800:, CLOSE], rtol=1e-9)


def test_the_bollinger_position_agrees_with_talib(walk: Bars) -> None:
    upper, middle, _ = talib.BBANDS(walk.last[:, CLOSE], 20, 2, 2)
    theirs = (walk.last[:, CLOSE] - middle) / (upper - middle)
    np.testing.assert_allclose(value("bollinger_20", walk)[19:], theirs[19:], atol=1e-5)


def test_truncated_weights_sum_to_one_and_drop_only_what_is_negligible() -> None:
    weights = exponential_weights(1 / 14)
    assert weights.sum() == pytest.approx(1, abs=1e-15)
    assert weights[-1] / weights[0] >= 1e-12 > weights[-1] / weights[0] * (1 - 1 / 14)


def test_compiled_windows_equal_their_plain_python() -> None:
    values = np.random.default_rng(7).normal(size=200).round(1)  # with ties
    bounds = last_bars(200, 17)
    weights = exponential_weights(0.5)
    np.testing.assert_array_equal(weighted_window(values, weights), weighted_window.py_func(values, weights))
    for ours, plain in (
        (mean_and_std(values, *bounds), mean_and_std.py_func(values, *bounds)),
        (lowest_of_window(values, 17, 3), lowest_of_window.py_func(values, 17, 3)),
    ):
        np.testing.assert_allclose(ours, plain, rtol=1e-15)
    views = np.lib.stride_tricks.sliding_window_view(values, 17)
    kth, mean = lowest_of_window(values, 17, 3)
    np.testing.assert_array_equal(kth[16:], np.sort(views, axis=1)[:, 2])
    np.testing.assert_allclose(mean[16:], np.sort(views, axis=1)[:, :3].mean(axis=1))
    np.testing.assert_allclose(mean_and_std(values, *bounds)[1][16:], views.std(axis=1))
