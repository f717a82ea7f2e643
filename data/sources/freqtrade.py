"""Reads a freqtrade data folder: ``BTC_USDT_USDT-1h-futures``, ``…-1h-mark``, ``…-8h-funding_rate``, and
``…-1h-premiumIndex`` where it is there.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from perpgym.data.clock import timeframe_ms
from perpgym.data.errors import DataError
from perpgym.data.frames import RawFrames, funding_frame, kline_frame, premium_frame
from perpgym.data.store import symbol_folder

_NAME = re.compile(
    r"(?P<pair>.+)-(?P<timeframe>\d+[mhdw])-(?P<kind>futures|mark|funding_rate|premiumIndex)\.(?P<format>feather|parquet)"
)


def find_folder(path: str | Path, exchange: str | None = None) -> Path:
    """The folder with the futures files, given it or one of the folders above it.

    Args:
        path: freqtrade's ``user_data/data``, an exchange's folder in it, or its ``futures`` folder.
        exchange: which exchange to take where there are several.

    Raises:
        DataError: there is none, or more than one.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; give the folder of freqtrade's data, usually user_data/data"
        )
    candidates = [root, root / "futures", *sorted(root.glob("*/futures"))]
    found = [c for c in candidates if c.is_dir() and _files(c)]
    if exchange is not None and len(found) > 1:
        found = [c for c in found if c.parent.name == exchange]
    if not found:
        raise DataError(
            f"{root}: no files such as BTC_USDT_USDT-1h-futures.feather here or in futures/ below; "
            "download them with: freqtrade download-data --trading-mode futures --timeframes 1h"
        )
    if len(found) > 1:
        raise DataError(
            f"{root}: several exchanges ({', '.join(c.parent.name for c in found)}); name one as `exchange`"
        )
    return found[0]


def symbols(path: str | Path, exchange: str | None = None) -> tuple[str, ...]:
    """The contracts of a freqtrade folder that have futures bars."""
    pairs = {m["pair"] for m in _files(find_folder(path, exchange)) if m["kind"] == "futures"}
    return tuple(sorted(_symbol(pair) for pair in pairs))


def read_freqtrade(
    path: str | Path, symbol: str, timeframe: str | None = None, *, exchange: str | None = None
) -> RawFrames:
    """Read one contract.

    Args:
        path: see :func:`find_folder`.
        symbol: ccxt's unified symbol, e.g. ``BTC/USDT:USDT``.
        timeframe: of the bars; None takes the one there is.
        exchange: see :func:`find_folder`.

    Returns:
        The frames; ``mark``, ``funding`` and ``premium`` are None where files are missing. A mark series at
        another timeframe than the bars is left out and noted.

    Raises:
        DataError: the bars' file is missing, ambiguous or damaged.
    """
    folder = find_folder(path, exchange)
    files = [m for m in _files(folder) if m["pair"] == symbol_folder(symbol)]
    timeframe = _choose_timeframe(folder, symbol, timeframe, files)
    named = {m["kind"]: m.string for m in files if m["kind"] == "funding_rate" or m["timeframe"] == timeframe}
    other_marks = [m.string for m in files if m["kind"] == "mark" and m["timeframe"] != timeframe]
    notes: tuple[str, ...] = ()
    if "mark" not in named and other_marks:
        notes = (f"{symbol}: {', '.join(other_marks)} left out: a mark series must have {timeframe} bars",)
    origin = {
        "last": str(folder / named["futures"]),
        "mark": str(folder / named.get("mark", f"{symbol_folder(symbol)}-{timeframe}-mark.feather")),
        "funding": str(
            folder / named.get("funding_rate", f"{symbol_folder(symbol)}-8h-funding_rate.feather")
        ),
    }
    premium = folder / named["premiumIndex"] if "premiumIndex" in named else None
    return RawFrames(
        symbol=symbol,
        bar_ms=timeframe_ms(timeframe),
        last=kline_frame(_read(folder / named["futures"]), origin["last"]),
        mark=kline_frame(_read(folder / named["mark"]), origin["mark"], volume=False)
        if "mark" in named
        else None,
        funding=funding_frame(
            _read(folder / named["funding_rate"]), origin["funding"], columns={"rate": "open"}
        )
        if "funding_rate" in named
        else None,
        premium=None if premium is None else premium_frame(_read(premium), str(premium)),
        origin=origin if premium is None else origin | {"premium": str(premium)},
        source=f"freqtrade folder {folder}",
        notes=notes,
    )


def _files(folder: Path) -> list[re.Match[str]]:
    names = sorted(p.name for p in folder.iterdir())
    return [m for m in map(_NAME.fullmatch, names) if m is not None]


def _symbol(pair: str) -> str:
    base, quote, settle = pair.rsplit("_", 2)
    return f"{base}/{quote}:{settle}"


def _choose_timeframe(folder: Path, symbol: str, timeframe: str | None, files: list[re.Match[str]]) -> str:
    there = sorted(m["timeframe"] for m in files if m["kind"] == "futures")
    if not there:
        have = sorted({_symbol(m["pair"]) for m in _files(folder) if m["kind"] == "futures"})
        raise DataError(f"{folder}: no futures bars of {symbol}; the folder has {', '.join(have)}")
    if timeframe is None and len(there) == 1:
        return there[0]
    if timeframe is None or timeframe not in there:
        asked = "name one as `timeframe`" if timeframe is None else f"but not {timeframe}"
        raise DataError(f"{folder}: {symbol} has bars of {', '.join(there)}, {asked}")
    return timeframe


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_feather(path) if path.suffix == ".feather" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the file is damaged or cut off ({error}); download it again") from None
