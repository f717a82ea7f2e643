"""From a source's raw frames to the bars of one contract on one clock."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perpgym.data.bars import Bars, MarkRule
from perpgym.data.clock import iso, timeframe_name
from perpgym.data.contract import Contract
from perpgym.data.errors import DataError
from perpgym.data.frames import FUNDING_COLUMNS, RawFrames, empty_frame, times
from perpgym.data.funding import settle_funding
from perpgym.data.quality import (
    Finding,
    Inspection,
    check_basis,
    check_gaps,
    check_repairs,
    refuse_errors,
    settle_klines,
    settle_order,
)

MarkPolicy = Literal["require", "last", "auto"]
MARK_POLICIES: tuple[MarkPolicy, ...] = ("require", "last", "auto")

_FUNDING_SOURCES = (
    "freqtrade download-data --trading-mode futures, monthly/fundingRate of Binance Vision, or funding_path"
)
_PRICES = ["open", "high", "low", "close"]
# a perpetual at twice its index, or half of it, is a broken record
_ABSURD_PREMIUM = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Aligned:
    """Bars, and everything that was found or assumed on the way.

    Attributes:
        bars: as they would be with every fault repaired; to be used only if no finding is an error.
        findings: of all series, in the order of the checks.
        notes: sentences for the log and the report.
    """

    bars: Bars
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def inspect(
    raw: RawFrames, contract: Contract, *, repair: Collection[str] = (), mark: MarkPolicy = "auto"
) -> Aligned:
    """Check and align without refusing: for reports on data; :func:`align` is for training.

    Args:
        raw: one contract's series.
        contract: its rules.
        repair: the named rules (``quality.REPAIRS``) by which faults may be repaired.
        mark: ``require`` the exchange's mark series; ``last`` copies traded prices; ``auto`` takes the mark
            series if there is one and else ``last``, which is written on the bars and in the notes.

    Raises:
        DataError: there is nothing to align.
        ValueError: a rule is unknown.
    """
    check_repairs(repair)
    if mark not in MARK_POLICIES:
        raise ValueError(f"mark must be one of {', '.join(MARK_POLICIES)}, was {mark!r}")
    last_series = _inspection(raw, "last", repair)
    last = settle_klines(raw.last, raw.bar_ms, last_series)
    if last.empty:
        raise DataError(f"{last_series.origin}: no usable bar of {raw.symbol} is left; get the file again")
    found = times(last)
    check_gaps(found, raw.bar_ms, last_series)
    open_time = np.arange(found[0], found[-1] + 1, raw.bar_ms, dtype=np.int64)
    prices, volume, present = _fill_flat(last, open_time)
    mark_series = _inspection(raw, "mark", repair)
    mark_prices, mark_rule, notes = _align_mark(raw, open_time, prices, present, mark, mark_series)
    stamps, funding_series = _align_funding(raw, contract, open_time, repair)
    premium, premium_series = _align_premium(raw, open_time, repair)
    bars = Bars(
        contract=contract,
        bar_ms=raw.bar_ms,
        open_time_ms=open_time,
        last=prices,
        mark=mark_prices,
        volume=volume,
        stamp_time_ms=times(stamps),
        stamp_rate=stamps["rate"].to_numpy(dtype=np.float64),
        premium=premium,
        mark_rule=mark_rule,
    )
    series = (last_series, mark_series, funding_series, premium_series)
    findings = tuple(finding for one in series for finding in one.findings)
    repaired = tuple(f.message for f in findings if f.repair is not None and f.severity != "error")
    return Aligned(bars=bars, findings=findings, notes=(*raw.notes, *notes, *repaired))


def align(
    raw: RawFrames, contract: Contract, *, repair: Collection[str] = (), mark: MarkPolicy = "auto"
) -> Aligned:
    """Bars fit for training; the arguments are those of :func:`inspect`.

    Raises:
        DataError: a fault was found that no named rule repairs; the message lists all of them.
        ValueError: a rule is unknown.
    """
    aligned = inspect(raw, contract, repair=repair, mark=mark)
    refuse_errors(aligned.findings, raw.symbol)
    return aligned


def _inspection(raw: RawFrames, series: str, repair: Collection[str]) -> Inspection:
    return Inspection(series=series, origin=raw.origin.get(series, raw.source), repair=repair)


def _fill_flat(
    frame: pd.DataFrame, open_time: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """(T, 4) prices, (T,) volume, and whether a bar is there: else nothing trades at the last close."""
    row = np.searchsorted(times(frame), open_time, side="right") - 1
    present = times(frame)[row] == open_time
    prices = frame[_PRICES].to_numpy(dtype=np.float64)[row]
    prices[~present] = prices[~present, 3:4]
    volume = np.where(present, frame["volume"].to_numpy(dtype=np.float64)[row], 0.0)
    return prices, volume, present


def _align_mark(
    raw: RawFrames,
    open_time: NDArray[np.int64],
    last: NDArray[np.float64],
    traded: NDArray[np.bool_],
    policy: MarkPolicy,
    inspection: Inspection,
) -> tuple[NDArray[np.float64], MarkRule, tuple[str, ...]]:
    """(T, 4) mark prices, the rule they follow, and what to say about it."""
    timeframe = timeframe_name(raw.bar_ms)
    if policy == "last" or raw.mark is None or raw.mark.empty:
        why = (
            "as asked for"
            if policy == "last"
            else f"because there is no {timeframe} mark series in {raw.source}"
        )
        if policy == "require":
            text = f"there is no {timeframe} mark series of {raw.symbol}"
            advice = "get it, or set mark to last: liquidations then follow the wider traded prices"
            inspection.fault("mark_missing", int(open_time[0]), open_time.size, text, None, advice)
        return (
            last.copy(),
            "last",
            (f"{raw.symbol}: mark=last, {why}; expect liquidations that the mark would spare",),
        )
    mark = settle_klines(raw.mark, raw.bar_ms, inspection)
    row = np.clip(np.searchsorted(times(mark), open_time), 0, max(len(mark) - 1, 0))
    present = times(mark)[row] == open_time if len(mark) else np.zeros(open_time.size, dtype=bool)
    prices = last.copy()
    prices[present] = mark[_PRICES].to_numpy(dtype=np.float64)[row[present]]
    if not present.all():
        first = int(open_time[~present][0])
        text = f"{(~present).sum()} of {present.size} bars have no mark price, the first at {iso(first)}"
        inspection.fault("mark_gaps", first, int((~present).sum()), text, "mark_from_last")
    both = present & traded
    if both.any():
        check_basis(open_time[both], last[both, 3], prices[both, 3], inspection)
    return prices, "mark", ()


def _align_funding(
    raw: RawFrames, contract: Contract, open_time: NDArray[np.int64], repair: Collection[str]
) -> tuple[pd.DataFrame, Inspection]:
    inspection = _inspection(raw, "funding", repair)
    if raw.funding is None or raw.funding.empty:
        text = f"there is no funding series of {raw.symbol}; get the settlements ({_FUNDING_SOURCES})"
        inspection.fault("funding_missing", int(open_time[0]), 1, text, "no_funding")
        return empty_frame(FUNDING_COLUMNS), inspection
    frame = settle_funding(
        raw.funding,
        first_open_ms=int(open_time[0]),
        last_close_ms=int(open_time[-1]) + raw.bar_ms,
        interval_ms=contract.funding_interval_ms,
        cap=contract.funding_cap,
        inspection=inspection,
    )
    return frame, inspection


def _align_premium(
    raw: RawFrames, open_time: NDArray[np.int64], repair: Collection[str]
) -> tuple[NDArray[np.float64] | None, Inspection]:
    """(T,) the premium index at each close, nan where the source has none; nothing is booked at it."""
    inspection = _inspection(raw, "premium", repair)
    if raw.premium is None or raw.premium.empty:
        return None, inspection
    frame = settle_order(raw.premium, inspection)
    row = np.clip(np.searchsorted(times(frame), open_time), 0, len(frame) - 1)
    rate = frame["rate"].to_numpy(dtype=np.float64)[row]
    known = (times(frame)[row] == open_time) & (np.abs(rate) < _ABSURD_PREMIUM)
    if not known.all():
        first = int(open_time[~known][0])
        text = f"{(~known).sum()} of {known.size} bars have no premium index, the first at {iso(first)}"
        inspection.note("premium_gaps", first, int((~known).sum()), "info", text)
    return np.where(known, rate, np.nan), inspection
