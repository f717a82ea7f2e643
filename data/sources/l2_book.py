"""An order book rebuilt from what was recorded of it: snapshots, depth diffs and book tickers.

All three count one sequence of changes, so their ids say in which order they happened. A level is known from
the first message that names it on. After a hole in the diffs nothing that was known before is believed, and
the book begins anew; a snapshot within the hole heals it.

Source: Binance USD-M futures, "How to manage a local order book correctly" (U, u, pu, lastUpdateId).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# of a side, the most that the exchange's REST book shows
LEVELS = 1000
# columns of a ladder: quote, base, and the id of the change that gave the level its size
PRICE, SIZE, CHANGE = range(3)


class Ladder(NamedTuple):
    """A book at a moment: (n, 3) float64 each, the best level first; a side that is not known is empty."""

    bids: NDArray[np.float64]
    asks: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A hole in the diffs: changes after ``last_id`` up to ``next_id`` were not recorded."""

    time_ms: int
    last_id: int
    next_id: int


class _Side:
    """Levels of one side by price; ``sign`` +1 for bids, -1 for asks, so that the best key is the largest."""

    def __init__(self, sign: float) -> None:
        self.sign = sign
        self._keys: list[float] = []
        self._levels: dict[float, tuple[float, int]] = {}

    def set(self, price: float, size: float, change: int) -> None:
        """A message names a level; size 0 removes it, and one that has the size already is not replaced."""
        known = self._levels.get(price)
        if size == 0.0:
            if known is not None:
                self._drop(price)
            return
        if known is None:
            insort(self._keys, self.sign * price)
        if known is None or known[0] != size:
            self._levels[price] = (size, change)

    def set_best(self, price: float, size: float, change: int) -> None:
        """A message names the best level: what is better is gone."""
        while self._keys and self.best * self.sign > price * self.sign:
            self._drop(self.best)
        if size > 0.0:
            self.set(price, size, change)

    def _drop(self, price: float) -> None:
        del self._levels[price]
        del self._keys[bisect_left(self._keys, self.sign * price)]

    def drop_best(self) -> None:
        """Forget the best level."""
        self._drop(self.best)

    def clear(self) -> None:
        """Forget everything."""
        self._keys.clear()
        self._levels.clear()

    @property
    def best(self) -> float:
        """quote; 0 where nothing is known."""
        return self.sign * self._keys[-1] if self._keys else 0.0

    @property
    def best_change(self) -> int:
        """Id of the change that gave the best level its size."""
        return self._levels[self.best][1]

    def rows(self) -> NDArray[np.float64]:
        """(n, 3), the best first."""
        prices = [self.sign * key for key in reversed(self._keys[-LEVELS:])]
        return np.array([(p, *self._levels[p]) for p in prices], np.float64).reshape(-1, 3)


class RebuiltBook:
    """A book that messages move, in the order of their ids.

    Attributes:
        gaps: holes in the diffs so far.
        is_whole: whether a snapshot, and every diff since, were recorded.
    """

    def __init__(self) -> None:
        self.bids, self.asks = _Side(1.0), _Side(-1.0)
        self.gaps: list[Gap] = []
        self.is_whole = False
        self._diff_id = self._snapshot_id = -1

    def apply(self, message: dict[str, Any]) -> None:
        """Take a snapshot, a depth diff or a book ticker."""
        if "lastUpdateId" in message:
            self._take_snapshot(message)
        elif message["e"] == "bookTicker":
            self.bids.set_best(float(message["b"]), float(message["B"]), message["u"])
            self.asks.set_best(float(message["a"]), float(message["A"]), message["u"])
        else:
            self._take_diff(message)
        self._uncross()

    def _take_snapshot(self, message: dict[str, Any]) -> None:
        self._snapshot_id, self.is_whole = message["lastUpdateId"], True
        for side, rows in ((self.bids, message["bids"]), (self.asks, message["asks"])):
            side.clear()
            self._set(side, rows, self._snapshot_id)

    def _take_diff(self, message: dict[str, Any]) -> None:
        if message["u"] <= self._diff_id:
            # recorded twice
            return
        is_after_snapshot = message["pu"] > self._snapshot_id
        is_missing = message["pu"] != self._diff_id
        if is_missing and (self._diff_id >= 0 or (self._snapshot_id >= 0 and is_after_snapshot)):
            known = self._diff_id if self._diff_id >= 0 else self._snapshot_id
            self.gaps.append(Gap(time_ms=message["T"], last_id=known, next_id=message["U"]))
            if is_after_snapshot:
                self.is_whole = False
                self.bids.clear()
                self.asks.clear()
        self._diff_id = message["u"]
        self._set(self.bids, message["b"], self._diff_id)
        self._set(self.asks, message["a"], self._diff_id)

    @staticmethod
    def _set(side: _Side, rows: list[list[str]], change: int) -> None:
        for price, size in rows:
            side.set(float(price), float(size), change)

    def _uncross(self) -> None:
        """Where two messages contradict one another, the older one is no longer true."""
        while 0.0 < self.asks.best <= self.bids.best:
            older = self.bids if self.bids.best_change < self.asks.best_change else self.asks
            older.drop_best()

    @property
    def is_known(self) -> bool:
        """Whether both sides have a level."""
        return self.bids.best > 0.0 and self.asks.best > 0.0

    def ladder(self) -> Ladder:
        """The book of the moment."""
        return Ladder(self.bids.rows(), self.asks.rows())


def change_id(message: dict[str, Any]) -> int:
    """The newest change that a snapshot, a diff or a book ticker knows of."""
    return int(message["lastUpdateId"] if "lastUpdateId" in message else message["u"])
