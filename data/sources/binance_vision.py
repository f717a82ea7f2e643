"""Reads Binance's public archives (data.binance.vision): zips of klines, mark klines and funding."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from perpgym.data.clock import timeframe_ms
from perpgym.data.errors import DataError
from perpgym.data.frames import (
    RawFrames,
    funding_frame,
    kline_frame,
    premium_frame,
    times,
)

_NAME = re.compile(
    r"(?:.*-)?(?P<market>[A-Z0-9]+)-(?P<what>\d+[mhdw]|fundingRate)-(?P<date>\d{4}-\d{2}(?:-\d{2})?)\.(?:zip|csv)"
)
_OTHER_SERIES = ("indexPriceKlines", "spot", "cm", "option")
# archives of these differ from others by their folder, not by their name
_BY_FOLDER = {"markPriceKlines": "mark", "premiumIndexKlines": "premium"}
_KLINE_HEADER = ["open_time", "open", "high", "low", "close", "volume"]
_FUNDING_HEADER = ["calc_time", "funding_interval_hours", "last_funding_rate"]


@dataclass(frozen=True, kw_only=True)
class _Archive:
    path: Path
    market: str
    series: str  # last, mark, premium or funding
    timeframe: str
    date: str


def read_binance_vision(path: str | Path, symbol: str, timeframe: str | None = None) -> RawFrames:
    """Read one contract from an archive, or from every archive in a folder and the folders below.

    Klines of the mark price and the premium index are told from others by ``markPriceKlines`` and
    ``premiumIndexKlines`` in their path, as in the exchange's own tree, since the archives' names are the
    same. Daily and monthly archives may overlap.

    Args:
        path: a zip (or an unpacked CSV), or a folder of them.
        symbol: ccxt's unified symbol, e.g. ``BTC/USDT:USDT``.
        timeframe: of the bars; None takes the one there is.

    Returns:
        The frames; ``mark``, ``funding`` and ``premium`` are None where there is no archive of them.

    Raises:
        DataError: nothing fits, or an archive is cut off, damaged or not what its name says.
    """
    root = Path(path).expanduser()
    archives = [a for a in _archives(root) if a.market == market_id(symbol)]
    timeframe = _choose_timeframe(root, symbol, timeframe, archives)
    chosen = {
        "last": [a for a in archives if a.series == "last" and a.timeframe == timeframe],
        "mark": [a for a in archives if a.series == "mark" and a.timeframe == timeframe],
        "premium": [a for a in archives if a.series == "premium" and a.timeframe == timeframe],
        "funding": [a for a in archives if a.series == "funding"],
    }
    return RawFrames(
        symbol=symbol,
        bar_ms=timeframe_ms(timeframe),
        last=_read_all(chosen["last"]),
        mark=_read_all(chosen["mark"]) if chosen["mark"] else None,
        funding=_read_all(chosen["funding"]) if chosen["funding"] else None,
        premium=_read_all(chosen["premium"]) if chosen["premium"] else None,
        origin={series: _origin(root, found, series) for series, found in chosen.items()},
        source=f"Binance Vision archives in {root}",
    )


def symbols(path: str | Path) -> tuple[str, ...]:
    """The contracts quoted in USDT or USDC that a folder has kline archives of."""
    markets = {a.market for a in _archives(Path(path).expanduser()) if a.series == "last"}
    quotes = [(m, q) for m in sorted(markets) for q in ("USDT", "USDC") if m.endswith(q)]
    return tuple(f"{m.removesuffix(q)}/{q}:{q}" for m, q in quotes)


def market_id(symbol: str) -> str:
    """``BTCUSDT`` for ``BTC/USDT:USDT``."""
    return symbol.split(":")[0].replace("/", "")


def _archives(root: Path) -> list[_Archive]:
    if not root.exists():
        raise DataError(
            f"{root}: no such file or folder; give the folder of the archives from data.binance.vision"
        )
    paths = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    found = []
    for path in paths:
        match = _NAME.fullmatch(path.name)
        below = path.relative_to(root).parts if root.is_dir() else (path.name,)
        where = "/".join(below)
        if match is None or any(other in below or f"{other}-" in where for other in _OTHER_SERIES):
            continue
        is_funding = match["what"] == "fundingRate"
        series = [s for name, s in _BY_FOLDER.items() if name in where or root.name == name]
        found.append(
            _Archive(
                path=path,
                market=match["market"],
                series="funding" if is_funding else series[0] if series else "last",
                timeframe="" if is_funding else match["what"],
                date=match["date"],
            )
        )
    return sorted(found, key=lambda a: (a.date, str(a.path)))


def _choose_timeframe(root: Path, symbol: str, timeframe: str | None, archives: list[_Archive]) -> str:
    there = sorted({a.timeframe for a in archives if a.series == "last"})
    if not there:
        raise DataError(
            f"{root}: no kline archive of {symbol} such as {market_id(symbol)}-1h-2024-10.zip here or below; "
            "get them from data.binance.vision, futures/um/monthly/klines"
        )
    if timeframe is None and len(there) == 1:
        return there[0]
    if timeframe is None or timeframe not in there:
        asked = "name one as `timeframe`" if timeframe is None else f"but not {timeframe}"
        raise DataError(f"{root}: {symbol} has archives of {', '.join(there)}, {asked}")
    return timeframe


def _origin(root: Path, archives: list[_Archive], series: str) -> str:
    if len(archives) == 1:
        return str(archives[0].path)
    return f"{root} ({len(archives)} {series} archives)"


def _read_all(archives: list[_Archive]) -> pd.DataFrame:
    frame = pd.concat([_read(a) for a in archives], ignore_index=True)
    # a daily archive repeats the rows of the monthly one: only rows that differ are a fault
    return frame.drop_duplicates(ignore_index=True)


def _read(archive: _Archive) -> pd.DataFrame:
    header = _FUNDING_HEADER if archive.series == "funding" else _KLINE_HEADER
    content = _unpack(archive.path)
    origin = str(archive.path)
    # archives before 2022 have no header line
    has_header = not content[:1].isdigit()
    try:
        table = pd.read_csv(io.BytesIO(content), header=0 if has_header else None)
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(
            f"{origin}: the table inside cannot be read ({error}); download the archive again"
        ) from None
    if table.shape[1] < len(header) or table.empty:
        raise DataError(
            f"{origin}: {table.shape[1]} columns and {len(table)} rows, expected {', '.join(header)}, …"
        )
    if not has_header:
        table = table.iloc[:, : len(header)].set_axis(header, axis=1)
    if archive.series == "funding":
        return funding_frame(table, origin, columns={"time": "calc_time", "rate": "last_funding_rate"})
    if archive.series == "premium":
        frame = premium_frame(table, origin)
    else:
        frame = kline_frame(table, origin, columns={"time": "open_time"}, volume=archive.series == "last")
    _check_inside(archive, frame)
    return frame


def _check_inside(archive: _Archive, frame: pd.DataFrame) -> None:
    day = times(frame).astype("datetime64[ms]").astype(str)
    outside = ~np.char.startswith(day, archive.date)
    if outside.any():
        raise DataError(
            f"{archive.path}: its name says {archive.date}, but it has bars of {day[outside][0][:10]}; "
            "download the archive again"
        )


def _unpack(path: Path) -> bytes:
    """The one CSV inside, after the checks that a cut-off or damaged archive fails."""
    try:
        raw = path.read_bytes()
        _check_sum(path, raw)
        if path.suffix == ".csv":
            return raw
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = [n for n in archive.namelist() if n.endswith(".csv")]
            if len(names) != 1:
                raise DataError(
                    f"{path}: expected one CSV inside, found {len(names)}; download the archive again"
                )
            return archive.read(names[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: the archive is cut off or damaged ({error}); download it again") from None


def _check_sum(path: Path, raw: bytes) -> None:
    beside = path.with_name(f"{path.name}.CHECKSUM")
    if not beside.exists():
        return
    expected = beside.read_text("ascii").split()[0]
    if hashlib.sha256(raw).hexdigest() != expected:
        raise DataError(
            f"{path}: its sha256 differs from {beside.name} beside it; download the archive again"
        )
