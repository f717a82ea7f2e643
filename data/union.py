"""Several contracts with different histories on one clock: where each stands, and what it is outside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, OPEN, Bars


def union_clock(contracts: Sequence[Bars]) -> NDArray[np.int64]:
    """(T,) int64 UTC: opening times from the first bar of any contract to the last bar of any.

    Raises:
        ValueError: bars differ in length, or open at times that no one grid holds.
    """
    first = contracts[0]
    for bars in contracts:
        if bars.bar_ms != first.bar_ms or (bars.open_time_ms[0] - first.open_time_ms[0]) % first.bar_ms:
            raise ValueError(
                f"{bars.contract.symbol} and {first.contract.symbol} must have bars of one length that open "
                f"at the same times of day, were of {bars.bar_ms} and {first.bar_ms} ms: load both with one "
                "timeframe"
            )
    start = min(int(bars.open_time_ms[0]) for bars in contracts)
    end = max(int(bars.open_time_ms[-1]) for bars in contracts)
    return np.arange(start, end + 1, first.bar_ms, dtype=np.int64)


def listing_bar(bars: Bars, clock: NDArray[np.int64]) -> int:
    """Index on the clock of the contract's first bar."""
    return int(bars.open_time_ms[0] - clock[0]) // bars.bar_ms


def until(bars: Bars, clock: NDArray[np.int64]) -> Bars:
    """The bars, carried on flat and without volume to the clock's end.

    What comes after a contract's last bar looks like a missing bar: at neither does anyone know whether
    another will come.
    """
    missing = int(clock[-1] - bars.open_time_ms[-1]) // bars.bar_ms
    if missing == 0:
        return bars
    return replace(
        bars,
        open_time_ms=clock[listing_bar(bars, clock) :],
        last=_carried(bars.last, missing),
        mark=_carried(bars.mark, missing),
        volume=np.concatenate([bars.volume, np.zeros(missing)]),
        premium=None if bars.premium is None else np.append(bars.premium, np.full(missing, np.nan)),
    )


def before_listing(prices: NDArray[np.float64], listing: int) -> NDArray[np.float64]:
    """(T_a, 4) prices of a contract -> (T, 4): flat at its first open before it is listed.

    Nobody can hold it there, and no column is computed from it; a price has to be finite and positive.
    """
    flat = np.full((listing, 4), prices[0, OPEN])
    return np.concatenate([flat, prices])


def _carried(prices: NDArray[np.float64], bars: int) -> NDArray[np.float64]:
    return np.concatenate([prices, np.full((bars, 4), prices[-1, CLOSE])])
