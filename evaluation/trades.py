"""Trades: a position from the bar in which it left zero or turned, to the bar in which it did so again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpgym.envs.spaces import LEDGER

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trades:
    """K round trips of one account, in the order of their entry; the last may be open and is marked.

    The profits, net of everything, add up to the account's change of equity.

    Attributes:
        entry, exit: (K,) int64, rows of the ledger in which the trade began and ended; an open one "ends" in
            the last row.
        side: (K,) int64, 1 long, -1 short, 0 opened and closed within one bar.
        profit: (K,) float64 quote, after fees, spread, impact and funding.
        profit_fraction: (K,) float64, profit over the equity before the entry.
        holding_bars: (K,) int64, bar closes at which the position was held.
    """

    entry: NDArray[np.int64]
    exit: NDArray[np.int64]
    side: NDArray[np.int64]
    profit: Floats
    profit_fraction: Floats
    holding_bars: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.entry.shape[0])

    @property
    def win_rate(self) -> float:
        """Share of trades with a profit; ``nan`` without trades."""
        return float(np.mean(self.profit > 0)) if len(self) else math.nan

    @property
    def profit_factor(self) -> float:
        """Sum of the profits over the sum of the losses; infinite without a loss, ``nan`` without trades."""
        gain = float(self.profit[self.profit > 0].sum())
        loss = float(-self.profit[self.profit < 0].sum())
        if loss > 0:
            return gain / loss
        return math.inf if gain > 0 else math.nan


def find_trades(ledger: Floats, mark_close: Floats) -> Trades:
    """Cut a ledger into trades.

    A bar in which the position turns belongs to both sides: the old one is closed, and the new one opened, at
    the bar's fill price, and fees go by quantity. Funding of that bar belongs to the new one, for it is
    charged on the position at the close. A bar that turns with several fills goes to the old one.

    Args:
        ledger: (n, L), columns ``LEDGER_COLUMNS``.
        mark_close: (n + 1,) quote; ``mark_close[i]`` is the mark at which row i's decision was taken.
    """
    after = ledger[:, LEDGER["position"]]
    before = np.concatenate(([0.0], after[:-1]))
    book = _Book()
    busy = (before != 0) | (after != 0) | (ledger[:, LEDGER["fills"]] > 0)
    for row in np.flatnonzero(busy).tolist():
        q0, q1 = float(before[row]), float(after[row])
        equity = float(ledger[row, LEDGER["equity_before"]])
        profit = float(ledger[row, LEDGER["equity"]]) - equity
        if q0 * q1 < 0:
            old = _profit_before_turn(ledger[row], q0, q1, float(mark_close[row]))
            book.add(row, q0, old, equity)
            book.close(row, held_to=row)
            book.add(row, q1, profit - old, equity + old)
        else:
            book.add(row, q0 or q1, profit, equity)
            if q1 == 0:
                book.close(row, held_to=row)
    last = ledger.shape[0] - 1
    book.close(last, held_to=last + 1)
    return book.trades()


def _profit_before_turn(row: Floats, q0: float, q1: float, mark_before: float) -> float:
    """Profit of the old position in a bar that turned; all of the bar's if there was more than one fill."""
    if row[LEDGER["fills"]] != 1:
        return float(row[LEDGER["equity"]] - row[LEDGER["equity_before"]])
    fee = float(row[LEDGER["fees"]]) * abs(q0) / (abs(q0) + abs(q1))
    return q0 * (float(row[LEDGER["fill_price"]]) - mark_before) - fee


class _Book:
    """The trades so far and the open one."""

    def __init__(self) -> None:
        self._closed: list[tuple[int, int, float, float, float, int]] = []
        self._open: tuple[int, float, float] | None = None  # entry row, position, equity before
        self._profit = 0.0

    def add(self, row: int, position: float, profit: float, equity: float) -> None:
        if self._open is None:
            self._open = (row, position, equity)
            self._profit = 0.0
        self._profit += profit

    def close(self, row: int, *, held_to: int) -> None:
        if self._open is not None:
            entry, position, equity = self._open
            self._closed.append((entry, row, np.sign(position), self._profit, equity, held_to - entry))
        self._open = None

    def trades(self) -> Trades:
        table = np.array(self._closed, dtype=np.float64).reshape(-1, 6)
        profit, equity = table[:, 3], table[:, 4]
        return Trades(
            entry=table[:, 0].astype(np.int64),
            exit=table[:, 1].astype(np.int64),
            side=table[:, 2].astype(np.int64),
            profit=profit,
            profit_fraction=np.divide(profit, equity, out=np.zeros_like(profit), where=equity > 0),
            holding_bars=table[:, 5].astype(np.int64),
        )
