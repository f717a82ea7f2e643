"""Exogenous market risk: what one unit of long exposure can lose, how wild and how thin the market is."""

from __future__ import annotations

import math

import numpy as np
import talib
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, Bars
from perpgym.data.features.registry import feature
from perpgym.data.features.returns import one_bar_log_returns
from perpgym.data.features.volatility import SIGMA_FLOOR, root_mean_square_return
from perpgym.data.features.volume import traded_bars
from perpgym.data.features.windows import lowest_of_window, mean_and_std

TAIL = 0.05
REGIME_SHORT_BARS = 24
RISK_VOL_BARS = 72


def _tail_losses(bars: Bars, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    returns = np.expm1(one_bar_log_returns(bars))
    quantile, mean_beyond = lowest_of_window(returns, n, math.ceil(TAIL * n))
    return -quantile, -mean_beyond


@feature(
    name="unit_var_95_{n}",
    group="risk",
    unit="fraction of notional per bar",
    lookback=lambda n: n + 1,
    low=-0.1,
    high=1.0,
    source="historical simulation; McNeil, Frey and Embrechts (2015), section 9.2",
    over=(720,),
)
def unit_var(bars: Bars, n: int) -> NDArray[np.float64]:
    """One-bar loss of a unit long that 5 % of the last n bars reached or exceeded."""
    return _tail_losses(bars, n)[0]


@feature(
    name="unit_es_95_{n}",
    group="risk",
    unit="fraction of notional per bar",
    lookback=lambda n: n + 1,
    low=-0.1,
    high=1.0,
    source="historical simulation; McNeil, Frey and Embrechts (2015), section 9.2",
    over=(720,),
)
def unit_es(bars: Bars, n: int) -> NDArray[np.float64]:
    """Mean one-bar loss of a unit long in the worst 5 % of the last n bars."""
    return _tail_losses(bars, n)[1]


@feature(
    name=f"realised_vol_{RISK_VOL_BARS}",
    group="risk",
    unit="log per sqrt(bar)",
    lookback=RISK_VOL_BARS + 1,
    low=0.0,
    high=1.0,
    source="Andersen, Bollerslev, Diebold and Labys (2003)",
)
def risk_realised_vol(bars: Bars) -> NDArray[np.float64]:
    """Root mean square of the last 72 one-bar log returns."""
    return root_mean_square_return(bars, RISK_VOL_BARS)


@feature(
    name="vol_regime_{n}",
    group="risk",
    unit="log",
    lookback=lambda n: max(n, REGIME_SHORT_BARS) + 1,
    low=-5.0,
    high=5.0,
    source="definition",
    over=(720,),
)
def vol_regime(bars: Bars, n: int) -> NDArray[np.float64]:
    """Log of the realised volatility of 24 bars over that of n bars: > 0 is wilder than usual."""
    short = np.maximum(root_mean_square_return(bars, REGIME_SHORT_BARS), SIGMA_FLOOR)
    long = np.maximum(root_mean_square_return(bars, n), SIGMA_FLOOR)
    return np.log(short / long)


@feature(
    name="market_drawdown_{n}",
    group="risk",
    unit="fraction",
    lookback=lambda n: n,
    low=0.0,
    high=1.0,
    source="definition",
    over=(720,),
)
def market_drawdown(bars: Bars, n: int) -> NDArray[np.float64]:
    """How far the last close lies below the highest close of n bars."""
    close = np.ascontiguousarray(bars.last[:, CLOSE])
    highest = talib.MAX(close, timeperiod=n) if n > 1 else close
    return 1.0 - close / highest


@feature(
    name="amihud_{n}",
    group="risk",
    unit="log of return per million quote traded",
    lookback=lambda n: n + 1,
    low=-25.0,
    high=5.0,
    source="Amihud (2002), Illiquidity and stock returns; bars without a trade left out",
    over=(168,),
)
def amihud_illiquidity(bars: Bars, n: int) -> NDArray[np.float64]:
    """Log of the mean |return| per quote volume over n bars; the highest value where nothing traded."""
    traded, start, stop = traded_bars(bars, n)
    quote_volume = bars.volume[traded] * bars.last[traded, CLOSE]
    moved = np.abs(one_bar_log_returns(bars)[traded])
    mean, _ = mean_and_std(1e6 * moved / quote_volume, start, stop)
    return np.where(stop > start, np.log(np.maximum(mean, 1e-12)), 5.0)
