"""How far luck alone moves a Sharpe ratio: stationary-bootstrap intervals that respect serial dependence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from arch.bootstrap import StationaryBootstrap, optimal_block_length
from numpy.typing import NDArray

from perpgym.evaluation.metrics import bar_sharpe

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided percentile interval.

    Attributes:
        low, high: its ends, in the statistic's unit; ``nan`` where the statistic does not exist.
        level: coverage, a fraction.
        draws: bootstrap samples.
        block_bars: mean block length, bars.
    """

    low: float
    high: float
    level: float
    draws: int
    block_bars: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside; False where the interval does not exist."""
        return self.low > 0 or self.high < 0


def block_length(*series: Floats) -> int:
    """Mean block length for resampling several series together, bars.

    Politis and White (2004), corrected by Patton, Politis and White (2009), for the returns and for their
    squares: a Sharpe ratio has a variance in it, and volatility remembers longer than returns do.
    The longest of the answers is taken, at most a tenth of the sample.
    """
    columns = [column for one in series for column in (one, one**2) if _has_variation(column)]
    if not columns:
        return 1
    # blocks do not depend on the scale, but squares of hourly returns are small enough to lose digits
    scaled = np.column_stack([(c - c.mean()) / c.std() for c in columns])
    best = float(np.nanmax(optimal_block_length(scaled)["stationary"].to_numpy()))
    longest = max(1, int(series[0].shape[0]) // 10)
    return max(1, min(math.ceil(best), longest))


def sharpe_interval(
    excess: Floats, *, bars_per_year: float, draws: int = 2_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of the annualised Sharpe ratio.

    The stationary bootstrap of Politis and Romano (1994): blocks of geometric length, glued in a circle.

    Args:
        excess: (n,) bar excess returns.
        bars_per_year: bars in 365 days.
        draws: bootstrap samples.
        level: coverage, a fraction.
        seed: of the resampling.
    """
    if not math.isfinite(bar_sharpe(excess)):
        return Interval(low=math.nan, high=math.nan, level=level, draws=0, block_bars=0)
    block = block_length(excess)
    sampler = StationaryBootstrap(block, excess, seed=np.random.default_rng(seed))
    samples = sampler.apply(_sharpe, draws)[:, 0] * math.sqrt(bars_per_year)
    return _percentiles(samples, level=level, draws=draws, block=block)


def sharpe_difference_interval(
    excess: Floats,
    other: Floats,
    *,
    bars_per_year: float,
    draws: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the difference of two annualised Sharpe ratios of the same bars.

    Both series are resampled with the same blocks, because two accounts in one market are lucky together
    (Ledoit and Wolf 2008, "Robust performance hypothesis testing with the Sharpe ratio"). Of several seeds
    the Sharpe ratios are averaged within each draw; that of the seeds' mean return would be another number,
    which rewards seeds that disagree. An account that never moved has a Sharpe ratio of 0, so that the
    difference from it is as uncertain as the other one alone.

    Args:
        excess, other: (n,) bar excess returns of the two accounts, or (n, S) of S seeds of each.
        bars_per_year: bars in 365 days.
        draws: bootstrap samples.
        level: coverage, a fraction.
        seed: of the resampling.
    """
    block = block_length(*excess.reshape(len(excess), -1).T, *other.reshape(len(other), -1).T)
    sampler = StationaryBootstrap(block, excess, other, seed=np.random.default_rng(seed))
    samples = sampler.apply(_sharpe_gap, draws)[:, 0] * math.sqrt(bars_per_year)
    return _percentiles(samples, level=level, draws=draws, block=block)


def _sharpe(excess: Floats) -> Floats:
    # a resample of bars without a position has no risk and, by the same token, no return over it
    columns = excess.reshape(len(excess), -1).T
    return np.array([np.mean([np.nan_to_num(bar_sharpe(column)) for column in columns])])


def _sharpe_gap(excess: Floats, other: Floats) -> Floats:
    return _sharpe(excess) - _sharpe(other)


def _percentiles(samples: Floats, *, level: float, draws: int, block: int) -> Interval:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level, draws=draws, block_bars=block)


def _has_variation(column: Floats) -> bool:
    return bool(np.ptp(column) > 1e-12 * max(1e-300, float(np.abs(column).max())) and column.std() > 1e-300)
