"""How much is traded, and where: volume against its own past, and distance to the volume-weighted price."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, HIGH, LOW, Bars
from perpgym.data.features.registry import feature
from perpgym.data.features.windows import last_bars, mean_and_std

_STD_FLOOR = 1e-6  # log units


def traded_bars(bars: Bars, n: int) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Which bars traded, and, in the array of those alone, the bounds of each bar's last n bars.

    Filled bars have no volume and say nothing about liquidity, so statistics of volume leave them out.

    Returns:
        (T,) bool, and two (T,) int64 bounds into ``values[traded]``.
    """
    traded = bars.volume > 0
    before = np.concatenate([[0], np.cumsum(traded)])
    start, stop = last_bars(len(bars), n)
    return traded, before[start], before[stop]


@feature(
    name="volume_z_{n}",
    unit="standard deviations",
    lookback=lambda n: n,
    low=-5.0,
    high=5.0,
    source="definition; log of quote volume, bars without a trade left out of mean and deviation",
    over=(168,),
)
def volume_z(bars: Bars, n: int) -> NDArray[np.float64]:
    """Log quote volume against its mean and deviation over n bars; the lowest value where nothing traded."""
    traded, start, stop = traded_bars(bars, n)
    log_volume = np.log(bars.volume[traded] * bars.last[traded, CLOSE])
    mean, std = mean_and_std(log_volume, start, stop)
    z = np.full(len(bars), -5.0)
    z[traded] = (log_volume - mean[traded]) / np.maximum(std[traded], _STD_FLOOR)
    return z


@feature(
    name="vwap_distance_{n}",
    unit="log",
    lookback=lambda n: n,
    low=-1.0,
    high=1.0,
    source="definition; typical price (H + L + C) / 3 weighted by base volume",
    over=(24,),
)
def vwap_distance(bars: Bars, n: int) -> NDArray[np.float64]:
    """Log of the last close over the volume-weighted price of n bars; 0 where nothing traded in them."""
    typical = bars.last[:, [HIGH, LOW, CLOSE]].mean(axis=1)
    bounds = last_bars(len(bars), n)
    value, _ = mean_and_std(typical * bars.volume, *bounds)
    volume, _ = mean_and_std(bars.volume, *bounds)
    close = bars.last[:, CLOSE]
    vwap = np.divide(value, volume, out=close.copy(), where=volume > 0)
    return np.log(close / vwap)
