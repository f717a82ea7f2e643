"""Returns over several horizons, and the basis of the traded to the mark price."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, Bars
from perpgym.data.features.registry import feature


def one_bar_log_returns(bars: Bars) -> NDArray[np.float64]:
    """(T,) float64, log of a close over the close before; 0 at the first bar, which has none before."""
    returns = np.zeros(len(bars))
    returns[1:] = np.diff(np.log(bars.last[:, CLOSE]))
    return returns


@feature(
    name="log_return_{n}",
    unit="log",
    lookback=lambda n: n + 1,
    low=-3.0,
    high=3.0,
    source="definition",
    over=(1, 4, 24, 168),
)
def log_return(bars: Bars, n: int) -> NDArray[np.float64]:
    """Log of the last close over the close n bars ago."""
    log_close = np.log(bars.last[:, CLOSE])
    returns = np.zeros(len(bars))
    returns[n:] = log_close[n:] - log_close[:-n]
    return returns


@feature(name="basis", unit="log", low=-0.5, high=0.5, source="definition")
def basis(bars: Bars) -> NDArray[np.float64]:
    """Log of the last close over the mark close; 0 throughout where the mark is a copy of the last price."""
    return np.log(bars.last[:, CLOSE] / bars.mark[:, CLOSE])
