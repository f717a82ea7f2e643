"""What a source hands over: bars and funding as they were found, with their column names settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perpgym.data.clock import iso
from perpgym.data.errors import DataError

KLINE_COLUMNS = ("time_ms", "open", "high", "low", "close", "volume")
FUNDING_COLUMNS = ("time_ms", "rate")

_TIME_NAMES = ("time_ms", "date", "datetime", "timestamp", "time", "open_time", "calc_time", "fundingtime")
_RATE_NAMES = ("rate", "funding_rate", "fundingrate", "last_funding_rate", "open")


@dataclass(frozen=True, kw_only=True, eq=False)
class RawFrames:
    """One contract's series as a source found them: unchecked and unaligned.

    Attributes:
        symbol: ccxt's unified symbol.
        bar_ms: length of a bar, milliseconds, as the source names it.
        last: columns ``KLINE_COLUMNS``; traded prices in quote, volume in base.
        mark: the same for the mark price, or None where the source has none at this timeframe.
        funding: columns ``FUNDING_COLUMNS``, or None where the source has none.
        premium: the premium index by bars, with the same columns, or None.
        origin: by series (``last``, ``mark``, ``funding``, ``premium``), the file or place it came from.
        source: the whole source in words for people.
        notes: what the source wants people to know.
    """

    symbol: str
    bar_ms: int
    last: pd.DataFrame
    mark: pd.DataFrame | None
    funding: pd.DataFrame | None
    origin: Mapping[str, str]
    source: str
    premium: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()

    def between(self, start_ms: int | None, end_ms: int | None) -> RawFrames:
        """Only bars that open in [start, end), and the settlements from ``start`` to the end, inclusive.

        Raises:
            DataError: no bar is left.
        """
        last = _between(self.last, start_ms, end_ms)
        if last.empty:
            raise DataError(_nothing_left(self, start_ms, end_ms))
        # the stamp at the end instant belongs to the bar that closes there
        stamp_end = None if end_ms is None else end_ms + 60_000
        return replace(
            self,
            last=last,
            mark=None if self.mark is None else _between(self.mark, start_ms, end_ms),
            funding=None if self.funding is None else _between(self.funding, start_ms, stamp_end),
            premium=None if self.premium is None else _between(self.premium, start_ms, end_ms),
        )


def _between(frame: pd.DataFrame, start_ms: int | None, end_ms: int | None) -> pd.DataFrame:
    time = times(frame)
    keep = np.ones(time.shape[0], dtype=bool)
    if start_ms is not None:
        keep &= time >= start_ms
    if end_ms is not None:
        keep &= time < end_ms
    return frame if keep.all() else rows_where(frame, keep)


def _nothing_left(raw: RawFrames, start_ms: int | None, end_ms: int | None) -> str:
    origin = raw.origin.get("last", raw.source)
    if raw.last.empty:
        return f"{origin}: the file holds no bars of {raw.symbol}; download it again"
    time = times(raw.last)
    first = "the beginning" if start_ms is None else iso(start_ms)
    asked = f"{first} to {'the end' if end_ms is None else iso(end_ms)}"
    return (
        f"{origin}: no bar of {raw.symbol} lies in {asked}; the file covers {iso(int(time.min()))} to "
        f"{iso(int(time.max()))}. Change start and end, or get data for those dates"
    )


def times(frame: pd.DataFrame) -> NDArray[np.int64]:
    """(N,) int64 UTC milliseconds of a settled frame."""
    return frame["time_ms"].to_numpy(dtype=np.int64)


def rows_where(frame: pd.DataFrame, keep: NDArray[np.bool_]) -> pd.DataFrame:
    """The rows where ``keep`` (N,) is true, numbered from 0."""
    kept: pd.DataFrame = frame.loc[keep].reset_index(drop=True)
    return kept


def empty_frame(columns: tuple[str, ...]) -> pd.DataFrame:
    """A settled frame without rows."""
    return pd.DataFrame({c: np.empty(0, np.int64 if c == "time_ms" else np.float64) for c in columns})


def kline_frame(
    frame: pd.DataFrame, origin: str, *, columns: Mapping[str, str] | None = None, volume: bool = True
) -> pd.DataFrame:
    """Settle the columns of a table of bars to ``KLINE_COLUMNS``, in the order of its rows.

    Args:
        frame: any table with a time (a column, or the index) and open, high, low, close.
        origin: what to call the table in errors, usually its file name.
        columns: by our name (``time``, ``open`` … ``volume``), the table's name where it differs.
        volume: False for a mark series, whose volume means nothing and is set to 0.

    Raises:
        DataError: a column is missing or holds no numbers.
    """
    named = _Columns(frame, origin, columns or {})
    data: dict[str, NDArray[np.int64] | NDArray[np.float64]] = {"time_ms": named.time_ms()}
    for name in ("open", "high", "low", "close"):
        data[name] = named.numbers(name, (name,))
    data["volume"] = named.numbers("volume", ("volume",)) if volume else np.zeros(len(frame))
    return pd.DataFrame(data)


def funding_frame(
    frame: pd.DataFrame, origin: str, *, columns: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Settle the columns of a table of settlements to ``FUNDING_COLUMNS``, in the order of its rows.

    Args:
        frame: any table with a time and a rate; freqtrade keeps the rate in ``open``.
        origin: what to call the table in errors, usually its file name.
        columns: by our name (``time``, ``rate``), the table's name where it differs.

    Raises:
        DataError: a column is missing or holds no numbers.
    """
    named = _Columns(frame, origin, columns or {})
    return pd.DataFrame({"time_ms": named.time_ms(), "rate": named.numbers("rate", _RATE_NAMES)})


def premium_frame(frame: pd.DataFrame, origin: str) -> pd.DataFrame:
    """Settle premium-index klines to ``FUNDING_COLUMNS``: the close is the rate.

    Args:
        frame: any table with a time and a close that is a fraction of the index price.
        origin: what to call the table in errors, usually its file name.

    Raises:
        DataError: a column is missing or holds no numbers.
    """
    named = _Columns(frame, origin, {})
    return pd.DataFrame({"time_ms": named.time_ms(), "rate": named.numbers("close", ("close",))})


def frame_times(frame: pd.DataFrame, origin: str) -> NDArray[np.int64]:
    """(N,) UTC milliseconds of the rows of any table of bars: its index if that holds dates, else its column.

    Raises:
        DataError: there is no such column, or it holds no times.
    """
    return _Columns(frame, origin, {}).time_ms()


class _Columns:
    """Finds a table's columns by any of their usual names, in any case."""

    def __init__(self, frame: pd.DataFrame, origin: str, columns: Mapping[str, str]) -> None:
        self.frame = frame
        self.origin = origin
        self.columns = columns
        self.by_lower = {str(c).lower(): c for c in frame.columns}

    def time_ms(self) -> NDArray[np.int64]:
        if isinstance(self.frame.index, pd.DatetimeIndex) and "time" not in self.columns:
            return to_ms(self.frame.index.to_series(), self.origin)
        return to_ms(self._find("time", _TIME_NAMES), self.origin)

    def numbers(self, name: str, usual: tuple[str, ...]) -> NDArray[np.float64]:
        values = self._find(name, usual)
        try:
            return pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self.origin}: column {values.name!r} holds something that is no number: {error}"
            ) from None

    def _find(self, name: str, usual: tuple[str, ...]) -> pd.Series:
        wanted = (self.columns[name].lower(),) if name in self.columns else usual
        for candidate in wanted:
            if candidate in self.by_lower:
                return self.frame[self.by_lower[candidate]]
        raise DataError(
            f"{self.origin}: no column for {name!r} (looked for {', '.join(wanted)}); the table has "
            f"{', '.join(map(str, self.frame.columns))}. Name it with columns={{{name!r}: 'its name'}}"
        )


def to_ms(values: pd.Series, origin: str) -> NDArray[np.int64]:
    """UTC milliseconds of dates, ISO texts, or numbers in s, ms, µs or ns (told apart by their size).

    A date without a zone is UTC. Binance archives changed from ms to µs in 2025, hence value by value.

    Raises:
        DataError: a value is missing or is no time.
    """
    if values.isna().any():
        row = int(values.isna().to_numpy().argmax())
        raise DataError(f"{origin}: row {row + 1} has no time; delete the row or get the file again")
    if pd.api.types.is_numeric_dtype(values):
        return _numbers_to_ms(values.to_numpy(dtype=np.float64), values.to_numpy())
    try:
        # any other text form leaves open which is the month
        stamps = pd.DatetimeIndex(pd.to_datetime(values, utc=True, format="ISO8601"))
    except (ValueError, TypeError) as error:
        raise DataError(f"{origin}: the time column holds something that is no time: {error}") from None
    return np.asarray(stamps.tz_localize(None).as_unit("ms").asi8, dtype=np.int64)


def _numbers_to_ms(
    size: NDArray[np.float64], raw: NDArray[np.int64] | NDArray[np.float64]
) -> NDArray[np.int64]:
    whole = raw.astype(np.int64)
    return np.select(
        [size < 1e11, size < 1e14, size < 1e17],
        [whole * 1000, whole, whole // 1000],
        default=whole // 1_000_000,
    ).astype(np.int64)
