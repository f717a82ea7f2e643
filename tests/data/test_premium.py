"""The premium index and the settlement that it announces: by hand, and how it did on real markets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perpgym.data.align import align
from perpgym.data.bars import CLOSE, Bars
from perpgym.data.contract import HOUR_MS, Contract, load_contract
from perpgym.data.features import get_feature
from perpgym.data.features.build import build_tape
from perpgym.data.features.funding import WHOLE_SCALED_FROM_MS
from perpgym.data.sources.freqtrade import read_freqtrade
from perpgym.data.store import SeriesKey, Store

Frames = Callable[..., pd.DataFrame]
Folder = Callable[..., Path]
BTC = "BTC/USDT:USDT"
BP = 1e-4
MIDNIGHT_MS = 1_704_067_200_000  # 2024-01-01
predicted = get_feature("predicted_funding")


def bars_with(
    premium: list[float] | None, *, interval_hours: int = 8, cap: float = 0.03, start_ms: int = MIDNIGHT_MS
) -> Bars:
    """Two days of hourly bars, settled every interval at 7 bp; the last bars have the premium given."""
    count = 48
    series = np.full(count, 0.02)
    if premium is not None:
        series[count - len(premium) :] = premium
    newest = 48 - len(premium or [0])
    stamps = start_ms + np.arange(newest, 0, -interval_hours)[::-1] * HOUR_MS
    contract = Contract(symbol=BTC, funding_interval_ms=interval_hours * HOUR_MS, funding_cap=cap)
    return Bars(
        contract=contract,
        bar_ms=HOUR_MS,
        open_time_ms=start_ms + np.arange(count) * HOUR_MS,
        last=np.full((count, 4), 100.0),
        mark=np.full((count, 4), 100.0),
        volume=np.ones(count),
        stamp_time_ms=stamps,
        stamp_rate=np.full(stamps.size, 7 * BP),
        premium=None if premium is None else series,
    )


@pytest.mark.parametrize(
    ("premium_bp", "interval_hours", "rate_bp"),
    [
        # (1*10 + 2*20 + 3*30) / 6 = 23.33, interest pulls it down by its band of 5
        ([10, 20, 30], 8, 140 / 6 - 5),
        # inside the band the interest of 1 bp per 8 h is all there is, half of it in 4 h
        ([2, 2, 2], 8, 1.0),
        ([2, 2, 2], 4, 0.5),
        # below: -20 + 5
        ([-20, -20], 8, -15.0),
        # an hour without a premium weighs nothing: (1*10 + 3*30) / 4 = 25
        ([10, np.nan, 30], 8, 20.0),
        # beyond the contract's cap of 30 bp
        ([80], 8, 30.0),
    ],
)
def test_the_coming_rate_follows_the_exchanges_formula(
    premium_bp: list[float], interval_hours: int, rate_bp: float
) -> None:
    bars = bars_with([p * BP for p in premium_bp], interval_hours=interval_hours, cap=30 * BP)
    assert predicted.compute(bars)[-1] == pytest.approx(rate_bp * BP, abs=1e-15)


@pytest.mark.parametrize(
    ("premium_bp", "interval_hours", "hours_after", "rate_bp"),
    [
        # (100 + clamp(1 - 100)) / (8 / 4) = (100 - 5) / 2, the exchange's own example of 4 hours
        ([100], 4, 0, 47.5),
        ([100], 4, 24, 47.5),
        ([100], 8, 0, 95.0),
        # an interest of 1 bp, whatever the interval, and then a quarter of it
        ([2, 2], 2, 0, 0.25),
        # 1 bp lies inside 5 of -3.9, 0.5 bp did before: both rest at the interest
        ([-3.9], 4, 0, 0.5),
        # 1 - (-4.2) = 5.2 is more than 5: (-4.2 + 5) / 2; before, 0.5 + 4.2 is less
        ([-4.2], 4, 0, 0.4),
        ([-4.2], 4, -1, 0.5),
        # an hour before, only the interest shrinks with the interval
        ([100], 4, -1, 95.0),
    ],
)
def test_since_september_2025_the_whole_rate_shrinks_with_the_interval(
    premium_bp: list[float], interval_hours: int, hours_after: int, rate_bp: float
) -> None:
    newest_close = WHOLE_SCALED_FROM_MS + hours_after * HOUR_MS
    bars = bars_with(
        [p * BP for p in premium_bp], interval_hours=interval_hours, start_ms=newest_close - 48 * HOUR_MS
    )
    assert predicted.compute(bars)[-1] == pytest.approx(rate_bp * BP, abs=1e-15)


def test_real_settlements_every_two_hours_rested_at_a_quarter_of_the_interest(shared_data: Path) -> None:
    symbol = "SOL/USDT:USDT"
    stamps = read_freqtrade(shared_data / "freqtrade", symbol, "1h").funding
    assert stamps is not None
    gap_hours = stamps["time_ms"].diff() / HOUR_MS
    often = stamps.loc[gap_hours.eq(2), "rate"]
    assert often.value_counts().idxmax() == pytest.approx(0.25 * BP)


def test_without_a_premium_the_newest_settled_rate_stands_in() -> None:
    for bars in (bars_with(None), bars_with([np.nan, np.nan])):
        assert predicted.compute(bars)[-1] == pytest.approx(7 * BP)


def test_premium_klines_of_a_freqtrade_folder_reach_bars_store_and_tape(
    freqtrade_folder: Folder, klines: Frames, tmp_path: Path
) -> None:
    root = freqtrade_folder()
    frame = klines()
    date = pd.to_datetime(frame["time_ms"], unit="ms", utc=True)
    premium = np.linspace(-1e-3, 1e-3, len(frame))
    premium[5] = 3.0  # a broken record
    others = {"open": 0.0, "high": 1.0, "low": -1.0, "volume": 0.0}
    table = pd.DataFrame({"date": date, "close": premium, **others})
    table.drop(index=7).to_feather(root / "binance" / "futures" / "BTC_USDT_USDT-1h-premiumIndex.feather")
    raw = read_freqtrade(root, BTC)
    aligned = align(raw, load_contract(BTC))
    assert aligned.bars.premium is not None
    known = np.isfinite(aligned.bars.premium)
    assert np.flatnonzero(~known).tolist() == [5, 7]
    np.testing.assert_array_equal(aligned.bars.premium[known], premium[known])
    assert [f.rule for f in aligned.findings if f.series == "premium"] == ["premium_gaps"]
    cut = aligned.bars.slice(10, 20)
    np.testing.assert_array_equal(cut.premium, premium[10:20])
    store = Store(tmp_path / "store")
    key = SeriesKey(exchange="binance", symbol=BTC, kind="premium", timeframe="1h")
    assert raw.premium is not None
    store.append(key, raw.premium)
    pd.testing.assert_frame_equal(store.read(key), raw.premium)


def test_a_contract_that_ends_early_has_an_unknown_premium_from_there_on() -> None:
    whole = bars_with([1 * BP])
    early = replace(whole.slice(0, 40), contract=Contract(symbol="ETH/USDT:USDT"))
    names = ["predicted_funding"]
    tape = build_tape([whole, early], features=names, risk=["funding_pressure"][:0], source="test")
    assert np.isfinite(tape.features).all()


def test_a_spot_index_tells_real_settlements_better_than_the_last_one_does(shared_data: Path) -> None:
    """Spot stands in for the index that the folder lacks, so this is a bound from below."""
    for coin in ("BTC", "ETH"):
        symbol = f"{coin}/USDT:USDT"
        bars = align(read_freqtrade(shared_data / "freqtrade", symbol, "1h"), load_contract(symbol)).bars
        spot = pd.read_feather(shared_data / "freqtrade" / "binance" / f"{coin}_USDT-1h.feather")
        closes = spot.set_index(pd.DatetimeIndex(spot["date"]).as_unit("ms").asi8)["close"]
        premium = bars.last[:, CLOSE] / closes.reindex(bars.open_time_ms).to_numpy() - 1.0
        forecast = predicted.compute(replace(bars, premium=premium))
        owner = bars.stamp_bar()
        late = np.flatnonzero(owner > 24)
        settled, before = bars.stamp_rate[late], bars.stamp_rate[late - 1]
        an_hour_before = forecast[owner[late] - 1]
        error = np.abs(an_hour_before - settled).mean()
        assert error < 0.65 * np.abs(before - settled).mean()
        assert np.corrcoef(an_hour_before, settled)[0, 1] > np.corrcoef(before, settled)[0, 1] + 0.04
