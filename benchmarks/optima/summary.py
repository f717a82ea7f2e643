"""Several seeds in one line: interquartile mean, its bootstrap interval, and when thresholds were passed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from training import THRESHOLDS, Run

from perpgym.evaluation.seeds import interquartile_mean


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
