"""The mechanisms of the simulated market, one pure function each: volatility, prices, mark, funding, volume.

Parameters were set so that ``stylised_facts`` of the whole agree with those of BTCUSDT at Binance,
2020-01 to 2025-06 (``data/stylised_facts.py``); each stands beside the mechanism that it shapes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.signal import lfilter

from perpgym.data.bars import CLOSE, HIGH, LOW, OPEN
from perpgym.data.contract import HOUR_MS

Floats = NDArray[np.float64]
Times = NDArray[np.int64]
Generator = np.random.Generator

# mean |r| and mean volume by UTC hour and by weekday (Monday first) over their means, measured
_ABS_RETURN_BY_HOUR = (
    1.16, 1.04, 0.91, 0.84, 0.76, 0.79, 0.82, 0.87, 0.95, 0.88, 0.90, 0.89,
    1.05, 1.17, 1.37, 1.25, 1.14, 1.06, 1.03, 1.04, 1.07, 1.02, 1.00, 0.99,
)  # fmt: skip
_ABS_RETURN_BY_DAY = (1.14, 1.08, 1.09, 1.08, 1.08, 0.71, 0.83)
_VOLUME_BY_HOUR = (
    0.99, 0.85, 0.77, 0.70, 0.68, 0.68, 0.74, 0.82, 0.93, 0.89, 0.92, 0.93,
    1.24, 1.45, 1.68, 1.56, 1.44, 1.17, 1.11, 1.04, 1.00, 0.81, 0.80, 0.79,
)  # fmt: skip
_VOLUME_BY_DAY = (1.14, 1.13, 1.16, 1.12, 1.09, 0.64, 0.71)

# regimes: log multiple of volatility and mean stay in hours
_REGIME_LOG_SIGMA = np.array([-0.55, 0.0, 0.65])
_REGIME_STAY_HOURS = np.array([900.0, 900.0, 500.0])
# log volatility beside regime and season: half-life in hours, stationary deviation
_SLOW_VOL = (96.0, 0.30)
_FAST_VOL = (3.0, 0.42)
# one bar's own log deviation: the clock of trading runs unevenly
_TAIL_LOG_SD = 0.42
_JUMPS_PER_HOUR, _JUMP_SIGMAS = 1 / 500, 4.0
# per hour: a lognormal deviation has no largest value, a price needs one
_MAX_SIGMA = 0.12

_FUNDING_BASE = 1e-4  # interest per 8 h, the exchange's 0.01 %
_FUNDING_DEAD_ZONE = 1.5e-4  # a premium this close to the base settles at the base
_FUNDING_SD = 3.5e-4
_FUNDING_LEAN = 0.5  # correlation of the premium with the hidden signal
_FUNDING_SLOW_SHARE, _FUNDING_SLOW_HALF_LIFE_HOURS = 0.82, 320.0

_BRIDGE_SIGMAS = 1.2  # a bar wanders more inside than its ends tell: trades bounce
_MARK_WICK = 0.93  # the mark's excursions beyond a bar's body over the last price's
_SPIKES_PER_HOUR, _SPIKE_SIGMAS = 1 / 2_000, 3.0  # runs of the last price that the mark does not follow

_VOLUME_ON_SIGMA, _VOLUME_ON_TAIL = 0.6, 1.0
_VOLUME_NOISE = ((240.0, 0.40), (8.0, 0.20))  # half-life in hours, stationary deviation
_VOLUME_OWN_SD = 0.2


def persistence(half_life_hours: float, bar_ms: int) -> float:
    """Correlation from bar to bar of an AR(1) with this half-life."""
    return float(0.5 ** (bar_ms / HOUR_MS / half_life_hours))


def autoregression(normals: Floats, rho: float) -> Floats:
    """A stationary AR(1) of mean 0 and variance 1 from independent normals, (T,)."""
    driven = normals * np.sqrt(1.0 - rho**2)
    driven[0] = normals[0]
    return np.asarray(lfilter([1.0], [1.0, -rho], driven), dtype=np.float64)


def by_calendar(open_time_ms: Times, by_hour: tuple[float, ...], by_day: tuple[float, ...]) -> Floats:
    """Log of a seasonal factor, (T,): hour of day and weekday in UTC, mean zero over the week."""
    hours = open_time_ms // HOUR_MS
    # 1970-01-01 was a Thursday
    log_hour, log_day = np.log(by_hour), np.log(by_day)
    factor = log_hour[hours % 24] - log_hour.mean() + log_day[(hours // 24 + 3) % 7] - log_day.mean()
    return np.asarray(factor, dtype=np.float64)


def regimes(bars: int, bar_ms: int, rng: Generator) -> NDArray[np.int64]:
    """(T,) int64 regime of each bar: a cyclic walk calm, normal, stressed with exponential stays.

    From the middle it goes either way; from the ends back to the middle.
    """
    stay_bars = _REGIME_STAY_HOURS * HOUR_MS / bar_ms
    out = np.empty(bars, dtype=np.int64)
    filled, regime = 0, 1
    while filled < bars:
        stay = max(1, round(rng.exponential(stay_bars[regime])))
        out[filled : filled + stay] = regime
        filled += stay
        regime = 1 if regime != 1 else int(rng.choice((0, 2)))
    return out


def sigma_core(
    open_time_ms: Times,
    bar_ms: int,
    sigma_per_hour: float,
    regime: NDArray[np.int64],
    slow_normals: Floats,
    fast_normals: Floats,
) -> tuple[Floats, Floats]:
    """The forecastable part of volatility: season, regime, slow and fast log AR(1).

    Returns:
        (T,) deviation of each bar's return before its own tail and jumps, and (T,) its log without the
        season, in excess of typical.
    """
    excess = _REGIME_LOG_SIGMA[regime]
    for (half_life, sd), normals in ((_SLOW_VOL, slow_normals), (_FAST_VOL, fast_normals)):
        excess = excess + sd * autoregression(normals, persistence(half_life, bar_ms))
    season = by_calendar(open_time_ms, _ABS_RETURN_BY_HOUR, _ABS_RETURN_BY_DAY)
    core = sigma_per_hour * np.sqrt(bar_ms / HOUR_MS) * np.exp(season + excess)
    return core, excess


def shock_correlation(correlation: float) -> float:
    """Correlation of the shocks, and of the log volatilities, whose returns correlate as asked.

    Of two returns sigma N with lognormal sigmas that correlate as their shocks do, g: the correlation of the
    returns is g exp(-(1 - g) s^2), s the deviation of log sigma beside the regime that they share.
    """
    variance = _SLOW_VOL[1] ** 2 + _FAST_VOL[1] ** 2 + _TAIL_LOG_SD**2
    root = brentq(lambda g: g * np.exp(-(1.0 - g) * variance) - correlation, 0.0, 1.0)
    return float(root)


def sigma_of_bars(
    core: Floats, bar_ms: int, tail_normals: Floats, jump_uniforms: Floats
) -> tuple[Floats, Floats]:
    """The deviation from which each bar's normal return is drawn: fat tails as a mixture.

    A jump is a normal shock of its own, so it adds to the variance.

    Args:
        core: (T,) deviation of each bar's return before its own tail and jumps.
        bar_ms: length of a bar.
        tail_normals: (T,) standard normals, of each bar's own deviation.
        jump_uniforms: (T,) in [0, 1): a small one is a jump.

    Returns:
        (T,) sigma, and (T,) log of its excess over the core.
    """
    hours = bar_ms / HOUR_MS
    own = np.exp(_TAIL_LOG_SD * tail_normals)
    # a jump's size is of the hour, whatever the bar
    jumps = (jump_uniforms < _JUMPS_PER_HOUR * hours) * _JUMP_SIGMAS / np.sqrt(hours)
    sigma = np.minimum(core * np.sqrt(own**2 + jumps**2), _MAX_SIGMA * np.sqrt(hours))
    return sigma, np.log(sigma / core)


def log_returns(expected: Floats, sigma: Floats, normals: Floats) -> Floats:
    """(T,) log returns whose simple returns have exactly the expected mean.

    sigma is independent of the normals, so E exp(-sigma^2 / 2 + sigma N) = 1 whatever its law.
    """
    return np.asarray(np.log1p(expected) - 0.5 * sigma**2 + sigma * normals, dtype=np.float64)


def excursions(log_return: Floats, sigma: Floats, rng: Generator) -> tuple[Floats, Floats]:
    """(T,) log distances of high and low beyond the bar's body, both >= 0.

    Maximum and minimum of a Brownian bridge from 0 to the bar's return, drawn by inverting
    P(max > m) = exp(-2 m (m - r) / sigma^2); their dependence is left out.
    """
    exponentials = rng.standard_exponential((2, log_return.shape[0]))
    root = np.sqrt(log_return**2 + 2.0 * (_BRIDGE_SIGMAS * sigma) ** 2 * exponentials)
    high = 0.5 * (log_return + root[0]) - np.maximum(log_return, 0.0)
    low = -0.5 * (log_return - root[1]) + np.minimum(log_return, 0.0)
    return np.maximum(high, 0.0), np.maximum(low, 0.0)


def bars_of(close: Floats, beyond: tuple[Floats, Floats]) -> Floats:
    """(T, 4) open high low close: each bar opens where the last one closed.

    Args:
        close: (T + 1,) quote, the first is the close before the first bar.
        beyond: (T,) log distances of high and low beyond the body.
    """
    out = np.empty((close.shape[0] - 1, 4))
    out[:, OPEN], out[:, CLOSE] = close[:-1], close[1:]
    out[:, HIGH] = np.maximum(close[:-1], close[1:]) * np.exp(beyond[0])
    out[:, LOW] = np.minimum(close[:-1], close[1:]) * np.exp(-beyond[1])
    return out


def last_and_mark(
    close: Floats, basis: Floats, beyond: tuple[Floats, Floats], sigma: Floats, bar_ms: int, rng: Generator
) -> tuple[Floats, Floats]:
    """(T, 4) bars of the last price and of the mark.

    The mark's wicks are shorter, and now and then the last price runs where the mark does not follow.

    Args:
        close: (T + 1,) quote, last price.
        basis: (T + 1,) fraction, last over mark minus 1 at the closes.
        beyond: (T,) log distances of high and low beyond the body.
        sigma: (T,) of the bars.
        bar_ms: length of a bar.
        rng: draws the runs.
    """
    mark = bars_of(close / (1.0 + basis), (_MARK_WICK * beyond[0], _MARK_WICK * beyond[1]))
    runs = rng.random((2, sigma.shape[0])) < _SPIKES_PER_HOUR * bar_ms / HOUR_MS
    extra = runs * rng.exponential(_SPIKE_SIGMAS, size=runs.shape) * sigma
    return bars_of(close, (beyond[0] + extra[0], beyond[1] + extra[1])), mark


def funding_rates(lean: Floats, cap: float, rng: Generator) -> Floats:
    """(S,) rates of successive settlements, fraction of notional.

    The exchange's rule, rate = premium + clamp(interest - premium, -d, d), with a dead zone d of 1 bp for
    its 5: our premium is the averaged one. (Binance, "Introduction to Binance Futures Funding Rates".)

    Args:
        lean: (S,) the hidden signal's mean over the hours before, variance about 1.
        cap: largest absolute rate.
        rng: draws the part of the premium that has nothing to do with the signal.
    """
    normals = rng.standard_normal((2, lean.shape[0]))
    slow = autoregression(normals[0], float(0.5 ** (8.0 / _FUNDING_SLOW_HALF_LIFE_HOURS)))
    own = np.sqrt(_FUNDING_SLOW_SHARE) * slow + np.sqrt(1.0 - _FUNDING_SLOW_SHARE) * normals[1]
    premium = _FUNDING_BASE + _FUNDING_SD * (_FUNDING_LEAN * lean + np.sqrt(1.0 - _FUNDING_LEAN**2) * own)
    rate = premium + np.clip(_FUNDING_BASE - premium, -_FUNDING_DEAD_ZONE, _FUNDING_DEAD_ZONE)
    return np.asarray(np.clip(np.round(rate, 8), -cap, cap), dtype=np.float64)


def traded_notional(
    open_time_ms: Times,
    bar_ms: int,
    median_per_hour: float,
    excess: Floats,
    tail: Floats,
    rng: Generator,
) -> Floats:
    """(T,) quote: season, volatility (persistent and of the bar), and noise with and without memory."""
    log_volume = by_calendar(open_time_ms, _VOLUME_BY_HOUR, _VOLUME_BY_DAY)
    log_volume += _VOLUME_ON_SIGMA * excess + _VOLUME_ON_TAIL * tail
    normals = rng.standard_normal((len(_VOLUME_NOISE) + 1, excess.shape[0]))
    for (half_life, sd), driving in zip(_VOLUME_NOISE, normals[1:], strict=True):
        log_volume += sd * autoregression(driving, persistence(half_life, bar_ms))
    log_volume += _VOLUME_OWN_SD * normals[0]
    return np.asarray(median_per_hour * bar_ms / HOUR_MS * np.exp(log_volume), dtype=np.float64)


def half_spreads(open_time_ms: Times, typical_bps: float, excess: Floats, rng: Generator) -> Floats:
    """(T,) basis points: wider when the market is rough or nobody is there."""
    absent = -by_calendar(open_time_ms, _VOLUME_BY_HOUR, _VOLUME_BY_DAY)
    noise = 0.15 * rng.standard_normal(excess.shape[0])
    return np.asarray(typical_bps * np.exp(0.4 * excess + 0.4 * absent + noise), dtype=np.float64)
