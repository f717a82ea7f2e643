"""Several seeds in one number: the mean of their middle half, and how far it may be from luck with seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import trim_mean

_DRAWS = 2_000


class Spread(NamedTuple):
    """Interquartile mean and a 95 % interval of it."""

    mean: float
    low: float
    high: float


def interquartile_mean(values: Sequence[float]) -> Spread:
    """Mean of the middle half (Agarwal et al. 2021, section 4.3) with its percentile bootstrap over seeds.

    Args:
        values: one a seed; of fewer than four nothing is trimmed.
    """
    sample = np.asarray(values, np.float64)
    draws = np.random.default_rng(0).choice(sample, (_DRAWS, sample.size))
    low, high = np.quantile(trim_mean(draws, 0.25, axis=1), (0.025, 0.975))
    return Spread(float(trim_mean(sample, 0.25)), float(low), float(high))
