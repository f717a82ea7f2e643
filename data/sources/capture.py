"""Recorded websocket streams: one message a line, ``<local receive time> <json as the exchange sent it>``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from perpgym.data.errors import DataError

_TRADE_EVENTS = ("trade", "aggTrade")


def messages(path: str | Path) -> Iterator[dict[str, Any]]:
    """The messages of a capture in the order in which they arrived, plain or gzipped text.

    Raises:
        DataError: a line is no message; names file and line.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            _received, _, text = line.partition(" ")
            try:
                message = json.loads(text)
                # a combined stream wraps what the single one sends
                yield message.get("data", message)
            except (ValueError, AttributeError) as error:
                raise DataError(
                    f"{path}, line {number}: expected '<receive time> <json>', found {line[:80]!r}"
                ) from error


def is_trade(message: dict[str, Any]) -> bool:
    """Whether a message is a trade in the book: settlements of the insurance fund come as trades too."""
    is_in_book = message.get("X", "MARKET") == "MARKET"
    return message.get("e") in _TRADE_EVENTS and is_in_book and float(message["p"]) > 0.0


def trade_row(message: dict[str, Any]) -> tuple[int, float, float]:
    """(time in ms UTC, price, quantity) of a trade: base, > 0 where a buyer took, < 0 where a seller did."""
    quantity = float(message["q"])
    return int(message["T"]), float(message["p"]), -quantity if message["m"] else quantity


def read_trades(path: str | Path) -> pd.DataFrame:
    """The trades of a capture.

    Returns:
        Columns ``time_ms`` (int64, UTC, the exchange's), ``price`` (quote) and ``quantity`` (base; > 0
        where a buyer took, < 0 where a seller did), in the order of time, each trade once.

    Raises:
        DataError: the file is no capture, or has no trade.
    """
    rows = {int(m.get("t", m.get("a", -1))): trade_row(m) for m in messages(path) if is_trade(m)}
    if not rows:
        raise DataError(f"{path} holds no trade: record the exchange's trade or aggTrade stream")
    frame = pd.DataFrame(list(rows.values()), columns=["time_ms", "price", "quantity"])
    return frame.sort_values("time_ms", kind="stable", ignore_index=True)
