"""Every attempt on record: an append-only log of each checkpoint, seed and config that was looked at.

A Sharpe ratio that was chosen among many means less than one that was not. The log is what the deflated
Sharpe ratio counts, and it is written before anybody knows which attempt will be the chosen one.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
REQUIRED = ("seed", "step", "validation_sharpe", "validation_log_growth")

_log = logging.getLogger(__name__)


class TrialLog:
    """One JSON object a line; a crash can lose at most the line that was being written.

    A trial has at least ``seed``, ``step`` (environment steps trained), ``validation_sharpe`` (annualised;
    None if it does not exist) and ``validation_log_growth`` (net log growth over the validation period); by
    custom also ``config_hash``, ``checkpoint`` and ``validation_turnover``.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def append(self, trial: Mapping[str, Any]) -> None:
        """Write one trial and return once it is on the disk.

        Raises:
            ValueError: a required key is missing.
            OSError: the disk is full or the folder is gone; the file is as it was before.
        """
        missing = [key for key in REQUIRED if key not in trial]
        if missing:
            raise ValueError(f"a trial needs {', '.join(REQUIRED)}; missing: {', '.join(missing)}")
        line = (json.dumps(plain(dict(trial)), sort_keys=True, allow_nan=False) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _append_line(handle, line)
        finally:
            os.close(handle)

    def read(self) -> list[dict[str, Any]]:
        """Every trial so far, oldest first; a line that is no trial (a crash?) is skipped, and said so."""
        if not self.path.exists():
            return []
        trials = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                trial = json.loads(line)
            except ValueError:
                trial = None
            if isinstance(trial, dict) and all(key in trial for key in REQUIRED):
                trials.append(trial)
            else:
                _log.warning(
                    "%s: line %d is not whole (a crash while writing?) and is skipped", self.path, number
                )
        return trials


def _append_line(handle: int, line: bytes) -> None:
    size = os.fstat(handle).st_size
    # a line that a crash cut short must not swallow this one
    if size and os.pread(handle, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        written = 0
        while written < len(line):
            written += os.write(handle, line[written:])
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise


def plain(value: Any) -> Any:
    """Plain JSON types; a number that does not exist (``nan``, infinity) becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return str(value)


@dataclass(frozen=True, kw_only=True)
class TrialSummary:
    """What the choice was made from.

    Attributes:
        count: distinct trials; a checkpoint that a resumed run looked at again counts once.
        seeds, configs: distinct ones among them.
        sharpe_std: standard deviation of the trials' annualised validation Sharpe ratios.
        best_sharpe: the highest of them, ``nan`` if there is none.
        best_log_growth: highest mean of three neighbouring checkpoints' net log growth: the figure by which
            the checkpoint is chosen; ``nan`` if there is none.
    """

    count: int
    seeds: int
    configs: int
    sharpe_std: float
    best_sharpe: float
    best_log_growth: float

    @property
    def beat_flat(self) -> bool | None:
        """Whether anything beat flat on validation; None without trials."""
        return None if math.isnan(self.best_log_growth) else self.best_log_growth > 0


def summarise_trials(trials: Sequence[Mapping[str, Any]]) -> TrialSummary:
    """Count the trials of one or several logs."""
    distinct = {(t.get("config_hash"), t["seed"], t["step"]): t for t in trials}
    # an account that never traded has no Sharpe ratio, but it was a trial, and its worth was that of flat
    sharpes = np.array([_number(t["validation_sharpe"], 0.0) for t in distinct.values()])
    runs = curves(trials).values()
    growth = [smooth(np.array([_number(t["validation_log_growth"], math.nan) for t in run])) for run in runs]
    highest = [float(np.nanmax(g)) for g in growth if np.isfinite(g).any()]
    return TrialSummary(
        count=len(distinct),
        seeds=len({t["seed"] for t in trials}),
        configs=len({t.get("config_hash") for t in trials}),
        sharpe_std=float(sharpes.std(ddof=1)) if sharpes.size > 1 else 0.0,
        best_sharpe=float(sharpes.max()) if sharpes.size else math.nan,
        best_log_growth=max(highest, default=math.nan),
    )


def curves(trials: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, Any], list[Mapping[str, Any]]]:
    """Trials by (config_hash, seed), each in the order of training; of repeated ones the last."""
    out: dict[tuple[Any, Any], dict[int, Mapping[str, Any]]] = {}
    for trial in trials:
        out.setdefault((trial.get("config_hash"), trial["seed"]), {})[int(trial["step"])] = trial
    return {key: [run[step] for step in sorted(run)] for key, run in out.items()}


def smooth(values: Floats, *, window: int = 3) -> Floats:
    """Moving average of ``window`` checkpoints, by which a choice is made.

    Returns:
        (n,) float64: the mean of each value and the ones before it. While fewer than ``window`` exist there
        is none (``nan``), unless the whole run has fewer: then all of them are averaged, at its last.
    """
    window = min(window, values.shape[0])
    out = np.full(values.shape[0], np.nan)
    for i in range(window - 1, values.shape[0]):
        out[i] = values[i - window + 1 : i + 1].mean()
    return out


def _number(value: Any, missing: float) -> float:
    return missing if value is None else float(value)
