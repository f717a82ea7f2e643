"""Finer bars have to make the bars that they lie in: nothing is filled on prices of another market."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perpgym.data.bars import CLOSE, Bars
from perpgym.data.contract import HOUR_MS
from perpgym.data.features.build import build_tape
from perpgym.data.load import DataConfig, load_bars
from perpgym.data.tape import Tape
from perpgym.envs.finer import Finer

QUARTER_MS = HOUR_MS // 4
MakeTape = Callable[..., Tape]


@pytest.fixture(scope="module")
def tape(make_tape: MakeTape) -> Tape:
    return make_tape(bars=24, sigma=0.01, mark_basis=0.002)


def quarters(tape: Tape) -> Bars:
    """Each hour's range in its first quarter, its close in the others."""

    def inside(prices: np.ndarray) -> np.ndarray:
        close = np.repeat(prices[:, [CLOSE]], 4, axis=1)
        return np.stack([prices, close, close, close], axis=1).reshape(-1, 4)

    return Bars(
        contract=tape.contracts[0],
        bar_ms=QUARTER_MS,
        open_time_ms=tape.open_time_ms[0] + QUARTER_MS * np.arange(4 * len(tape)),
        last=inside(tape.last[:, 0]),
        mark=inside(tape.mark[:, 0]),
        volume=np.ones(4 * len(tape)),
        stamp_time_ms=np.empty(0, np.int64),
        stamp_rate=np.empty(0),
    )


def test_bars_that_make_the_tapes_bars_are_taken(tape: Tape) -> None:
    finer = Finer.of(tape, quarters(tape))
    assert (finer.start_bar, finer.end_bar, finer.per_bar) == (0, 24, 4)


@pytest.mark.parametrize("series", ["last", "mark"])
def test_prices_of_another_scale_are_refused_by_contract_bar_and_rule(tape: Tape, series: str) -> None:
    bars = quarters(tape)
    foreign = replace(bars, **{series: 1_000.0 * getattr(bars, series)})
    message = (
        r"TEST/USDT:USDT: at the bar that opens at 2020-01-01 00:00 \(and 23 more bars\) finer bars must "
        rf"make its {series} open, high, low and close, .* \(to 1 bp\), was .*; give finer bars of the same"
    )
    with pytest.raises(ValueError, match=message):
        Finer.of(tape, foreign)


@pytest.mark.parametrize("column", range(4))
def test_one_price_of_one_bar_that_is_two_basis_points_off_is_found(tape: Tape, column: int) -> None:
    bars = quarters(tape)
    last = bars.last.copy()
    last[4 * 7 if column < CLOSE else 4 * 7 + 3, column] *= 1.0 + 2e-4 * (-1.0 if column == 2 else 1.0)
    last[:, 1], last[:, 2] = last.max(axis=1), last.min(axis=1)
    with pytest.raises(ValueError, match=r"at the bar that opens at 2020-01-01 07:00 .*last"):
        Finer.of(tape, replace(bars, last=last))


def test_half_a_basis_point_is_rounding(tape: Tape) -> None:
    bars = quarters(tape)
    Finer.of(tape, replace(bars, last=bars.last * (1.0 + 5e-5)))


def test_a_quarter_without_a_trade_may_be_a_missing_one(tape: Tape) -> None:
    bars = quarters(tape)
    last, volume = bars.last.copy(), bars.volume.copy()
    # the quarter that held the hour's range is missing, and filled flat
    volume[4 * 7], last[4 * 7] = 0.0, last[4 * 7 - 1, CLOSE]
    Finer.of(tape, replace(bars, last=last, volume=volume))
    # what did trade lies beyond the hour
    last[4 * 7 + 1] *= 1.1
    with pytest.raises(ValueError, match="at the bar that opens at 2020-01-01 07:00"):
        Finer.of(tape, replace(bars, last=last, volume=volume))


def test_a_copy_of_the_last_price_need_not_make_the_exchanges_mark(tape: Tape) -> None:
    bars = quarters(tape)
    Finer.of(tape, replace(bars, mark=bars.last, mark_rule="last"))
    with pytest.raises(ValueError, match="make its mark open"):
        Finer.of(tape, replace(bars, mark=bars.last))


def test_an_hour_in_which_the_tape_did_not_trade_is_not_compared(tape: Tape) -> None:
    volume, bars = tape.volume.copy(), quarters(tape)
    volume[7] = 0.0
    last = bars.last.copy()
    last[28:32] *= 2.0
    Finer.of(replace(tape, volume=volume), replace(bars, last=last))


@pytest.mark.parametrize("asset", ["BTC", "SOL"])
def test_real_minutes_make_real_hours_and_spot_does_not_make_perpetual_hours(
    shared_data: Path, asset: str
) -> None:
    def load(folder: str, timeframe: str, start: str, end: str) -> Bars:
        symbol = f"{asset}/USDT:USDT"
        path = str(shared_data / folder)
        config = DataConfig(
            source="freqtrade", path=path, symbol=symbol, timeframe=timeframe, start=start, end=end
        )
        return load_bars(config).bars

    names = {"features": ["log_return_1"], "risk": ["realised_vol_24"]}
    hours = load("freqtrade", "1h", "2025-05-01", "2025-06-03T00:00")
    tape = build_tape(hours, source="test", **names)  # type: ignore[arg-type]
    minutes = load("freqtrade_1m", "1m", "2025-05-05", "2025-06-03T00:00")
    finer = Finer.of(tape, minutes)
    assert finer.per_bar == 60
    assert finer.end_bar - finer.start_bar == 29 * 24
    if asset == "BTC":
        frame = pd.read_feather(shared_data / "freqtrade" / "binance" / "BTC_USDT-1h.feather")
        spot = frame.set_index(frame["date"].dt.as_unit("ms").astype("int64"))
        rows = spot.reindex(hours.open_time_ms)[["open", "high", "low", "close"]].to_numpy(float)
        with pytest.raises(ValueError, match="must make its last open"):
            Finer.of(tape, replace(hours, last=rows))
