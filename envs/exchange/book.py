"""The order book that the exchange shows: what the square-root law of the account's own impact implies.

An order of q pays touch + reference * Y * sigma * sqrt(q / V) on average (``envs/execution.py``). In a book
with that mean its last unit pays 3/2 of it beyond the touch, so up to a distance d from the touch the book
has V * (d / (3/2 * reference * Y * sigma))**2. V is the volume of the newest closed bar, because that of the
open one is not known yet. Nothing but the clock and the price moves it: queues and other orders are not
modelled.
"""

from __future__ import annotations

import math

from perpgym.envs.exchange.books import Books
from perpgym.envs.execution import quote, to_lots

# of the mean price of an order to the price of its last unit, for a cost that grows as a square root
_MARGINAL = 1.5
Level = tuple[float, float]


def touch(books: Books, asset: int) -> tuple[float, float]:
    """(best bid, best ask), quote."""
    rules, last = books.rules(asset), books.market.last_price(asset)
    spread = books.world.rules.half_spread
    return float(quote(last, spread, rules, -1.0)), float(quote(last, spread, rules, 1.0))


def depth(books: Books, asset: int, levels: int) -> tuple[list[Level], list[Level]]:
    """Bids falling and asks rising: (price quote, quantity base), at most ``levels`` each."""
    bid, ask = touch(books, asset)
    if bid == ask:
        # without a spread the book still may not cross
        bid -= books.contracts[asset].tick_size
    return _side(books, asset, bid, -1.0, levels), _side(books, asset, ask, 1.0, levels)


def _side(books: Books, asset: int, best: float, side: float, levels: int) -> list[Level]:
    market, rules, world = books.market, books.rules(asset), books.world.rules
    volume = market.volume_before(asset)
    most = float(to_lots(world.max_participation * volume, rules)) if math.isfinite(volume) else 0.0
    lot = books.contracts[asset].lot_size
    sigma = market.sigma_per_bar(asset) * books.world.market.fine_sigma_scale
    reach = _MARGINAL * market.last_price(asset) * world.impact_coefficient * sigma
    tick = books.contracts[asset].tick_size
    if reach <= 0.0 or most <= 0.0:
        return [(best, max(most, lot))]
    # the levels reach as far as the largest order does
    step = max(math.ceil(reach * math.sqrt(world.max_participation) / levels / tick), 1) * tick
    rows: list[Level] = []
    before = 0.0
    for number in range(levels):
        within = min(volume * ((number + 1) * step / reach) ** 2, most)
        size = float(to_lots(within - before, rules))
        price = round(best + side * number * step, 12)
        if price <= 0.0 or before >= most:
            break
        # a level holds a lot at least, or there would be none
        rows.append((price, max(size, lot)))
        before = within
    return rows
