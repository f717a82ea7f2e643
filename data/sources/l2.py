"""Recorded L2: a capture of one contract's streams as bars, trades, and the book at the open of every bar.

``python -m perpgym.data.sources.l2 FILE [FILE …] [--symbol BTC/USDT:USDT]`` says what captures hold:
their span, holes in the diffs, and at which share of the diffs the best prices rebuilt from snapshot and
diffs alone are those of the recorded book ticker.

What bears a time up to t is known at t, and a bar owns what bears a time in (open, close]. Times are the
exchange's (``T``; of mark prices ``E``), because clocks of recorders differ from it by seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.clock import iso
from perpgym.data.contract import Contract, load_contract
from perpgym.data.errors import DataError
from perpgym.data.sources.capture import is_trade, messages, trade_row
from perpgym.data.sources.l2_book import Gap, Ladder, RebuiltBook, change_id
from perpgym.data.tape import Tape

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Message = dict[str, Any]

_LEAST_BARS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """A capture on a clock of equal bars.

    Attributes:
        bars: last from trades; mark from the mark price stream, or else the mid of the book; the settlements
            that the mark price stream has announced, at the rate that it showed last.
        books: (T + 1), the book at the open of each bar and at the close of the last one.
        trade_time_ms, trade_id: (N,) int64, ascending in time.
        trade_price: (N,) float64 quote.
        trade_quantity: (N,) float64 base, > 0 where a buyer took, < 0 where a seller did.
        trade_start: (T + 1,) int64, trades ``trade_start[i]:trade_start[i + 1]`` are those of bar i.
        gaps: holes in the depth diffs.
        is_whole: whether the book rests on a snapshot, with no hole after it.
    """

    bars: Bars
    books: tuple[Ladder, ...]
    trade_time_ms: Int64
    trade_id: Int64
    trade_price: Float64
    trade_quantity: Float64
    trade_start: Int64
    gaps: tuple[Gap, ...]
    is_whole: bool

    def tape(self) -> Tape:
        """The bars as a tape without features: a market to trade on, not to learn from.

        Raises:
            ValueError: fewer bars than the volatility of the impact model needs.
        """
        from perpgym.data.features.build import build_tape

        return build_tape(self.bars, features=(), risk=(), source=self.describe())

    def describe(self) -> str:
        """What it is and what it lacks, in words for people."""
        ground = "a whole book" if self.is_whole else "a book without a snapshot since its last hole"
        if not self.gaps and not self.is_whole:
            ground = "a book without a snapshot"
        holes = f"holes in the diffs: {len(self.gaps)}"
        if self.gaps:
            holes += f" (the first before {iso(self.gaps[0].time_ms)})"
        mark = "the exchange's mark" if self.bars.mark_rule == "mark" else "the mid for a mark"
        return f"recorded L2 in bars of {self.bars.bar_ms} ms: {ground}, {holes}, {mark}"


@dataclass
class _Streams:
    """The messages of one contract, by what they say."""

    book: list[Message] = field(default_factory=list)
    # by id, because recorders that reconnect write some twice: (time, price, signed quantity)
    trades: dict[int, tuple[int, float, float]] = field(default_factory=dict)
    # (time, mark, rate, next settlement)
    marks: list[tuple[int, float, float, int]] = field(default_factory=list)


def read_l2(paths: Sequence[str | Path], contract: Contract, *, bar_ms: int = 1_000) -> Recording:
    """Read captures of the depth, trade, book ticker and mark price streams of one contract.

    Args:
        paths: files that follow one another.
        contract: its rules; ``BTC/USDT:USDT`` is recorded as ``BTCUSDT``.
        bar_ms: length of the bars, milliseconds; divides a minute.

    Raises:
        DataError: a file is no capture, has another contract, no trade or no book, or is too short.
    """
    if bar_ms < 1 or 60_000 % bar_ms:
        raise DataError(f"bar_ms must divide a minute (milliseconds), was {bar_ms}; try 1000 or 100")
    streams = _read_streams(paths, contract)
    number = np.array(list(streams.trades), np.int64)
    rows = np.array(list(streams.trades.values()), np.float64).reshape(-1, 3)
    order = np.lexsort((number, rows[:, 0]))
    number, rows = number[order], rows[order]
    moments = np.maximum.accumulate([int(m["T"]) for m in streams.book])
    first_ms = max(_known_from(streams.book, moments), int(rows[0, 0]), *(m[0] for m in streams.marks[:1]))
    edges = np.arange(-(-first_ms // bar_ms) * bar_ms, moments[-1] + 1, bar_ms, dtype=np.int64)
    if edges.size <= _LEAST_BARS:
        whole = max(edges.size - 1, 0)
        raise DataError(
            f"{', '.join(map(str, paths))}: {whole} whole bars of {bar_ms} ms, at least {_LEAST_BARS} are "
            "needed: record longer"
        )
    book = RebuiltBook()
    books, mids = _books_at(edges, streams.book, moments, book)
    marks = np.array([row[:2] for row in streams.marks] or mids, np.float64)
    cuts = np.searchsorted(rows[:, 0], edges, side="right")
    sizes = np.abs(rows[:, 2])
    stamps = _settlements(streams, edges)
    bars = Bars(
        contract=contract, bar_ms=bar_ms, open_time_ms=edges[:-1], last=_ohlc(rows[:, 0], rows[:, 1], edges),
        mark=_ohlc(marks[:, 0], marks[:, 1], edges),
        volume=np.array([sizes[a:b].sum() for a, b in pairwise(cuts)]),
        stamp_time_ms=np.array(list(stamps), np.int64),
        stamp_rate=np.array(list(stamps.values()), np.float64),
        # a mid is no exchange's mark either
        mark_rule="mark" if streams.marks else "last",
    )  # fmt: skip
    return Recording(
        bars=bars, books=tuple(books), trade_time_ms=rows[:, 0].astype(np.int64), trade_id=number,
        trade_price=rows[:, 1], trade_quantity=rows[:, 2], trade_start=cuts.astype(np.int64),
        gaps=tuple(book.gaps), is_whole=book.is_whole,
    )  # fmt: skip


def _read_streams(paths: Sequence[str | Path], contract: Contract) -> _Streams:
    name = contract.symbol.partition(":")[0].replace("/", "")
    streams, others = _Streams(), set()
    for path in paths:
        for message in messages(path):
            # a snapshot, which REST has answered, names no contract
            if message.get("s", name) != name:
                others.add(message["s"])
                continue
            try:
                _sort_in(streams, message)
            except (KeyError, ValueError, TypeError) as error:
                raise DataError(f"{path}: a message lacks or garbles {error}: {str(message)[:120]}") from None
    if not streams.trades or not streams.book:
        lacks = "trade" if not streams.trades else "depth diff and no book ticker"
        raise DataError(
            f"{', '.join(map(str, paths))}: no {lacks} of {name} was recorded, only of "
            f"{', '.join(sorted(others)) or 'nothing else'}"
        )
    # the ids tell the order of what happened, also between streams that arrive apart
    streams.book.sort(key=change_id)
    streams.marks.sort(key=lambda row: row[0])
    return streams


def _sort_in(streams: _Streams, message: Message) -> None:
    event = message.get("e")
    if "lastUpdateId" in message or event in ("depthUpdate", "bookTicker"):
        change_id(message), int(message["T"])
        streams.book.append(message)
    elif event == "markPriceUpdate":
        row = (int(message["E"]), float(message["p"]), float(message["r"] or 0.0), int(message["T"]))
        streams.marks.append(row)
    elif is_trade(message):
        number = int(message["t"] if "t" in message else message["a"])
        streams.trades[number] = trade_row(message)


def _known_from(book_messages: list[Message], moments: Int64) -> int:
    """When both sides of the book are known for the first time, ms."""
    book = RebuiltBook()
    for message, moment in zip(book_messages, moments.tolist(), strict=True):
        book.apply(message)
        if book.is_known:
            return int(moment)
    raise DataError("the capture never knows both sides of the book: record the depth or book ticker stream")


def _books_at(
    edges: Int64, book_messages: list[Message], moments: Int64, book: RebuiltBook
) -> tuple[list[Ladder], list[tuple[int, float]]]:
    """The book at each edge, and (time, mid) after every message that leaves both sides known."""
    ladders: list[Ladder] = []
    mids: list[tuple[int, float]] = []
    for message, moment in zip(book_messages, moments.tolist(), strict=True):
        while len(ladders) < edges.size and moment > edges[len(ladders)]:
            ladders.append(book.ladder())
        book.apply(message)
        if book.is_known:
            mids.append((moment, 0.5 * (book.bids.best + book.asks.best)))
    ladders += [book.ladder()] * (edges.size - len(ladders))
    return ladders, mids


def _ohlc(time_ms: Float64, price: Float64, edges: Int64) -> Float64:
    """(T, 4): open is the newest price at the open, the others those that came up to the close."""
    cuts = np.searchsorted(time_ms, edges, side="right")
    parts = [price[a - 1 : b] for a, b in pairwise(cuts)]
    return np.array([(part[0], part.max(), part.min(), part[-1]) for part in parts])


def _settlements(streams: _Streams, edges: Int64) -> dict[int, float]:
    """Settlements inside the bars: when one had come that was announced, at the rate shown last before."""
    stamps = {}
    for (_time, _mark, rate, due_ms), after in pairwise(streams.marks):
        if after[3] != due_ms and edges[0] < due_ms <= edges[-1]:
            stamps[due_ms] = rate
    return stamps


def touch_agreement(paths: Sequence[str | Path], contract: Contract) -> tuple[int, int]:
    """How often the best prices of snapshot and diffs are the book ticker's: (equal, compared).

    Compared are the book after a diff and the newest ticker up to that diff's newest change; this book has
    been told of no ticker.
    """
    book, ticker, equal, compared = RebuiltBook(), None, 0, 0
    for message in _read_streams(paths, contract).book:
        if message.get("e") == "bookTicker":
            ticker = message
            continue
        book.apply(message)
        if ticker is not None and book.is_known and "e" in message:
            compared += 1
            equal += (book.bids.best, book.asks.best) == (float(ticker["b"]), float(ticker["a"]))
    return equal, compared


def main(arguments: Sequence[str] | None = None) -> int:
    """Say what captures hold; 1 if they could not be used."""
    parser = argparse.ArgumentParser(prog="python -m perpgym.data.sources.l2", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="captures that follow one another")
    parser.add_argument("--symbol", default="BTC/USDT:USDT", help="a contract whose rules ship")
    parser.add_argument("--bar-ms", type=int, default=1_000, help="length of a bar, milliseconds")
    options = parser.parse_args(arguments)
    try:
        contract = load_contract(options.symbol)
        recording = read_l2(options.files, contract, bar_ms=options.bar_ms)
        equal, compared = touch_agreement(options.files, contract)
    except (DataError, OSError, KeyError) as error:
        print(error, file=sys.stderr)
        return 1
    bars = recording.bars
    print(f"{iso(int(bars.open_time_ms[0]))} to {iso(int(bars.close_time_ms[-1]))} UTC, {len(bars)} bars")
    print(f"{recording.trade_id.size} trades, {bars.stamp_time_ms.size} settlements; {recording.describe()}")
    share = equal / max(compared, 1)
    print(f"best prices of snapshot and diffs = book ticker at {equal} of {compared} diffs ({share:.3%})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
