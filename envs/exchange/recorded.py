"""The recorded book as the account has left it: what it shows, what an order takes, what trades through one.

The book of a moment is the one at the open of the bar that is open. What the account takes of a level is gone
until the record gives that level another size; nobody else reacts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from perpgym.data.contract import Contract
from perpgym.data.sources.l2_book import CHANGE, PRICE, SIZE
from perpgym.envs.exchange.filters import decimals
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.orders import Order, sign

Level = tuple[float, float]
# of a tick, as the kernel's rule for bars
_TICK_NOISE = 1e-6


class Recorded:
    """One account's view of a replayed recording.

    Args:
        market: a replay of a recording.
        contract: its contract.
    """

    def __init__(self, market: Replay, contract: Contract) -> None:
        self.market, self.contract = market, contract
        # by price: the change that the level stood at, and base taken of it since
        self._taken: dict[float, tuple[float, float]] = {}

    def levels(self, side: float) -> Iterator[Level]:
        """(price quote, quantity base) that an order of ``side`` (+1 buys) meets, the best first."""
        book, lot = self.market.recorded_book(), self.contract.lot_size
        assert book is not None, "a replay without a recording has no recorded book"
        for row in book.asks if side > 0.0 else book.bids:
            price, size, change = float(row[PRICE]), float(row[SIZE]), float(row[CHANGE])
            stood_at, taken = self._taken.get(price, (change, 0.0))
            left = round(size - taken, decimals(lot)) if stood_at == change else size
            if left >= lot:
                yield price, left

    def touch(self, side: float) -> Level:
        """The best of them; (0, 0) where the side is empty or not known."""
        return next(self.levels(side), (0.0, 0.0))

    @property
    def mid(self) -> float:
        """quote; the best price of the one side that there is, where the other is empty."""
        ask, bid = self.touch(1.0)[0], self.touch(-1.0)[0]
        return 0.5 * (ask + bid) if ask and bid else ask or bid

    def walk(self, order: Order, wanted: float) -> list[Level]:
        """What ``wanted`` (base) of an order takes: level after level, a limit order as far as it admits."""
        side, found, left = sign(order.side), [], wanted
        for price, size in self.levels(side):
            if left <= 0.0 or (order.kind == "LIMIT" and side * (order.price - price) < 0.0):
                break
            found.append((price, min(size, left)))
            left = round(left - found[-1][1], decimals(self.contract.lot_size))
        return found

    def remove(self, side: float, price: float, quantity: float) -> None:
        """An order of ``side`` has taken ``quantity`` (base) of a level."""
        book = self.market.recorded_book()
        assert book is not None, "a replay without a recording has no recorded book"
        rows = book.asks if side > 0.0 else book.bids
        change = float(rows[rows[:, PRICE] == price][0, CHANGE])
        stood_at, taken = self._taken.get(price, (change, 0.0))
        self._taken[price] = (change, quantity + (taken if stood_at == change else 0.0))

    def through(self, order: Order) -> float:
        """base that trades a tick or more beyond a resting order's price in the open bar, after it came."""
        record, side, fine = self.market.recording, sign(order.side), self.market.fine
        assert record is not None, "a replay without a recording has no recorded trades"
        found = slice(int(record.trade_start[fine]), int(record.trade_start[fine + 1]))
        beyond = side * (order.price - record.trade_price[found])
        is_through = beyond >= self.contract.tick_size * (1.0 - _TICK_NOISE)
        is_through &= record.trade_time_ms[found] > order.queued_ms
        return float(np.abs(record.trade_quantity[found][is_through]).sum())
