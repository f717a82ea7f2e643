"""Where in the day and in the week a close lies, as points on a circle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.contract import HOUR_MS
from perpgym.data.features.registry import feature

DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
# 1970-01-01 was a Thursday
FIRST_MONDAY_MS = 4 * DAY_MS


def _angle(time_ms: NDArray[np.int64], period_ms: int) -> NDArray[np.float64]:
    return 2 * np.pi * (time_ms % period_ms) / period_ms


@feature(name="hour_sin", unit="sine", low=-1.0, high=1.0, source="definition")
def hour_sin(bars: Bars) -> NDArray[np.float64]:
    """Sine of the close's time of day, UTC."""
    return np.sin(_angle(bars.close_time_ms, DAY_MS))


@feature(name="hour_cos", unit="cosine", low=-1.0, high=1.0, source="definition")
def hour_cos(bars: Bars) -> NDArray[np.float64]:
    """Cosine of the close's time of day, UTC."""
    return np.cos(_angle(bars.close_time_ms, DAY_MS))


@feature(name="weekday_sin", unit="sine", low=-1.0, high=1.0, source="definition")
def weekday_sin(bars: Bars) -> NDArray[np.float64]:
    """Sine of the close's time since Monday 00:00 UTC over a week."""
    return np.sin(_angle(bars.close_time_ms - FIRST_MONDAY_MS, WEEK_MS))


@feature(name="weekday_cos", unit="cosine", low=-1.0, high=1.0, source="definition")
def weekday_cos(bars: Bars) -> NDArray[np.float64]:
    """Cosine of the close's time since Monday 00:00 UTC over a week."""
    return np.cos(_angle(bars.close_time_ms - FIRST_MONDAY_MS, WEEK_MS))
