"""How much prices move: realised, Parkinson and true-range volatility, and the sigma of the impact model."""

from __future__ import annotations

import math

import numpy as np
import talib
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, HIGH, LOW, Bars
from perpgym.data.features.registry import feature
from perpgym.data.features.returns import one_bar_log_returns
from perpgym.data.features.windows import exponential_weights, last_bars, mean_and_std, weighted_window

SIGMA_BARS = 24
SIGMA_LOOKBACK = SIGMA_BARS + 1
SIGMA_FLOOR = 1e-6
ATR_WEIGHTS = exponential_weights(1 / 14)
# the first true range of a series needs a close before it
ATR_LOOKBACK = len(ATR_WEIGHTS) + 1


def root_mean_square_return(bars: Bars, n: int) -> NDArray[np.float64]:
    """(T,) float64 per bar: sqrt(mean r²) of the last n one-bar log returns; needs n + 1 bars."""
    mean, _ = mean_and_std(one_bar_log_returns(bars) ** 2, *last_bars(len(bars), n))
    return np.sqrt(mean)


def sigma_per_bar(bars: Bars) -> NDArray[np.float64]:
    """Volatility of a bar's log return as known at the close of that bar; the impact model's scale.

    sqrt(mean r²) of the last ``SIGMA_BARS`` one-bar log returns: the drift of an hour is noise beside its
    volatility, so none is subtracted. Depends on ``SIGMA_LOOKBACK`` bars.

    Args:
        bars: T bars.

    Returns:
        (T,) float64, log return per sqrt(bar), at least ``SIGMA_FLOOR`` (a flat or filled stretch must not
        make impact vanish or be divided by zero); ``SIGMA_FLOOR`` until the look-back is full.
    """
    sigma = np.maximum(root_mean_square_return(bars, SIGMA_BARS), SIGMA_FLOOR)
    sigma[: SIGMA_LOOKBACK - 1] = SIGMA_FLOOR
    return sigma


@feature(
    name="realised_vol_{n}",
    unit="log per sqrt(bar)",
    lookback=lambda n: n + 1,
    low=0.0,
    high=1.0,
    source="Andersen, Bollerslev, Diebold and Labys (2003)",
    over=(24, 168),
)
def realised_vol(bars: Bars, n: int) -> NDArray[np.float64]:
    """Root mean square of the last n one-bar log returns."""
    return root_mean_square_return(bars, n)


@feature(
    name="parkinson_vol_{n}",
    unit="log per sqrt(bar)",
    lookback=lambda n: n,
    low=0.0,
    high=1.0,
    source="Parkinson (1980), The extreme value method for estimating the variance of the rate of return",
    over=(24,),
)
def parkinson_vol(bars: Bars, n: int) -> NDArray[np.float64]:
    """Volatility from the high-low ranges of the last n bars: sqrt(mean ln(H/L)² / (4 ln 2))."""
    squared_range = np.log(bars.last[:, HIGH] / bars.last[:, LOW]) ** 2
    mean, _ = mean_and_std(squared_range, *last_bars(len(bars), n))
    return np.sqrt(mean / (4 * math.log(2)))


def average_true_range(bars: Bars) -> NDArray[np.float64]:
    """(T,) float64 quote: Wilder's mean of 14 true ranges, tiny weights cut; 0 before it is full."""
    true_range = talib.TRANGE(bars.last[:, HIGH], bars.last[:, LOW], bars.last[:, CLOSE])
    average = weighted_window(true_range, ATR_WEIGHTS)
    average[: ATR_LOOKBACK - 1] = 0.0
    return average


@feature(
    name="atr_14",
    unit="fraction of price",
    lookback=ATR_LOOKBACK,
    low=0.0,
    high=1.0,
    source="Wilder (1978), New Concepts in Technical Trading Systems; weights below 1e-12 cut",
)
def atr_14(bars: Bars) -> NDArray[np.float64]:
    """Average true range of 14 bars over the last close."""
    return average_true_range(bars) / bars.last[:, CLOSE]
