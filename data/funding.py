"""Whether the settlements of a contract are whole: their order, cadence, holes and span."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perpgym.data.clock import MINUTE_MS, iso
from perpgym.data.frames import rows_where, times
from perpgym.data.quality import MAX_FILL_MS, Inspection, settle_order

_HOUR_MS = 60 * MINUTE_MS


def settle_funding(
    frame: pd.DataFrame,
    *,
    first_open_ms: int,
    last_close_ms: int,
    interval_ms: int,
    cap: float,
    inspection: Inspection,
) -> pd.DataFrame:
    """Report every fault of a funding series and return it whole, on minutes, within the bars' span.

    Args:
        frame: columns ``FUNDING_COLUMNS``, as found.
        first_open_ms, last_close_ms: UTC, what the bars span.
        interval_ms: the contract's usual time between settlements.
        cap: the contract's largest absolute rate per settlement.
        inspection: takes the findings.
    """
    frame = settle_stamps(frame, inspection)
    _note_large_rates(frame, cap, inspection)
    frame = _fill_holes(frame, first_open_ms, last_close_ms, interval_ms, inspection)
    owned = (times(frame) > first_open_ms) & (times(frame) <= last_close_ms)
    return rows_where(frame, owned)


def settle_stamps(frame: pd.DataFrame, inspection: Inspection) -> pd.DataFrame:
    """Report faults of single stamps, and return them on minutes, in order, each once and with a rate."""
    frame = settle_order(frame.assign(time_ms=_to_minute(times(frame))), inspection)
    missing = ~np.isfinite(frame["rate"].to_numpy(dtype=np.float64))
    if not missing.any():
        return frame
    first = int(times(frame)[missing][0])
    text = f"{missing.sum()} settlements have no rate, the first at {iso(first)}"
    inspection.fault("nan", first, int(missing.sum()), text, "drop_invalid")
    return rows_where(frame, ~missing)


def _to_minute(time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    # stamps are off by milliseconds in the exchange's own records
    return (time_ms + MINUTE_MS // 2) // MINUTE_MS * MINUTE_MS


def _note_large_rates(frame: pd.DataFrame, cap: float, inspection: Inspection) -> None:
    large = np.abs(frame["rate"].to_numpy(dtype=np.float64)) > cap
    if large.any():
        first = int(times(frame)[large][0])
        text = f"{large.sum()} rates exceed the cap of {cap:g} per settlement, the first at {iso(first)}"
        inspection.note("rate_cap", first, int(large.sum()), "warning", text)


def _fill_holes(
    frame: pd.DataFrame, first_open_ms: int, last_close_ms: int, interval_ms: int, inspection: Inspection
) -> pd.DataFrame:
    time = times(frame)
    usual = _usual_interval(time, interval_ms, inspection)
    first, last = (int(time[0]), int(time[-1])) if time.size else (last_close_ms, first_open_ms)
    if first - first_open_ms > max(usual, interval_ms):
        text = f"settlements begin at {iso(first)}, but bars at {iso(first_open_ms)}"
        inspection.fault(
            "funding_starts_late", first_open_ms, 1, text, None, f"set start to {iso(first)} or later"
        )
    # the stamp at the very end of the bars is often not in the file yet
    end = last_close_ms + 1 if last_close_ms - last > max(usual, interval_ms) else last
    holes = _holes(time, usual, interval_ms)
    if end > last and time.size:
        holes = np.append(holes, time.size - 1)
    if holes.size == 0:
        return frame
    following = np.append(time, end)
    added = [_missing_stamps(time, int(i), int(following[i + 1]), usual) for i in holes]
    count = sum(stamps.size for stamps in added)
    _report_holes(time, holes, following, count, inspection)
    rate = frame["rate"].to_numpy(dtype=np.float64)
    filled = [pd.DataFrame({"time_ms": s, "rate": rate[i]}) for s, i in zip(added, holes, strict=True)]
    return pd.concat([frame, *filled], ignore_index=True).sort_values("time_ms", ignore_index=True)


def _usual_interval(time: NDArray[np.int64], interval_ms: int, inspection: Inspection) -> int:
    if time.size < 2:
        return interval_ms
    values, counts = np.unique(np.diff(time), return_counts=True)
    usual = int(values[counts.argmax()])
    if usual % _HOUR_MS or 24 * _HOUR_MS % usual:
        text = (
            f"settlements are usually {usual / _HOUR_MS:g} hours apart, which divides no day into whole hours"
        )
        inspection.note("funding_cadence", int(time[0]), time.size, "warning", text)
    other = int(counts.sum() - counts.max())
    if other:
        odd = int(time[1:][np.diff(time) != usual][0])
        hours = f"{usual / _HOUR_MS:g} hours"
        text = f"{other} of {counts.sum()} intervals are not the usual {hours}, the first ends {iso(odd)}"
        inspection.note("funding_cadence", odd, other, "info", text)
    return usual


def _holes(time: NDArray[np.int64], usual: int, interval_ms: int) -> NDArray[np.int64]:
    """Indices of the stamps after which one is missing.

    An interval is a hole if it is longer than any usual one, or than both its neighbours while the
    contract settles more often than it used to.
    """
    step = np.diff(time)
    if step.size == 0:
        return step
    before = np.concatenate((step[:1], step[:-1]))
    after = np.concatenate((step[1:], step[-1:]))
    longest = np.maximum(np.maximum(before, after), usual)
    alone = (step > longest) & (step.size > 1)
    return np.flatnonzero((step > max(usual, interval_ms)) | alone)


def _missing_stamps(time: NDArray[np.int64], index: int, until: int, usual: int) -> NDArray[np.int64]:
    """The times strictly between a stamp and the next at the interval in force before the hole."""
    step = int(time[index] - time[index - 1]) if index > 0 else usual
    step = step if step <= usual else usual
    return np.arange(time[index] + step, until, step, dtype=np.int64)


def _report_holes(
    time: NDArray[np.int64],
    holes: NDArray[np.int64],
    following: NDArray[np.int64],
    count: int,
    inspection: Inspection,
) -> None:
    first = int(time[holes[0]])
    text = f"about {count} settlements are missing after {iso(first)}"
    text += f" and {holes.size - 1} other times" if holes.size > 1 else ""
    longest = int((following[holes + 1] - time[holes]).max())
    if longest > MAX_FILL_MS:
        text += f"; the longest hole of {longest / _HOUR_MS:g} hours is too long to fill"
        inspection.fault(
            "funding_holes", first, count, text, None, "get the missing settlements or cut the dates"
        )
    else:
        inspection.fault("funding_holes", first, count, text, "fill_funding")
