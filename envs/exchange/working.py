"""Orders through the kernel: an order is put into its row, filled, and what it filled is booked."""

from __future__ import annotations

import math

from perpgym.envs.account import (
    ORDER_AGE,
    ORDER_DONE,
    ORDER_FRESH,
    ORDER_HELD,
    ORDER_LIMIT,
    ORDER_QUANTITY,
    ORDER_REASON,
    ORDER_SIZE,
    ORDER_STOP,
    ORDER_STYLE,
    on_lot_grid,
)
from perpgym.envs.arrays import read_bar
from perpgym.envs.exchange.books import Books, OrderEvent
from perpgym.envs.exchange.margins import refusal
from perpgym.envs.exchange.orders import Order, sign
from perpgym.envs.exchange.recorded import Level
from perpgym.envs.execution import to_lots
from perpgym.envs.fills import ORDER, maker_cost_rate, take_at, take_at_fee, taker_cost_rate
from perpgym.envs.inside import fill_resting, fill_through
from perpgym.envs.matching import take_due
from perpgym.envs.orders import BRACKET, LIMIT, MARGIN, MARKET, volume_beyond


def _put(books: Books, order: Order, wanted: float, style: int) -> None:
    """An order into the kernel's row of its contract; ``wanted`` is base, unsigned."""
    row = books.account.orders[order.asset]
    row[ORDER_QUANTITY] = sign(order.side) * wanted
    # an order in the book was admitted as it came
    row[ORDER_SIZE] = sign(order.side) * order.quantity
    row[ORDER_HELD] = books.position(order.asset)
    row[ORDER_STYLE], row[ORDER_LIMIT] = style, order.price
    row[ORDER_REASON] = row[ORDER_STOP] = row[ORDER_DONE] = 0.0
    # it was judged when it arrived
    row[ORDER_AGE] = math.inf


def wanted_of(books: Books, order: Order) -> float:
    """base, unsigned: what of it may fill at most; a reduce-only order never more than the position."""
    left = float(on_lot_grid(order.left, order.left, books.rules(order.asset)))
    if not order.reduce_only:
        return left
    held = books.position(order.asset)
    return min(left, abs(held)) if held * sign(order.side) < 0.0 else 0.0


def within_volume(books: Books, asset: int, wanted: float) -> float:
    """base, unsigned: what of it the account may still take of the open bar's volume, with all its orders.

    Before its first fill in a bar that is the kernel's own business.
    """
    taken = float(books.taken[asset])
    if taken == 0.0:
        return wanted
    volume = float(books.market.inside.volume[books.market.fine, asset])
    room = max(books.world.rules.max_participation * volume - taken, 0.0)
    return min(wanted, float(to_lots(room, books.rules(asset))))


def take(
    books: Books, order: Order, due: float, reference: float, time_ms: int, *, is_inside: bool = False
) -> None:
    """Fill ``due`` of an order as a taker from ``reference`` (quote, the last price at that moment).

    Args:
        is_inside: inside the bar, not at its open: no target of this bar may count on it.
    """
    market = books.market
    # what is not due now is no part of this fill
    _put(books, order, due, MARKET)
    take_due(
        books.account, books.world, order.asset, market.bar, market.fine, sign(order.side) * due, reference
    )
    if is_inside:
        books.account.orders[order.asset, ORDER_FRESH] = 1.0
    _book(books, order, time_ms, is_maker=False)


def take_levels(books: Books, order: Order, levels: list[Level], time_ms: int) -> None:
    """Fill an order as a taker at levels of the recorded book, each a fill."""
    recorded, side, asset = books.recorded, sign(order.side), order.asset
    assert recorded is not None, "only a recorded book has levels to take"
    rules, world = books.rules(asset), books.world.rules
    reference, (touch, _size), mark = recorded.mid, recorded.touch(side), books.market.mark_price(asset)
    for price, size in levels:
        rate = taker_cost_rate(books.account, side * size, reference, rules, world)
        # what it leaves behind is the hole in the book, so there is no trace of it (illiquidity 0)
        take_at_fee(
            books.account, asset, side * size, reference, touch, price, rate, 0.0, mark, ORDER, rules, world
        )
        recorded.remove(side, price, size)
    _book(books, order, time_ms, is_maker=False)


def volume_through(books: Books, order: Order) -> float:
    """base that trades a tick or more beyond the price of a resting order while the bar is open."""
    if books.recorded is not None:
        return books.recorded.through(order)
    market, rules = books.market, books.rules(order.asset)
    bar = read_bar(books.world.market, market.bar, market.fine, order.asset, rules.is_inverse)
    return float(volume_beyond(sign(order.side), order.price, bar, rules))


def fill_maker(books: Books, order: Order, wanted: float, time_ms: int) -> None:
    """Fill what of a resting order the open bar trades through; what margin refuses ends it."""
    market = books.market
    _put(books, order, wanted, LIMIT)
    where = (books.account, books.world, order.asset, market.bar, market.fine)
    if books.recorded is None:
        fill_resting(*where)
    else:
        fill_through(*where, volume_through(books, order))
    reason = int(books.account.orders[order.asset, ORDER_REASON])
    _book(books, order, time_ms, is_maker=True)
    if order.is_open and reason & (MARGIN | BRACKET):
        end_order(books, order, "EXPIRED", "margin", time_ms)


def meet_recorded_book(books: Books, time_ms: int) -> None:
    """Fill resting orders whose price the other side of the recorded book has come to without a trade.

    Whoever put those levels there would have met the order: it fills at its limit as a maker, and what it
    filled against is gone.
    """
    recorded = books.recorded
    if recorded is None:
        return
    for order in books.registry.open_orders():
        levels = recorded.walk(order, wanted_of(books, order))
        if not levels:
            continue
        quantity = sum(size for _price, size in levels)
        rules, side = books.rules(order.asset), sign(order.side)
        rate = maker_cost_rate(books.account, side * quantity, order.price, rules, books.world.rules)
        if not order.reduce_only and refusal(books, order, quantity, order.price, float(rate)):
            end_order(books, order, "EXPIRED", "margin", time_ms)
            continue
        for price, size in levels:
            recorded.remove(side, price, size)
        fill_at_limit(books, order, quantity, time_ms)


def fill_at_limit(books: Books, order: Order, quantity: float, time_ms: int) -> None:
    """Fill ``quantity`` (base) of a resting order at its limit, whatever the bar does."""
    _put(books, order, quantity, LIMIT)
    rules, world, signed = books.rules(order.asset), books.world.rules, sign(order.side) * quantity
    rate = maker_cost_rate(books.account, signed, order.price, rules, world)
    mark = books.market.mark_price(order.asset)
    take_at(books.account, order.asset, signed, order.price, rate, mark, ORDER, rules, world)
    _book(books, order, time_ms, is_maker=True)


def _book(books: Books, order: Order, time_ms: int, *, is_maker: bool) -> None:
    row = books.account.orders[order.asset]
    row[ORDER_QUANTITY] = 0.0
    for fill in books.collect():
        books.book(order, fill, time_ms, is_maker=is_maker)
    books.forgive(order.asset, time_ms)
    expire_reduce_only(books, time_ms)


def expire_reduce_only(books: Books, time_ms: int) -> None:
    """Resting orders that have nothing left to reduce leave the book."""
    for order in books.registry.open_orders():
        if order.reduce_only and order.kind == "LIMIT" and wanted_of(books, order) == 0.0:
            end_order(books, order, "EXPIRED", "nothing to reduce", time_ms)


def end_order(books: Books, order: Order, status: str, reason: str, time_ms: int) -> None:
    """An order leaves the book without (further) fills: ``CANCELED`` or ``EXPIRED``."""
    order.status, order.end_reason, order.update_ms = status, reason, time_ms  # type: ignore[assignment]
    books.emit(OrderEvent(order=order, execution=status, time_ms=time_ms))
