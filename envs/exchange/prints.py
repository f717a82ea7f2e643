"""The trades of a closed bar: the recorded ones, or some made from the bar.

Of a bar is known where it opened, turned and closed, and how much traded.
"""

from __future__ import annotations

from typing import Any

from perpgym.data.bars import CLOSE, HIGH, LOW, OPEN
from perpgym.data.sources.l2 import Recording
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.wire import text

PER_BAR = 4


def trades_of_bar(market: Replay, asset: int, fine: int) -> list[dict[str, Any]]:
    """The recorded trades, or four of a quarter of the bar's volume each; none where nothing traded.

    Of the four, the extreme nearer to the open comes first, as a driftless path would most likely have it.
    """
    if market.recording is not None:
        return _recorded(market.recording, fine)
    volume = float(market.inside.volume[fine, asset])
    if volume == 0.0:
        return []
    bar = market.inside.last[fine, asset]
    turns = (HIGH, LOW) if bar[HIGH] - bar[OPEN] < bar[OPEN] - bar[LOW] else (LOW, HIGH)
    open_ms = market.open_ms + (fine - market.fine) * market.fine_ms
    before = float(bar[OPEN])
    rows = []
    for number, column in enumerate((OPEN, *turns, CLOSE)):
        price = float(bar[column])
        time_ms = open_ms + min(number * market.fine_ms // (PER_BAR - 1), market.fine_ms - 1)
        trade_id = fine * PER_BAR + number + 1
        rows.append(
            {
                "a": trade_id, "p": text(price), "q": text(volume / PER_BAR), "f": trade_id, "l": trade_id,
                "T": time_ms, "m": price < before,
            }
        )  # fmt: skip
        before = price
    return rows


def _recorded(recording: Recording, bar: int) -> list[dict[str, Any]]:
    found = slice(int(recording.trade_start[bar]), int(recording.trade_start[bar + 1]))
    columns = (
        recording.trade_id[found], recording.trade_time_ms[found], recording.trade_price[found],
        recording.trade_quantity[found],
    )  # fmt: skip
    return [
        {
            "a": number,
            "p": text(price),
            "q": text(abs(size)),
            "f": number,
            "l": number,
            "T": time_ms,
            "m": size < 0.0,
        }
        for number, time_ms, price, size in zip(*(column.tolist() for column in columns), strict=True)
    ]
