"""The order book that the exchange shows: the recorded one, or what the square-root law of impact implies.

An order of q pays touch + reference * Y * sigma * sqrt(q / V) on average (``envs/execution.py``). In a book
with that mean its last unit pays 3/2 of it beyond the touch, so up to a distance d from the touch the book
has V * (d / (3/2 * reference * Y * sigma))**2. V is the volume of the newest closed bar, because that of the
open one is not known yet. Nothing but the clock and the price moves it: queues and other orders are not
modelled.
"""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from perpgym.envs.exchange.books import Books
from perpgym.envs.exchange.filters import decimals
from perpgym.envs.exchange.recorded import Level
from perpgym.envs.execution import quote

# of the mean price of an order to the price of its last unit, for a cost that grows as a square root
_MARGINAL = 1.5


def touch(books: Books, asset: int) -> tuple[float, float]:
    """(best bid, best ask), quote; 0 where a recorded book has none."""
    if books.recorded is not None:
        return books.recorded.touch(-1.0)[0], books.recorded.touch(1.0)[0]
    rules, last = books.rules(asset), books.market.last_price(asset)
    spread = books.world.rules.half_spread
    return float(quote(last, spread, rules, -1.0)), float(quote(last, spread, rules, 1.0))


def depth(books: Books, asset: int, levels: int) -> tuple[list[Level], list[Level]]:
    """Bids falling and asks rising: (price quote, quantity base), at most ``levels`` each."""
    if books.recorded is not None:
        bids, asks = (list(islice(books.recorded.levels(side), levels)) for side in (-1.0, 1.0))
        return bids, asks
    bid, ask = touch(books, asset)
    if bid == ask:
        # without a spread the book still may not cross
        bid -= books.contracts[asset].tick_size
    return _side(books, asset, bid, -1.0, levels), _side(books, asset, ask, 1.0, levels)


def _side(books: Books, asset: int, best: float, side: float, levels: int) -> list[Level]:
    market, contract, rules = books.market, books.contracts[asset], books.world.rules
    volume, tick, lot = market.volume_before(asset), contract.tick_size, contract.lot_size
    most = rules.max_participation * volume
    sigma = market.sigma_per_bar(asset) * books.world.market.fine_sigma_scale
    reach = _MARGINAL * market.last_price(asset) * rules.impact_coefficient * sigma
    if reach <= 0.0 or most <= lot:
        return [(best, max(float(_whole_lots(np.array(most), lot)), lot))]
    # the levels reach as far as the largest order does
    step = max(math.ceil(reach * math.sqrt(rules.max_participation) / levels / tick), 1) * tick
    number = np.arange(levels)
    within = np.minimum(volume * ((number + 1) * step / reach) ** 2, most)
    before = np.concatenate([[0.0], within[:-1]])
    # a level holds a lot at least, or there would be none
    sizes = np.maximum(_whole_lots(within - before, lot), lot)
    prices = np.round(best + side * number * step, decimals(tick))
    is_shown = (prices > 0.0) & (before < most)
    return list(zip(prices[is_shown].tolist(), sizes[is_shown].tolist(), strict=True))


def _whole_lots(size: NDArray[np.float64], lot: float) -> NDArray[np.float64]:
    """Sizes to show; what is traded is rounded by the kernel."""
    return np.round(np.floor(size / lot + 1e-6) * lot, decimals(lot))
