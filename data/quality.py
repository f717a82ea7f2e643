"""What is wrong with a series, and the few named rules by which it may be put right.

Each check reports one :class:`Finding` with time, count and the rule that would repair it. A repair happens
only where the caller named its rule; otherwise the finding stays an error and training refuses the data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perpgym.data.clock import DAY_MS, iso, timeframe_name
from perpgym.data.errors import DataError
from perpgym.data.frames import rows_where, times

Severity = Literal["error", "warning", "info"]

# by name what each one does; the command line prints these as they stand
REPAIRS = {
    "sort": "put the rows in order of time",
    "drop_duplicates": "of rows with the same time keep the one that comes later",
    "drop_invalid": "drop rows with missing or impossible prices; they become gaps",
    "fill_flat": "a missing bar has the previous close as its four prices and no volume, so nothing trades",
    "mark_from_last": "a missing mark bar is a copy of the last price's bar",
    "fill_funding": "a missing settlement has the rate of the one before it",
    "no_funding": "without a funding series, nothing is ever charged",
}

# A longer hole is another market afterwards; SOL's and XRP's known ones are 72 and 48 hours.
MAX_FILL_MS = 5 * DAY_MS
# log distance of a bar's furthest price from the median of the closes around it
SPIKE_WARNING = float(np.log(1.3))
SPIKE_ERROR = float(np.log(5.0))
# equal steps in a row, other than the bar length, that a series of gaps does not make
_MIXED_RUN = 3

Prices = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of fault in one series.

    Attributes:
        rule: the check's name.
        series: ``last``, ``mark`` or ``funding``.
        time_ms: UTC, where it happens first.
        count: how many rows, bars or stamps are touched.
        severity: an ``error`` keeps the data out of training.
        message: for people; names the file.
        repair: the named rule of ``REPAIRS`` that would repair it (or has, if no longer an error).
    """

    rule: str
    series: str
    time_ms: int
    count: int
    severity: Severity
    message: str
    repair: str | None = None


def check_repairs(names: Iterable[str]) -> tuple[str, ...]:
    """The names themselves, if each is a known rule.

    Raises:
        ValueError: a name is unknown.
    """
    names = tuple(names)
    unknown = sorted(set(names) - set(REPAIRS))
    if unknown:
        raise ValueError(f"unknown repair rules {unknown}; known are:\n{describe_repairs()}")
    return names


def describe_repairs() -> str:
    """A line for each rule: its name and what it does."""
    width = max(len(name) for name in REPAIRS)
    return "\n".join(f"  {name:<{width}}  {what}" for name, what in REPAIRS.items())


def refuse_errors(findings: Iterable[Finding], title: str) -> None:
    """Raise one error that lists every finding which nobody allowed to be repaired.

    Raises:
        DataError: there is at least one.
    """
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        lines = "\n".join(f"  - {f.message}" for f in errors)
        raise DataError(f"{title}: the data cannot be used as they are:\n{lines}")


class Inspection:
    """Collects the findings of one series and knows which repairs are allowed."""

    def __init__(self, *, series: str, origin: str, repair: Collection[str]) -> None:
        self.series = series
        self.origin = origin
        self.repair = repair
        self.findings: list[Finding] = []

    def fault(
        self, rule: str, time_ms: int, count: int, text: str, repair: str | None, advice: str = ""
    ) -> None:
        """Report a fault: an error, unless its repair was named."""
        allowed = repair is not None and repair in self.repair
        if repair is None:
            ending = advice
        elif allowed:
            ending = f"repaired by the rule {repair}: {REPAIRS[repair]}"
        else:
            ending = (
                f"to have it repaired, name the rule {repair} (data.repair=[{repair}], or "
                f"--repair {repair} of python -m perpgym.data): {REPAIRS[repair]}"
            )
        severity: Severity = "warning" if allowed else "error"
        self._add(rule, time_ms, count, severity, f"{text}; {ending}", repair)

    def note(self, rule: str, time_ms: int, count: int, severity: Severity, text: str) -> None:
        """Report something that keeps nothing from being used."""
        self._add(rule, time_ms, count, severity, text, None)

    def _add(
        self, rule: str, time_ms: int, count: int, severity: Severity, text: str, repair: str | None
    ) -> None:
        self.findings.append(
            Finding(
                rule=rule,
                series=self.series,
                time_ms=int(time_ms),
                count=int(count),
                severity=severity,
                message=f"{self.origin}: {text}",
                repair=repair,
            )
        )


def settle_order(frame: pd.DataFrame, inspection: Inspection) -> pd.DataFrame:
    """Report rows out of order and repeated times, and return the rows in order, each time once."""
    time = times(frame)
    backwards = np.flatnonzero(np.diff(time) < 0)
    if backwards.size:
        first = int(time[backwards[0] + 1])
        text = f"the rows are not sorted by time: {backwards.size} step back, the first to {iso(first)}"
        inspection.fault("unsorted", first, backwards.size, text, "sort")
        frame = frame.sort_values("time_ms", kind="stable", ignore_index=True)
    repeated = frame.duplicated("time_ms", keep="last").to_numpy()
    if repeated.any():
        first = int(times(frame)[repeated][0])
        differ = int(repeated.sum() - frame.duplicated(keep="last").to_numpy().sum())
        text = f"{repeated.sum()} rows repeat a time ({differ} with other values), the first at {iso(first)}"
        inspection.fault("duplicates", first, repeated.sum(), text, "drop_duplicates")
        frame = rows_where(frame, ~repeated)
    return frame


def settle_klines(frame: pd.DataFrame, bar_ms: int, inspection: Inspection) -> pd.DataFrame:
    """Report every fault within a series of bars, and return it without the rows at fault.

    Gaps are left to :func:`check_gaps`. The result is in order, on one grid, with possible prices only.
    """
    frame = settle_order(frame, inspection)
    if _report_mixed_timeframes(frame, bar_ms, inspection):
        on_grid = (times(frame) - times(frame)[0]) % bar_ms == 0
        frame = rows_where(frame, on_grid)
    impossible = _impossible_rows(frame, inspection)
    return rows_where(frame, ~impossible) if impossible.any() else frame


def _report_mixed_timeframes(frame: pd.DataFrame, bar_ms: int, inspection: Inspection) -> bool:
    time = times(frame)
    if time.size < 2:
        return False
    step = np.diff(time)
    off_grid = (time - time[0]) % bar_ms != 0
    odd = np.append(step != bar_ms, False)
    run = odd[:-1].copy()
    for shift in range(1, _MIXED_RUN):
        run[: max(run.size - shift, 0)] &= odd[shift:-1] & (step[shift:] == step[:-shift])
        run[max(run.size - shift, 0) :] = False
    if not off_grid.any() and not run.any():
        return False
    where = int(off_grid.argmax()) if off_grid.any() else int(run.argmax())
    steps = ", ".join(_duration(int(s)) for s in np.unique(step)[:4])
    inspection.fault(
        "mixed_timeframes",
        int(time[where]),
        int(max(off_grid.sum(), run.sum())),
        f"not all bars are {timeframe_name(bar_ms)} long: from {iso(int(time[where]))} on steps are {steps}",
        None,
        "keep each timeframe in a file of its own and name the one to use as `timeframe`",
    )
    return True


def _duration(step_ms: int) -> str:
    return timeframe_name(step_ms) if step_ms > 0 and step_ms % 60_000 == 0 else f"{step_ms} ms"


def _impossible_rows(frame: pd.DataFrame, inspection: Inspection) -> NDArray[np.bool_]:
    time = times(frame)
    price = frame[["open", "high", "low", "close"]].to_numpy(dtype=np.float64)
    volume = frame["volume"].to_numpy(dtype=np.float64)
    missing = ~np.isfinite(price).all(axis=1) | ~np.isfinite(volume)
    negative = ~missing & ((price <= 0).any(axis=1) | (volume < 0))
    crossed = ~missing & ((price[:, 1] < price.max(axis=1)) | (price[:, 2] > price.min(axis=1)))
    usable = ~(missing | negative | crossed)
    spike = np.zeros(time.size)
    spike[usable] = _departure(price[usable])
    for rule, at_fault, text in (
        ("nan", missing, "have NaN or infinite values"),
        ("non_positive", negative, "have a price of zero or less, or a negative volume"),
        (
            "ohlc",
            crossed & ~negative,
            "have a high that is not the highest or a low that is not the lowest price",
        ),
        ("bad_tick", spike > SPIKE_ERROR, "have a price over 5 times off the closes around it"),
    ):
        if at_fault.any():
            first = int(time[at_fault][0])
            told = f"{at_fault.sum()} rows {text}, the first at {iso(first)}"
            inspection.fault(rule, first, int(at_fault.sum()), told, "drop_invalid")
    jumps = (spike > SPIKE_WARNING) & (spike <= SPIKE_ERROR)
    if jumps.any():
        first = int(time[jumps][0])
        text = (
            f"{jumps.sum()} bars have a price over 30 % off the closes around them, the first at {iso(first)}"
        )
        inspection.note("spikes", first, int(jumps.sum()), "warning", text)
    return np.asarray(~usable | (spike > SPIKE_ERROR), dtype=bool)


def _departure(price: Prices) -> Prices:
    """(N,) largest absolute log distance of a bar's prices from the median close of it and its neighbours."""
    close = price[:, 3]
    if close.size == 0:
        return close
    before = np.concatenate((close[:1], close[:-1]))
    after = np.concatenate((close[1:], close[-1:]))
    middle = np.median(np.stack((before, close, after)), axis=0)
    return np.asarray(np.abs(np.log(price / middle[:, None])).max(axis=1))


def check_gaps(time_ms: NDArray[np.int64], bar_ms: int, inspection: Inspection) -> None:
    """Report bars that are missing between the first and the last; only a short gap may be filled."""
    step = np.diff(time_ms)
    for too_long in (False, True):
        at = np.flatnonzero((step > bar_ms) & ((step - bar_ms > MAX_FILL_MS) == too_long))
        if at.size == 0:
            continue
        bars = int((step[at] // bar_ms - 1).sum())
        first = int(time_ms[at[0]] + bar_ms)
        text = f"{bars} bars are missing in {at.size} gap(s), the first from {iso(first)}"
        if too_long:
            text += f", longer than the {MAX_FILL_MS // 3_600_000} hours that may be filled"
            inspection.fault("gaps", first, bars, text, None, f"start after {iso(int(time_ms[at[-1] + 1]))}")
        else:
            inspection.fault("gaps", first, bars, text, "fill_flat")


def check_basis(time_ms: NDArray[np.int64], last: Prices, mark: Prices, inspection: Inspection) -> None:
    """Report how far the mark strays from the last price; two different markets are an error.

    Args:
        time_ms: (N,) int64.
        last: (N,) float64 quote, closes of traded prices.
        mark: (N,) float64 quote, closes of the mark.
        inspection: of the mark series.
    """
    distance = np.abs(np.log(mark / last))
    middle = float(np.median(distance))
    if middle > 0.05:
        text = f"half of the mark closes lie over {middle:.0%} off the last price, as of another contract"
        inspection.fault("basis", int(time_ms[0]), time_ms.size, text, None, "check the files")
        return
    far = distance > 0.05
    if far.any():
        first = int(time_ms[far][0])
        text = f"{far.sum()} mark closes lie over 5 % off the last price, at most {distance.max():.1%}"
        text += f", the first at {iso(first)}"
        inspection.note("basis", first, int(far.sum()), "warning", text)
