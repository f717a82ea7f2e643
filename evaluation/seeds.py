"""Several seeds in one number, and how far luck with seeds may have moved it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t, trim_mean

_DRAWS = 2_000


class Spread(NamedTuple):
    """A mean over seeds and an interval of it; of which kind, and what it covers, its function says."""

    mean: float
    low: float
    high: float


def interquartile_mean(values: Sequence[float]) -> Spread:
    """Mean of the middle half (Agarwal et al. 2021, section 4.3), 95 % percentile bootstrap over seeds.

    The interval is too narrow for few seeds: of normal ones it covers the truth in 50 % of all cases with two
    seeds, in 75 % with three and in 91 % with five. :func:`mean_over_seeds` is for those who conclude.

    Args:
        values: one a seed; of fewer than four nothing is trimmed.
    """
    sample = np.asarray(values, np.float64)
    draws = np.random.default_rng(0).choice(sample, (_DRAWS, sample.size))
    low, high = np.quantile(trim_mean(draws, 0.25, axis=1), (0.025, 0.975))
    return Spread(float(trim_mean(sample, 0.25)), float(low), float(high))


def mean_over_seeds(values: Sequence[float]) -> Spread:
    """Mean with its 95 % t-interval, which covers that share for any number of normal seeds, two being few.

    Args:
        values: one a seed; a single one has no interval, and its ends are ``nan``.
    """
    sample = np.asarray(values, np.float64)
    mean = float(sample.mean())
    if sample.size < 2:
        return Spread(mean, math.nan, math.nan)
    reach = float(t.ppf(0.975, sample.size - 1) * sample.std(ddof=1) / math.sqrt(sample.size))
    return Spread(mean, mean - reach, mean + reach)
