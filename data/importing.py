"""Takes a source's frames into the store, refusing what no later check could tell any more."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from perpgym.data.align import inspect
from perpgym.data.clock import timeframe_name
from perpgym.data.contract import Contract
from perpgym.data.frames import RawFrames, times
from perpgym.data.funding import settle_stamps
from perpgym.data.quality import Finding, Inspection, refuse_errors, settle_klines, settle_order
from perpgym.data.store import Kind, SeriesKey, Store

# the store keeps holes as they are, so loading finds and judges them again
_JUDGED_AT_LOADING = ("gaps", "mark_gaps", "funding_holes", "funding_starts_late", "basis")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import did.

    Attributes:
        rows: by series, how many are new in the store.
        findings: of the quality checks; errors among them are holes, which loading will refuse.
    """

    rows: dict[Kind, int]
    findings: tuple[Finding, ...]

    @property
    def repairs_at_loading(self) -> tuple[str, ...]:
        """Rules that loading needs again: the store keeps what is missing as missing."""
        holes = (*_JUDGED_AT_LOADING, "funding_missing")
        return tuple(sorted({f.repair for f in self.findings if f.rule in holes and f.repair is not None}))


def import_frames(
    raw: RawFrames, store: Store, exchange: str, contract: Contract, *, repair: Collection[str] = ()
) -> Imported:
    """Check one contract's frames and append them to the store.

    Args:
        raw: the frames.
        store: takes them.
        exchange: ccxt's exchange id to keep them under.
        contract: its rules, for the checks.
        repair: named rules by which faults may be repaired.

    Raises:
        DataError: a fault that is no mere hole, and that no named rule repairs. Nothing was stored.
    """
    findings = inspect(raw, contract, repair=repair).findings
    refuse_errors([f for f in findings if f.rule not in _JUDGED_AT_LOADING], raw.symbol)
    settled = _settled(raw)
    rows: dict[Kind, int] = {}
    for kind, frame in settled.items():
        timeframe = "" if kind == "funding" else timeframe_name(raw.bar_ms)
        key = SeriesKey(exchange=exchange, symbol=raw.symbol, kind=kind, timeframe=timeframe)
        step = 1 if kind == "funding" else raw.bar_ms
        covered = (int(times(frame)[0]), int(times(frame)[-1]) + step)
        rows[kind] = store.append(key, frame, covered=covered)
    return Imported(rows=rows, findings=findings)


def _settled(raw: RawFrames) -> dict[Kind, pd.DataFrame]:
    """The series without the rows at fault, which were reported or refused before."""
    silent = Inspection(series="", origin="", repair=())
    frames: dict[Kind, pd.DataFrame] = {"last": settle_klines(raw.last, raw.bar_ms, silent)}
    if raw.mark is not None:
        frames["mark"] = settle_klines(raw.mark, raw.bar_ms, silent)
    if raw.funding is not None:
        frames["funding"] = settle_stamps(raw.funding, silent)
    if raw.premium is not None:
        frames["premium"] = settle_order(raw.premium, silent)
    return {kind: frame for kind, frame in frames.items() if len(frame)}
