"""What real hourly BTC looks like in numbers, and how to measure them on any bars.

``BTC_FACTS`` holds the BTCUSDT perpetual at Binance, 1 h, 2020-01-01 to 2025-06-30 (48,192 bars of last and
mark, 6,024 funding stamps), measured by :func:`stylised_facts`, and beside each fact the range within which
a simulated market of several years must lie: the spread of the single years 2020 ... 2025 of the same data,
rounded outwards, wider where the fact says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, HIGH, LOW, Bars
from perpgym.data.contract import HOUR_MS


@dataclass(frozen=True)
class Fact:
    """One stylised fact of hourly BTC.

    Attributes:
        measured: on the real data.
        low, high: where a simulated market must lie.
        meaning: what was computed, with its unit.
    """

    measured: float
    low: float
    high: float
    meaning: str


BTC_FACTS: dict[str, Fact] = {
    "sigma_per_bar": Fact(0.006918, 0.0046, 0.0092, "deviation of log returns, fraction"),
    "kurtosis": Fact(
        58.68, 10.0, 135.0, "fourth moment over squared variance; 2020-03 alone makes most of it"
    ),
    "tail_index": Fact(3.198, 2.1, 3.9, "Hill's estimator over the largest 1 % of |log return|"),
    "return_autocorrelation_1": Fact(-0.0180, -0.061, 0.03, "of log returns at lag 1 h; a martingale has 0"),
    "abs_return_autocorrelation_1": Fact(0.2935, 0.19, 0.34, "of |log return| at lag 1 h"),
    "abs_return_autocorrelation_24": Fact(0.1655, 0.09, 0.18, "of |log return| at lag 24 h"),
    "abs_return_autocorrelation_168": Fact(0.1312, 0.065, 0.19, "of |log return| at lag 168 h"),
    "range_over_sigma": Fact(1.3216, 1.18, 1.5, "mean of log(high / low) over sigma_per_bar"),
    "volume_us_over_quiet": Fact(2.1657, 1.6, 2.7, "mean volume of 13-16 h over that of 2-5 h UTC"),
    "volume_weekend_over_week": Fact(
        0.5998, 0.46, 0.79, "mean volume of Saturday and Sunday over the other days"
    ),
    "log_notional_autocorrelation_24": Fact(0.6627, 0.33, 0.7, "of log traded notional at lag 24 h"),
    "log_notional_with_log_abs_return": Fact(
        0.4283, 0.41, 0.59, "correlation of log traded notional and log(|log return| + 1e-5)"
    ),
    "basis_sd_bps": Fact(3.4847, 1.06, 7.3, "deviation of last over mark at the close, basis points"),
    "basis_autocorrelation_1": Fact(
        0.5299, 0.03, 0.82, "of that basis at lag 1 h; higher here, because it carries the planted signal"
    ),
    "funding_mean_bps": Fact(1.2286, 0.38, 2.8, "mean rate per settlement of 8 h, basis points"),
    "funding_sd_bps": Fact(2.2699, 0.42, 3.75, "deviation of the rate, basis points"),
    "funding_autocorrelation_1": Fact(0.7949, 0.49, 0.85, "of the rate at lag one settlement"),
    "funding_autocorrelation_21": Fact(0.4536, 0.08, 0.55, "of the rate at lag 21 settlements, a week"),
    "funding_at_base": Fact(0.3841, 0.12, 0.51, "share of settlements at the base rate of 1 bp"),
}


def stylised_facts(bars: Bars) -> dict[str, float]:
    """Measure the facts of ``BTC_FACTS`` on hourly bars.

    Args:
        bars: one contract, at least some months of it; missing bars filled.

    Returns:
        name to value, in the units of ``BTC_FACTS``.

    Raises:
        ValueError: the bars are not hourly.
    """
    if bars.bar_ms != HOUR_MS:
        raise ValueError(f"the facts are of hourly bars (3600000 ms), these last {bars.bar_ms} ms")
    close = bars.last[:, CLOSE]
    returns = np.diff(np.log(close))
    size = np.abs(returns)
    # in quote, so that years of price drift do not count as memory; every bar at least one lot
    log_notional = np.log(np.maximum(bars.volume, bars.contract.lot_size) * close)
    basis_bps = 1e4 * (close / bars.mark[:, CLOSE] - 1.0)
    hour = (bars.open_time_ms // HOUR_MS) % 24
    weekend = (bars.open_time_ms // (24 * HOUR_MS) + 3) % 7 >= 5
    us_open, quiet = np.isin(hour, (13, 14, 15, 16)), np.isin(hour, (2, 3, 4, 5))
    return {
        "sigma_per_bar": float(returns.std()),
        "kurtosis": float(np.mean((returns - returns.mean()) ** 4) / returns.var() ** 2),
        "tail_index": tail_index(size, 0.01),
        "return_autocorrelation_1": autocorrelation(returns, 1),
        "abs_return_autocorrelation_1": autocorrelation(size, 1),
        "abs_return_autocorrelation_24": autocorrelation(size, 24),
        "abs_return_autocorrelation_168": autocorrelation(size, 168),
        "range_over_sigma": float(np.log(bars.last[:, HIGH] / bars.last[:, LOW]).mean() / returns.std()),
        "volume_us_over_quiet": float(bars.volume[us_open].mean() / bars.volume[quiet].mean()),
        "volume_weekend_over_week": float(bars.volume[weekend].mean() / bars.volume[~weekend].mean()),
        "log_notional_autocorrelation_24": autocorrelation(log_notional, 24),
        "log_notional_with_log_abs_return": float(np.corrcoef(log_notional[1:], np.log(size + 1e-5))[0, 1]),
        "basis_sd_bps": float(basis_bps.std()),
        "basis_autocorrelation_1": autocorrelation(basis_bps, 1),
        "funding_mean_bps": float(1e4 * bars.stamp_rate.mean()),
        "funding_sd_bps": float(1e4 * bars.stamp_rate.std()),
        "funding_autocorrelation_1": autocorrelation(bars.stamp_rate, 1),
        "funding_autocorrelation_21": autocorrelation(bars.stamp_rate, 21),
        "funding_at_base": float(np.mean(np.abs(bars.stamp_rate - 1e-4) < 5e-9)),
    }


def autocorrelation(series: NDArray[np.float64], lag: int) -> float:
    """Correlation of a series with itself ``lag`` steps earlier."""
    centred = series - series.mean()
    return float(np.mean(centred[lag:] * centred[:-lag]) / np.mean(centred**2))


def tail_index(sizes: NDArray[np.float64], share: float) -> float:
    """Hill's estimator over the largest ``share`` of positive sizes: P(size > x) ~ x^-index."""
    ordered = np.sort(sizes)[::-1]
    count = int(ordered.shape[0] * share)
    return float(1.0 / np.mean(np.log(ordered[:count] / ordered[count])))
