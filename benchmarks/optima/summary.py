"""Several seeds in one line: interquartile mean, its bootstrap interval, and when thresholds were passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import trim_mean
from training import THRESHOLDS, Run

_DRAWS = 2_000


class Spread(NamedTuple):
    """Interquartile mean and a 95 % interval of it."""

    mean: float
    low: float
    high: float


def interquartile_mean(values: Sequence[float]) -> Spread:
    """Mean of the middle half (Agarwal et al. 2021, section 4.3) with its percentile bootstrap over seeds."""
    sample = np.asarray(values, np.float64)
    draws = np.random.default_rng(0).choice(sample, (_DRAWS, sample.size))
    low, high = np.quantile(trim_mean(draws, 0.25, axis=1), (0.025, 0.975))
    return Spread(float(trim_mean(sample, 0.25)), float(low), float(high))


def reached(runs: Sequence[Run], threshold: float) -> tuple[float, float] | None:
    """Median (steps, seconds) to a share of the optimum; None if fewer than half of the seeds got there."""
    times = [run.reached.get(threshold, (np.inf, np.inf)) for run in runs]
    steps, seconds = np.median(np.array(times, np.float64), axis=0)
    return (float(steps), float(seconds)) if np.isfinite(steps) else None


HEADER = (
    "| problem | agent | seeds | score / optimum: IQM [95 %] | value (mean) | "
    + " | ".join(f"to {threshold:g}" for threshold in THRESHOLDS)
    + " | in all |\n"
    + "|---|---|---|---|---|" + "---|" * len(THRESHOLDS) + "---|"
)  # fmt: skip


def row(problem: str, agent: str, runs: Sequence[Run]) -> str:
    """A line of the table."""
    spread = interquartile_mean([run.score.fraction for run in runs])
    value = np.mean([run.score.value for run in runs])
    times = [_time(reached(runs, threshold)) for threshold in THRESHOLDS]
    total = _time((runs[0].steps, float(np.median([run.seconds for run in runs]))))
    cells = [
        problem,
        agent,
        str(len(runs)),
        f"{spread.mean:.4f} [{spread.low:.4f}, {spread.high:.4f}]",
        f"{value:.6g}",
        *times,
        total,
    ]
    return "| " + " | ".join(cells) + " |"


def _time(moment: tuple[float, float] | None) -> str:
    return "–" if moment is None else f"{moment[0] / 1e6:.2f}M, {moment[1]:.0f} s"
