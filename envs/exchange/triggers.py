"""Conditional orders: which of them protect a position, when one triggers, and what it sends then.

A market stop or take-profit that closes its whole position is the kernel's stop or target: it acts in its
turn on the way of prices through the bar. Everything else (entries, parts of a position, stop-limits, a
second stop behind the first, stops that watch the other price) triggers on the bar's range: before the way if
it enlarges the position, after it if it reduces, which is the order that hurts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import HIGH, LOW
from perpgym.envs.account import QUANTITY, STOP_PRICE, TARGET_PRICE
from perpgym.envs.arrays import World, read_bar
from perpgym.envs.exchange.books import AlgoEvent, Books, OrderEvent
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.margins import refusal
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.orders import AlgoOrder, Order, sign
from perpgym.envs.exchange.working import end_order, take, within_volume
from perpgym.envs.fills import taker_cost_rate
from perpgym.envs.orders import market_fill_price
from perpgym.envs.path import stop_reference

MARK_PRICE = "MARK_PRICE"


def watched_price(algo: AlgoOrder, market: Replay) -> float:
    """quote, the price of the moment that it watches."""
    watches = market.mark_price if algo.working_type == MARK_PRICE else market.last_price
    return watches(algo.asset)


def watched_bar(algo: AlgoOrder, market: Replay) -> NDArray[np.float64]:
    """(4,) quote: open, high, low and close of the open bar, of the price that it watches."""
    prices = market.inside.mark if algo.working_type == MARK_PRICE else market.inside.last
    bar: NDArray[np.float64] = prices[market.fine, algo.asset]
    return bar


def is_beyond(algo: AlgoOrder, market: Replay) -> bool:
    """Whether the price of the moment is at or beyond the trigger already."""
    if not algo.is_armed:
        return False
    away = watched_price(algo, market) - algo.trigger_price
    return away >= 0.0 if algo.trigger_is_above else away <= 0.0


def protects(algo: AlgoOrder, held: float) -> bool:
    """Whether it closes the whole position ``held`` (base, signed) at the market, and nothing more."""
    is_against = held * sign(algo.side) < 0.0
    is_whole = algo.close_position or (algo.reduce_only and algo.quantity >= abs(held) * (1.0 - 1e-9))
    return is_against and is_whole and algo.is_at_market and algo.is_armed


class Protection:
    """The stops and targets that the kernel watches in one bar.

    Attributes:
        world: with the price that they watch.
        stops, targets: by contract, the conditional order behind the kernel's price.
    """

    def __init__(self, books: Books) -> None:
        found = [a for a in books.registry.open_algos() if protects(a, books.position(a.asset))]
        stops_on_mark = [a.working_type == MARK_PRICE for a in found if a.is_stop]
        # the kernel watches one price for all of them: the one that most stops watch
        on_mark = sum(stops_on_mark) * 2 >= len(stops_on_mark)
        if not stops_on_mark:
            on_mark = any(a.working_type == MARK_PRICE for a in found)
        found = [a for a in found if (a.working_type == MARK_PRICE) == on_mark]
        self.stops = _nearest(a for a in found if a.is_stop)
        self.targets = _nearest(a for a in found if not a.is_stop)
        rules = books.world.rules._replace(stop_on_mark=float(on_mark))
        self.world: World = books.world._replace(rules=rules)

    def arm(self, books: Books) -> None:
        """Write the prices into the positions."""
        for asset, position in enumerate(books.account.positions):
            stop, target = self.stops.get(asset), self.targets.get(asset)
            is_held = position[QUANTITY] != 0.0
            position[STOP_PRICE] = stop.trigger_price if stop and is_held else math.nan
            position[TARGET_PRICE] = target.trigger_price if target and is_held else math.nan

    def holds(self, algo: AlgoOrder) -> bool:
        """Whether the kernel watches it."""
        return algo in (self.stops.get(algo.asset), self.targets.get(algo.asset))


def _nearest(algos: Iterable[AlgoOrder]) -> dict[int, AlgoOrder]:
    """By contract, the one that is touched first: the highest of those that trigger on a fall."""
    nearest: dict[int, AlgoOrder] = {}
    for algo in algos:
        other = nearest.get(algo.asset)
        if other is None or (algo.trigger_price < other.trigger_price) == algo.trigger_is_above:
            nearest[algo.asset] = algo
    return nearest


def is_touched(books: Books, algo: AlgoOrder) -> bool:
    """Whether the open bar reaches the trigger, in a market that trades."""
    market = books.market
    if market.inside.volume[market.fine, algo.asset] == 0.0 or not algo.is_armed:
        return False
    prices = watched_bar(algo, market)
    if algo.trigger_is_above:
        return bool(prices[HIGH] >= algo.trigger_price)
    return bool(prices[LOW] <= algo.trigger_price)


def child_of(books: Books, algo: AlgoOrder, quantity: float, time_ms: int) -> Order:
    """The order that a trigger sends, told to everyone: it has the conditional order's own client id."""
    order = Order(
        order_id=books.registry.next_id(), client_id=algo.client_id, asset=algo.asset, side=algo.side,
        kind="MARKET" if algo.is_at_market else "LIMIT", quantity=quantity, price=algo.price,
        time_in_force=algo.time_in_force, reduce_only=algo.only_closes, close_position=algo.close_position,
        original_kind=algo.kind, trigger_price=algo.trigger_price, working_type=algo.working_type,
        time_ms=time_ms,
    )  # fmt: skip
    algo.status, algo.child_id = "TRIGGERED", order.order_id
    algo.trigger_ms = algo.update_ms = time_ms
    books.emit(AlgoEvent(algo=algo, time_ms=time_ms))
    books.registry.add(order)
    books.emit(OrderEvent(order=order, execution="NEW", time_ms=time_ms))
    return order


def finish(books: Books, algo: AlgoOrder, time_ms: int) -> None:
    """What it sent is in the book or filled."""
    algo.status, algo.update_ms = "FINISHED", time_ms
    books.emit(AlgoEvent(algo=algo, time_ms=time_ms))


def refuse(books: Books, algo: AlgoOrder, code: int, time_ms: int) -> None:
    """It triggered and the exchange took no order from it."""
    algo.status, algo.end_reason = "REJECTED", Rejected(code).text
    algo.trigger_ms = algo.update_ms = time_ms
    books.emit(AlgoEvent(algo=algo, time_ms=time_ms))


def expire(books: Books, algo: AlgoOrder, reason: str, time_ms: int) -> None:
    """The exchange keeps it no longer."""
    algo.status, algo.end_reason, algo.update_ms = "EXPIRED", reason, time_ms
    books.emit(AlgoEvent(algo=algo, time_ms=time_ms))


def trigger(books: Books, algo: AlgoOrder, time_ms: int, *, is_after_open: bool = False) -> None:
    """Send what it holds, at its trigger or at the open of a bar that opens beyond it.

    A limit order fills at once where its price admits, else it rests from the next bar on.

    Args:
        is_after_open: the trigger came to stand there inside the bar, so the open was not beyond it.
    """
    held, asset = books.position(algo.asset), algo.asset
    quantity = abs(held) if algo.close_position else algo.quantity
    if algo.only_closes and held * sign(algo.side) >= 0.0:
        refuse(books, algo, -2022, time_ms)
        return
    reference = _reference(books, algo, is_after_open)
    due = within_volume(books, asset, min(quantity, abs(held)) if algo.only_closes else quantity)
    price = _fill_price(books, algo, due, reference)
    is_admitted = algo.is_at_market or sign(algo.side) * (algo.price - price) >= 0.0
    if algo.time_in_force == "GTX" and is_admitted and not algo.is_at_market:
        refuse(books, algo, -5022, time_ms)
        return
    if not algo.only_closes and due > 0.0:
        rate = taker_cost_rate(
            books.account, sign(algo.side) * due, reference, books.rules(asset), books.world.rules
        )
        code = refusal(books, algo, due, price if is_admitted else algo.price, float(rate))
        if code:
            refuse(books, algo, code, time_ms)
            return
    order = child_of(books, algo, quantity, time_ms)
    if is_admitted and due > 0.0:
        take(books, order, due, reference, time_ms, is_inside=True)
    if order.is_open and (algo.is_at_market or algo.time_in_force in ("IOC", "FOK")):
        end_order(books, order, "EXPIRED", "not filled at once", time_ms)
    finish(books, algo, time_ms)


def _fill_price(books: Books, algo: AlgoOrder, quantity: float, reference: float) -> float:
    """quote, of a taker fill from ``reference``."""
    market, asset = books.market, algo.asset
    rules = books.rules(asset)
    bar = read_bar(books.world.market, market.bar, market.fine, asset, rules.is_inverse)
    signed = sign(algo.side) * quantity
    _touch, price = market_fill_price(books.account, asset, reference, signed, bar, rules, books.world.rules)
    return float(price)


def _reference(books: Books, algo: AlgoOrder, is_after_open: bool) -> float:
    """Last price when it triggers, quote: never better than the trigger, nor than a gap."""
    market, asset = books.market, algo.asset
    bar = read_bar(books.world.market, market.bar, market.fine, asset, books.rules(asset).is_inverse)
    if algo.is_stop and not is_after_open and is_beyond(algo, market):
        return float(bar.last_open)
    rules = books.world.rules._replace(stop_on_mark=float(algo.working_type == MARK_PRICE))
    # a sale protects a long, whose stop fills lower
    return float(stop_reference(algo.trigger_price, -sign(algo.side), bar, rules))
