"""What funding says at a close: its level, its rarity, the time to the next settlement, its pressure.

A rate is known from its stamp on, never earlier. Settlements happen by the clock, so memories are wall-clock
spans and not numbers of bars; a stamp that is older than the memory is forgotten.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.contract import HOUR_MS
from perpgym.data.features.registry import bars_in, feature
from perpgym.data.features.windows import mean_and_std

DAY_MS = 24 * HOUR_MS
YEAR_MS = 365 * DAY_MS
LEVEL_MEMORY_MS = DAY_MS
Z_MEMORY_MS = 30 * DAY_MS
PRESSURE_MEMORY_MS = 7 * DAY_MS
# no exchange that we know settles less often; a longer gap between stamps is missing data, not an interval
LONGEST_INTERVAL_MS = 8 * HOUR_MS

# Binance's constants: interest, and the band around it in which the premium does not show
INTEREST_PER_8H = 1e-4
INTEREST_BAND = 5e-4
# Binance, "Important Updates on Funding Rate Formula and Mark Price Calculation of Futures Contracts",
# 2025-09-16: settlements after 2025-09-18 08:01 UTC divide premium and band by 8 h / interval too
WHOLE_SCALED_FROM_MS = 1_758_182_400_000  # 2025-09-18 08:00: what closes then sees the first such settlement

_RATE_STD_FLOOR = 1e-5  # fraction per settlement: rates often rest at exactly 1 bp for weeks


def known_stamps(bars: Bars, memory_ms: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bounds, in the stamp arrays, of what is remembered at the close of each bar.

    Args:
        bars: T bars; stamps that no bar owns are never inside the bounds.
        memory_ms: span that is remembered, rounded up to whole bars.

    Returns:
        Two (T,) int64: at bar t the stamps ``start[t]:stop[t]`` are known and remembered.
    """
    owner = bars.stamp_bar()
    newest = np.arange(len(bars))
    oldest = np.maximum(newest - bars_in(memory_ms, bars.bar_ms) + 1, 0)
    start = np.searchsorted(owner, oldest, side="left")
    stop = np.searchsorted(owner, newest, side="right")
    return start.astype(np.int64), stop.astype(np.int64)


def _newest(values: NDArray[np.float64], stop: NDArray[np.int64]) -> NDArray[np.float64]:
    # index -1 of a bar that knows no stamp reads the dummy; the caller masks it
    return np.append(values, 0.0)[stop - 1]


@feature(
    name="funding_rate",
    unit="fraction of notional per settlement",
    memory_ms=LEVEL_MEMORY_MS,
    low=-0.05,
    high=0.05,
    source="definition",
)
def funding_rate(bars: Bars) -> NDArray[np.float64]:
    """The newest settled rate; 0 if the last day has none."""
    start, stop = known_stamps(bars, LEVEL_MEMORY_MS)
    return np.where(stop > start, _newest(bars.stamp_rate, stop), 0.0)


@feature(
    name="funding_z",
    unit="standard deviations",
    memory_ms=Z_MEMORY_MS,
    low=-10.0,
    high=10.0,
    source="definition; deviation at least 0.1 bp",
)
def funding_z(bars: Bars) -> NDArray[np.float64]:
    """The newest rate against mean and deviation of the settlements of 30 days."""
    start, stop = known_stamps(bars, Z_MEMORY_MS)
    mean, std = mean_and_std(bars.stamp_rate, start, stop)
    z = (_newest(bars.stamp_rate, stop) - mean) / np.maximum(std, _RATE_STD_FLOOR)
    return np.where(stop > start, z, 0.0)


@feature(
    name="time_to_settlement",
    unit="fraction of the interval in force",
    memory_ms=LEVEL_MEMORY_MS,
    low=0.0,
    high=1.0,
    source="definition; the next settlement is the newest stamp plus the gap between the newest two",
)
def time_to_settlement(bars: Bars) -> NDArray[np.float64]:
    """Share of the funding interval that is left; 1 just after a settlement, 0 when one is due or overdue.

    The interval in force is the gap between the two newest stamps (at most ``LONGEST_INTERVAL_MS`` or the
    contract's own), the contract's if only one is known: an announced change shows when it first settles.
    """
    start, stop = known_stamps(bars, LEVEL_MEMORY_MS)
    interval = _interval_in_force(bars, start, stop)
    elapsed = bars.close_time_ms - _newest(bars.stamp_time_ms.astype(np.float64), stop)
    return np.where(stop > start, 1.0 - elapsed / interval, 1.0)


def _interval_in_force(bars: Bars, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.float64]:
    """(T,) milliseconds between the two newest stamps known, the contract's if only one is."""
    usual = bars.contract.funding_interval_ms
    gap = np.diff(bars.stamp_time_ms.astype(np.float64), prepend=-np.inf)
    gap = np.minimum(gap, max(usual, LONGEST_INTERVAL_MS))
    return np.where(stop - start >= 2, _newest(gap, stop), float(usual))


@feature(
    name="predicted_funding",
    group="named",
    unit="fraction of notional per settlement",
    memory_ms=LEVEL_MEMORY_MS,
    low=-0.05,
    high=0.05,
    source="Binance, Introduction to Binance Futures Funding Rates: (P + clamp(I - P, -5 bp, 5 bp)) / (8 h / "
    "interval), capped; before 2025-09-18 08:01 UTC undivided with I / (8 h / interval)",
)
def predicted_funding(bars: Bars) -> NDArray[np.float64]:
    """The coming settlement's rate as the exchange would show it now; the newest settled one without premium.

    P is the premium index of the interval so far, later bars weighing more (1, 2, 3, ...); I is 1 bp per 8 h.
    Until September 2025 only I shrank with the interval: SOL's settlements every 2 h in November 2022 rest at
    0.25 bp.
    """
    start, stop = known_stamps(bars, LEVEL_MEMORY_MS)
    settled = np.where(stop > start, _newest(bars.stamp_rate, stop), 0.0)
    if bars.premium is None:
        return settled
    owner = _newest(bars.stamp_bar().astype(np.float64), stop).astype(np.int64)
    # right after a settlement the newest bar says most about the interval that begins
    first = np.minimum(owner + 1, np.arange(len(bars)))
    premium = _rising_mean(bars.premium, np.where(stop > start, first, np.arange(len(bars))))
    share = _interval_in_force(bars, start, stop) / (8 * HOUR_MS)
    is_scaled = bars.close_time_ms >= WHOLE_SCALED_FROM_MS
    interest = INTEREST_PER_8H * np.where(is_scaled, 1.0, share)
    rate = premium + np.clip(interest - premium, -INTEREST_BAND, INTEREST_BAND)
    rate *= np.where(is_scaled, share, 1.0)
    cap = bars.contract.funding_cap
    return np.where(np.isfinite(premium), np.clip(rate, -cap, cap), settled)


@njit(cache=True)
def _rising_mean(values: NDArray[np.float64], first: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of ``values[first[t]:t + 1]`` with weights 1, 2, 3, ...; what is nan weighs nothing."""
    out = np.full(values.shape[0], np.nan)
    for t in range(values.shape[0]):
        total, weights = 0.0, 0.0
        for i in range(first[t], t + 1):
            if not np.isnan(values[i]):
                total += (i - first[t] + 1) * values[i]
                weights += i - first[t] + 1
        if weights > 0.0:
            out[t] = total / weights
    return out


@feature(
    name="funding_pressure",
    group="risk",
    unit="fraction of notional per year",
    memory_ms=PRESSURE_MEMORY_MS,
    # SOL paid the cap of 2 % every 2 hours in November 2022
    low=-150.0,
    high=150.0,
    source="definition",
)
def funding_pressure(bars: Bars) -> NDArray[np.float64]:
    """What a long paid over the settlements of 7 days, annualised."""
    start, stop = known_stamps(bars, PRESSURE_MEMORY_MS)
    mean, _ = mean_and_std(bars.stamp_rate, start, stop)
    span_ms = bars_in(PRESSURE_MEMORY_MS, bars.bar_ms) * bars.bar_ms
    return mean * (stop - start) * (YEAR_MS / span_ms)
