"""What a path of equity was worth: returns, risk and risk-adjusted return, each with its source.

Every statistic is of *bar log returns*, annualised with the number of bars in a year of 365 days. A statistic
that does not exist (the Sharpe ratio of an account that never moved) is ``nan``, never a made-up number.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

# a spread below this is the rounding of a constant, not risk
_NO_RISK = 1e-14


def log_returns(equity: Floats, *, floor: float = 0.01) -> Floats:
    """Log return of every bar.

    Args:
        equity: (n + 1,) quote, from the first decision on.
        floor: the ratio of one bar is floored here (``EnvConfig.reward_equity_floor``), because the logarithm
            of ruin does not exist. An account that is already at zero returns 0.

    Returns:
        (n,) float64.
    """
    before, after = equity[:-1], equity[1:]
    alive = before > 0
    ratio = np.divide(after, before, out=np.ones_like(before, dtype=np.float64), where=alive)
    return np.log(np.maximum(ratio, floor))


def excess_returns(returns: Floats, *, risk_free_rate: float, bars_per_year: float) -> Floats:
    """Log returns over the risk-free rate.

    Args:
        returns: (n,) bar log returns.
        risk_free_rate: fraction per year, compounded yearly.
        bars_per_year: bars in 365 days.
    """
    return returns - math.log1p(risk_free_rate) / bars_per_year


def total_return(equity: Floats) -> float:
    """Last equity over first, minus 1."""
    return float(equity[-1] / equity[0] - 1.0)


def annual_growth(equity: Floats, *, bars_per_year: float) -> float:
    """Compound annual growth rate, a fraction per year; -1 if nothing is left."""
    if equity[-1] <= 0:
        return -1.0
    years = (equity.shape[0] - 1) / bars_per_year
    # a few good bars annualise to absurd numbers, which must not overflow
    return math.expm1(min(math.log(equity[-1] / equity[0]) / years, 700.0))


def annual_volatility(returns: Floats, *, bars_per_year: float) -> float:
    """Standard deviation of bar log returns, a fraction per square root of a year."""
    if returns.shape[0] < 2:
        return math.nan
    return float(returns.std(ddof=1)) * math.sqrt(bars_per_year)


def bar_sharpe(excess: Floats) -> float:
    """Mean over standard deviation of bar excess returns, not annualised; ``nan`` without risk."""
    if excess.shape[0] < 2:
        return math.nan
    spread = float(excess.std(ddof=1))
    return float(excess.mean()) / spread if spread > _NO_RISK else math.nan


def sharpe_ratio(excess: Floats, *, bars_per_year: float) -> float:
    """Sharpe ratio per square root of a year (Sharpe 1994, "The Sharpe Ratio")."""
    return bar_sharpe(excess) * math.sqrt(bars_per_year)


def bar_sharpe_standard_error(excess: Floats) -> float:
    """Standard error of :func:`bar_sharpe` for returns that are independent but not normal.

    Var = (1 + SR^2 / 2 - skew * SR + (kurtosis - 3) / 4 * SR^2) / n: Lo (2002), "The Statistics of Sharpe
    Ratios", for the normal part; Mertens (2002), "Comments on variance of the IID estimator in Lo",
    for skewness and kurtosis. Serial dependence is the bootstrap's business.
    """
    sharpe = bar_sharpe(excess)
    if math.isnan(sharpe):
        return math.nan
    skew, kurtosis = _shape(excess)
    variance = 1.0 + 0.5 * sharpe**2 - skew * sharpe + 0.25 * (kurtosis - 3.0) * sharpe**2
    return math.sqrt(max(variance, 0.0) / excess.shape[0])


def sharpe_standard_error(excess: Floats, *, bars_per_year: float) -> float:
    """Standard error of :func:`sharpe_ratio`, in its unit."""
    return bar_sharpe_standard_error(excess) * math.sqrt(bars_per_year)


def probabilistic_sharpe(excess: Floats, *, benchmark: float = 0.0) -> float:
    """Probability that the true Sharpe ratio lies above a benchmark.

    Bailey and Lopez de Prado (2012), "The Sharpe Ratio Efficient Frontier".

    Args:
        excess: (n,) bar excess returns.
        benchmark: Sharpe ratio *per bar*, not annualised.
    """
    sharpe = bar_sharpe(excess)
    if math.isnan(sharpe):
        return math.nan
    skew, kurtosis = _shape(excess)
    variance = 1.0 - skew * sharpe + 0.25 * (kurtosis - 1.0) * sharpe**2
    if variance <= 0:
        return math.nan
    return float(stats.norm.cdf((sharpe - benchmark) * math.sqrt((excess.shape[0] - 1) / variance)))


def expected_best_sharpe(*, trials: int, sharpe_std: float) -> float:
    """The Sharpe ratio that the best of several worthless trials is expected to show.

    Bailey and Lopez de Prado (2014), "The Deflated Sharpe Ratio", after the extreme-value theorem.

    Args:
        trials: number of trials; with fewer than two there was no choice and the answer is 0.
        sharpe_std: standard deviation of the trials' Sharpe ratios; the answer has its unit.
    """
    if trials < 2 or not sharpe_std > 0:
        return 0.0
    best = (1.0 - np.euler_gamma) * stats.norm.ppf(1.0 - 1.0 / trials)
    best += np.euler_gamma * stats.norm.ppf(1.0 - 1.0 / (trials * math.e))
    return float(sharpe_std * best)


def deflated_sharpe(excess: Floats, *, trials: int, trial_sharpe_std: float) -> float:
    """Probability that the Sharpe ratio is above what the best of so many worthless trials would show.

    Bailey and Lopez de Prado (2014), "The Deflated Sharpe Ratio". Trials are counted one by one although
    checkpoints of one run resemble each other, so the deflation errs on the strict side.

    Args:
        excess: (n,) bar excess returns.
        trials: number of trials that the choice was made from.
        trial_sharpe_std: standard deviation of their Sharpe ratios *per bar*.
    """
    return probabilistic_sharpe(
        excess, benchmark=expected_best_sharpe(trials=trials, sharpe_std=trial_sharpe_std)
    )


def sortino_ratio(excess: Floats, *, bars_per_year: float) -> float:
    """Mean excess return over downside deviation, per square root of a year.

    The downside deviation is the root mean square of the negative excess returns over *all* bars (Sortino and
    Price 1994, "Performance Measurement in a Downside Risk Framework").
    """
    downside = math.sqrt(float(np.mean(np.minimum(excess, 0.0) ** 2)))
    return float(excess.mean()) / downside * math.sqrt(bars_per_year) if downside > _NO_RISK else math.nan


def drawdowns(equity: Floats) -> Floats:
    """(n + 1,) fraction below the highest equity so far, >= 0."""
    return 1.0 - equity / np.maximum.accumulate(equity)


def max_drawdown(equity: Floats) -> float:
    """Largest fall from a peak, a fraction of the peak, at bar closes."""
    return float(drawdowns(equity).max())


def calmar_ratio(equity: Floats, *, bars_per_year: float) -> float:
    """Annual growth over maximum drawdown (Young 1991, "Calmar Ratio: A Smoother Tool", Futures 20)."""
    worst = max_drawdown(equity)
    return annual_growth(equity, bars_per_year=bars_per_year) / worst if worst > 0 else math.nan


def rolling_sharpe(excess: Floats, *, window: int, bars_per_year: float) -> Floats:
    """(n,) annualised Sharpe ratio of the last ``window`` bars; ``nan`` before there are so many.

    Raises:
        ValueError: the window has fewer than two bars.
    """
    if window < 2:
        raise ValueError(f"window must be at least 2 bars, was {window}; choose the bars of a month, say")
    out = np.full(excess.shape[0], np.nan)
    if excess.shape[0] < window:
        return out
    # differences of running sums; the mean is taken off first, so that the squares keep their digits
    centred = excess - excess.mean()
    first = np.concatenate(([0.0], np.cumsum(centred)))
    second = np.concatenate(([0.0], np.cumsum(centred**2)))
    mean = (first[window:] - first[:-window]) / window
    variance = ((second[window:] - second[:-window]) - window * mean**2) / (window - 1)
    spread = np.sqrt(np.maximum(variance, 0.0))
    # running sums leave rounding behind where nothing moved
    known = spread > 1e-7
    full = (mean + excess.mean())[known] / spread[known]
    tail = out[window - 1 :]
    tail[known] = full * math.sqrt(bars_per_year)
    return out


def timing_p_value(score: float, draws: Floats) -> float:
    """Probability that random timing does at least as well: (1 + #draws >= score) / (n + 1).

    The agent counts as one of the draws, so the value is never 0 (North, Curtis and Sham 2002, "A note on the
    calculation of empirical p values from Monte Carlo procedures").

    Args:
        score: the agent's statistic.
        draws: (n,) the same statistic of the random draws; a draw without one (``nan``) counts as 0.
    """
    if math.isnan(score):
        return 1.0
    draws = np.nan_to_num(draws, nan=0.0)
    # draws that repeat the agent's own path tie with it up to rounding, and a tie is no evidence
    at_least = np.count_nonzero(draws >= score - 1e-9 * max(1.0, abs(score)))
    return float(1 + at_least) / float(draws.shape[0] + 1)


def _shape(excess: Floats) -> tuple[float, float]:
    """Skewness and (not excess) kurtosis, by population moments as in the cited papers."""
    centred = excess - excess.mean()
    scale = math.sqrt(float(np.mean(centred**2)))
    standard = centred / scale
    return float(np.mean(standard**3)), float(np.mean(standard**4))
