"""Sums, tails and weighted means over windows, each computed afresh from the window's own values.

Running sums (pandas ``rolling``, TA-Lib's SMA and STDDEV) carry the rounding of everything before the window,
so a live process that knows only L bars would get other numbers than the tape. A plain loop costs a few
milliseconds per column over six years of hours and gives the same bits for the same window.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

# what an endless memory may forget: weights below this share of the newest value's weight
NEGLIGIBLE_WEIGHT = 1e-12


def exponential_weights(alpha: float) -> NDArray[np.float64]:
    """Weights of an exponential mean, cut where they fall below ``NEGLIGIBLE_WEIGHT``, summing to 1.

    Args:
        alpha: smoothing in (0, 1); 1/n is Wilder's mean of n, 2/(n + 1) the usual EMA of n.

    Returns:
        (W,) float64, the newest bar's weight first.
    """
    length = math.ceil(math.log(NEGLIGIBLE_WEIGHT) / math.log1p(-alpha))
    weights = (1.0 - alpha) ** np.arange(length, dtype=np.float64)
    return np.asarray(weights / weights.sum())


@njit(cache=True)
def weighted_window(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum_k weights[k] * values[t - k].

    Args:
        values: (T,) float64.
        weights: (W,) float64, the newest bar's first.

    Returns:
        (T,) float64; 0 before bar W - 1.
    """
    out = np.zeros(values.shape[0])
    for t in range(weights.shape[0] - 1, values.shape[0]):
        total = 0.0
        for k in range(weights.shape[0]):
            total += weights[k] * values[t - k]
        out[t] = total
    return out


def last_bars(count: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bounds ``start[t]:stop[t]`` of the last n of ``count`` bars at each bar; shorter at the beginning."""
    stop = np.arange(1, count + 1, dtype=np.int64)
    return np.maximum(stop - n, 0), stop


@njit(cache=True)
def mean_and_std(
    values: NDArray[np.float64], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation of ``values[start[t]:stop[t]]``.

    Args:
        values: (V,) float64, e.g. one a bar, one a funding stamp, or one a traded bar.
        start, stop: (T,) int64 bounds.

    Returns:
        Two (T,) float64; 0 where the window is empty.
    """
    mean = np.zeros(start.shape[0])
    std = np.zeros(start.shape[0])
    for t in range(start.shape[0]):
        count = stop[t] - start[t]
        if count <= 0:
            continue
        total = 0.0
        for i in range(start[t], stop[t]):
            total += values[i]
        centre = total / count
        # two passes: the one-pass formula cancels for prices of 1e5
        squares = 0.0
        for i in range(start[t], stop[t]):
            squares += (values[i] - centre) ** 2
        mean[t] = centre
        std[t] = math.sqrt(squares / count)
    return mean, std


@njit(cache=True)
def lowest_of_window(
    values: NDArray[np.float64], n: int, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The k-th smallest of the last n values, and the mean of the k smallest.

    Args:
        values: (T,) float64.
        n: window, bars.
        k: rank from below, 1 <= k <= n.

    Returns:
        Two (T,) float64; 0 before bar n - 1.
    """
    bars = values.shape[0]
    kth = np.zeros(bars)
    mean = np.zeros(bars)
    ordered = np.empty(n + 1)
    filled = 0
    for t in range(bars):
        at = np.searchsorted(ordered[:filled], values[t])
        for i in range(filled, at, -1):
            ordered[i] = ordered[i - 1]
        ordered[at] = values[t]
        filled += 1
        if filled > n:
            gone = np.searchsorted(ordered[:filled], values[t - n])
            for i in range(gone, n):
                ordered[i] = ordered[i + 1]
            filled = n
        if filled == n:
            total = 0.0
            for i in range(k):
                total += ordered[i]
            kth[t] = ordered[k - 1]
            mean[t] = total / k
    return kth, mean
