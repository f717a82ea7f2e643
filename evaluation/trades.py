"""Trades: a position from the bar in which it left zero or turned, to the bar in which it did so again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpgym.envs.spaces import CONTRACT_LEDGER

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trades:
    """K round trips of one account, in the order of their entry; those still open are marked.

    The profits, net of everything, add up to the account's change of equity (but for what the insurance fund
    bears of a loss beyond the last wallet).

    Attributes:
        entry, exit: (K,) int64, rows of the ledger in which the trade began and ended; an open one "ends" in
            the last row.
        side: (K,) int64, 1 long, -1 short, 0 opened and closed within one bar.
        profit: (K,) float64 quote, after fees, spread, impact and funding.
        profit_fraction: (K,) float64, profit over the account's equity before the entry.
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


def find_trades(holdings: Floats, worth: Floats, equity_before: Floats) -> Trades:
    """Cut one contract's ledger into trades.

    A bar in which the position turns belongs to both sides: the old one is closed, and the new one opened, at
    the bar's price, and costs go by quantity. Funding of that bar belongs to the new one, for it is charged
    on the position at the close. A bar that turns with several fills is taken at their mean price.

    Args:
        holdings: (n, H) of one contract, columns ``CONTRACT_LEDGER_COLUMNS``.
        worth: (n + 1,) settle currency, signed, of a unit at the mark: the mark itself, or minus one over it
            for an inverse contract; ``worth[i]`` is that at which row i's decision was taken.
        equity_before: (n,) of the account.
    """
    after = holdings[:, CONTRACT_LEDGER["position"]]
    before = np.concatenate(([0.0], after[:-1]))
    profits = holdings[:, CONTRACT_LEDGER["profit"]]
    book = _Book()
    busy = (before != 0) | (after != 0) | (profits != 0) | (holdings[:, CONTRACT_LEDGER["costs"]] != 0)
    for row in np.flatnonzero(busy).tolist():
        q0, q1, profit = float(before[row]), float(after[row]), float(profits[row])
        equity = float(equity_before[row])
        if q0 * q1 < 0:
            old = _profit_before_turn(holdings[row], q0, q1, float(worth[row]), float(worth[row + 1]))
            book.add(row, q0, old, equity)
            book.close(row, held_to=row)
            book.add(row, q1, profit - old, equity + old)
        else:
            book.add(row, q0 or q1, profit, equity)
            if q1 == 0:
                book.close(row, held_to=row)
    last = holdings.shape[0] - 1
    book.close(last, held_to=last + 1)
    return book.trades()


def join_trades(parts: list[Trades]) -> Trades:
    """The trades of several contracts, in the order of their entry."""
    order = np.argsort(np.concatenate([part.entry for part in parts]), kind="stable")
    columns = ("entry", "exit", "side", "profit", "profit_fraction", "holding_bars")
    return Trades(
        **{name: np.concatenate([getattr(part, name) for part in parts])[order] for name in columns}
    )


def _profit_before_turn(row: Floats, q0: float, q1: float, worth_before: float, worth_after: float) -> float:
    """Profit of the old position in a bar that turned.

    price_pnl = q0 (M1 - M0) + (q1 - q0) (M1 - P), with P the price before spread and impact, gives P.
    """
    costs = float(row[CONTRACT_LEDGER["costs"]])
    price_pnl = float(row[CONTRACT_LEDGER["profit"]] + costs - row[CONTRACT_LEDGER["funding"]])
    turned = q1 - q0
    at = worth_after - (price_pnl - q0 * (worth_after - worth_before)) / turned
    return q0 * (at - worth_before) - costs * abs(q0 / turned)


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
