"""Reads any CSV, parquet or feather table with named columns, or takes pandas frames as they are."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from perpgym.data.align import align
from perpgym.data.bars import Bars
from perpgym.data.clock import timeframe_ms
from perpgym.data.contract import Contract, load_contract
from perpgym.data.errors import DataError
from perpgym.data.frames import RawFrames, funding_frame, kline_frame, times

_LOG = logging.getLogger(__name__)


def read_table(
    path: str,
    symbol: str,
    timeframe: str | None = None,
    *,
    funding_path: str | None = None,
    mark_path: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> RawFrames:
    """Read one contract from tables; any path that pandas reads, so fsspec addresses too.

    Args:
        path: table of bars.
        symbol: ccxt's unified symbol.
        timeframe: of the bars; None takes the usual step between rows.
        funding_path: table of settlements with a time and a rate.
        mark_path: table of mark-price bars.
        columns: by our name (``time``, ``open``, ``high``, ``low``, ``close``, ``volume``, ``rate``) the
            table's name where it differs; usual names are found without it.

    Raises:
        DataError: a file is missing, damaged or lacks a column.
    """
    return frames_from_pandas(
        _read(path),
        symbol,
        timeframe,
        funding=None if funding_path is None else _read(funding_path),
        mark=None if mark_path is None else _read(mark_path),
        columns=columns,
        origin={
            "last": path,
            "mark": mark_path or "no mark_path",
            "funding": funding_path or "no funding_path",
        },
        source=f"table {path}",
    )


def frames_from_pandas(
    last: pd.DataFrame,
    symbol: str,
    timeframe: str | None = None,
    *,
    funding: pd.DataFrame | None = None,
    mark: pd.DataFrame | None = None,
    columns: Mapping[str, str] | None = None,
    origin: Mapping[str, str] | None = None,
    source: str = "pandas frames",
) -> RawFrames:
    """Settle the columns of pandas frames; the arguments are those of :func:`read_table`.

    Raises:
        DataError: a column is missing, or the timeframe cannot be told.
    """
    origin = origin or {"last": "frame of bars", "mark": "frame of the mark", "funding": "frame of funding"}
    columns = columns or {}
    klines = kline_frame(last, origin["last"], columns=columns)
    # the mapping is the bars'; the other tables need not follow it
    return RawFrames(
        symbol=symbol,
        bar_ms=timeframe_ms(timeframe) if timeframe is not None else usual_step_ms(klines, origin["last"]),
        last=klines,
        mark=None
        if mark is None
        else kline_frame(mark, origin["mark"], columns=_held(columns, mark), volume=False),
        funding=None
        if funding is None
        else funding_frame(funding, origin["funding"], columns=_held(columns, funding)),
        origin=origin,
        source=source,
    )


def bars_from_frames(
    last: pd.DataFrame,
    *,
    funding: pd.DataFrame | None = None,
    mark: pd.DataFrame | None = None,
    contract: str | Contract = "BTC/USDT:USDT",
    repair: Collection[str] = (),
) -> Bars:
    """Checked bars straight from pandas frames.

    Args:
        last: bars, see :func:`read_table` for the columns' names.
        funding: settlements; None means that nothing is ever charged, and logs it.
        mark: mark-price bars; None is the named rule ``mark=last``, and logs it.
        contract: a shipped symbol, or rules of your own.
        repair: named rules of ``quality.REPAIRS`` by which faults may be repaired.

    Raises:
        DataError: a column is missing, or a fault that no named rule repairs was found.
        KeyError: no rules ship for the symbol.
    """
    rules = load_contract(contract) if isinstance(contract, str) else contract
    raw = frames_from_pandas(last, rules.symbol, funding=funding, mark=mark)
    allowed = (*repair, "no_funding") if funding is None else tuple(repair)
    aligned = align(raw, rules, repair=allowed)
    for note in aligned.notes:
        _LOG.warning("%s", note)
    return aligned.bars


def usual_step_ms(frame: pd.DataFrame, origin: str) -> int:
    """The most common step between the rows' times, in whole minutes.

    Raises:
        DataError: fewer than two rows, or a step below a minute.
    """
    step = np.diff(np.sort(times(frame)))
    values, counts = np.unique(step[step > 0], return_counts=True)
    usual = int(values[counts.argmax()]) if values.size else 0
    if usual < 60_000 or usual % 60_000:
        raise DataError(f"{origin}: cannot tell the timeframe from {len(frame)} rows; name it as `timeframe`")
    return usual


def _held(columns: Mapping[str, str], frame: pd.DataFrame) -> dict[str, str]:
    names = {str(c).lower() for c in frame.columns}
    return {ours: theirs for ours, theirs in columns.items() if theirs.lower() in names}


def _read(path: str) -> pd.DataFrame:
    try:
        if path.endswith((".parquet", ".pq")):
            return pd.read_parquet(path)
        if path.endswith(".feather"):
            return pd.read_feather(path)
        if path.endswith((".csv", ".csv.gz", ".csv.zip", ".txt")):
            return pd.read_csv(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: the file is damaged or cut off ({error}); get it again") from None
    raise DataError(f"{path}: a table must end in .csv, .csv.gz, .parquet or .feather")
