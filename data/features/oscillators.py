"""Momentum against its own recent range: RSI, MACD, Bollinger position.

TA-Lib computes the same numbers with endless memory (RSI, MACD) or with running sums (BBANDS); here the
memory is finite. The tests compare the two beyond the warm-up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, Bars
from perpgym.data.features.registry import feature
from perpgym.data.features.volatility import ATR_LOOKBACK, average_true_range
from perpgym.data.features.windows import exponential_weights, last_bars, mean_and_std, weighted_window

WILDER_14 = exponential_weights(1 / 14)
EMA_12, EMA_26, EMA_9 = (exponential_weights(2 / (n + 1)) for n in (12, 26, 9))

# below a hundredth of a basis point of the price there is no movement to measure against
_FLAT = 1e-6


@feature(
    name="rsi_14",
    unit="from -1 (only falls) to 1 (only rises)",
    lookback=len(WILDER_14) + 1,
    low=-1.0,
    high=1.0,
    source="Wilder (1978), (RSI - 50) / 50; weights below 1e-12 cut",
)
def rsi_14(bars: Bars) -> NDArray[np.float64]:
    """Relative strength index of 14 bars, centred; 0 where the price has not moved at all."""
    change = np.diff(bars.last[:, CLOSE], prepend=bars.last[:1, CLOSE])
    rises = weighted_window(np.maximum(change, 0.0), WILDER_14)
    falls = weighted_window(np.maximum(-change, 0.0), WILDER_14)
    moved = rises + falls
    return np.divide(rises - falls, moved, out=np.zeros_like(moved), where=moved > 0)


def _macd_line(bars: Bars) -> NDArray[np.float64]:
    close = np.ascontiguousarray(bars.last[:, CLOSE])
    return weighted_window(close, EMA_12) - weighted_window(close, EMA_26)


def _in_true_ranges(value: NDArray[np.float64], bars: Bars) -> NDArray[np.float64]:
    return value / np.maximum(average_true_range(bars), _FLAT * bars.last[:, CLOSE])


@feature(
    name="macd_12_26",
    unit="average true range",
    lookback=max(len(EMA_26), ATR_LOOKBACK),
    low=-20.0,
    high=20.0,
    source="Appel (1979), over ATR 14; weights below 1e-12 cut",
)
def macd_12_26(bars: Bars) -> NDArray[np.float64]:
    """EMA of 12 closes minus EMA of 26, over the average true range."""
    return _in_true_ranges(_macd_line(bars), bars)


@feature(
    name="macd_histogram_12_26_9",
    unit="average true range",
    lookback=max(len(EMA_26) + len(EMA_9) - 1, ATR_LOOKBACK),
    low=-10.0,
    high=10.0,
    source="Appel (1979), over ATR 14; weights below 1e-12 cut",
)
def macd_histogram(bars: Bars) -> NDArray[np.float64]:
    """MACD line minus its EMA of 9 bars, over the average true range."""
    line = _macd_line(bars)
    return _in_true_ranges(line - weighted_window(line, EMA_9), bars)


@feature(
    name="bollinger_{n}",
    unit="two standard deviations",
    lookback=lambda n: n,
    low=-5.0,
    high=5.0,
    source="Bollinger (2001), bands of two population standard deviations",
    over=(20,),
)
def bollinger_position(bars: Bars, n: int) -> NDArray[np.float64]:
    """Last close minus the mean of n closes, over twice their standard deviation: ±1 is on a band."""
    close = np.ascontiguousarray(bars.last[:, CLOSE])
    mean, std = mean_and_std(close, *last_bars(len(bars), n))
    return np.asarray((close - mean) / (2 * np.maximum(std, _FLAT * close)))
