"""Changing an order in place: what stays of it, what it takes, and what of it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ccxt
import pytest

from perpgym.envs.exchange.books import OrderEvent
from perpgym.envs.exchange.engine import Engine, OrderRequest
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.margins import available
from perpgym.envs.exchange.orders import Order

On = Callable[..., Engine]
SYMBOL = "TEST/USDT:USDT"
STILL = ((100, 100, 100, 100), (100, 100, 98, 100), (100, 100, 98, 100))


def rest(engine: Engine, quantity: float, price: float, **more: Any) -> Order:
    fields = {"side": "BUY", "kind": "LIMIT", "client_id": "mine"} | more
    return engine.place(OrderRequest(asset=0, quantity=quantity, price=price, **fields))


def trades(engine: Engine) -> list[tuple[float, float, bool]]:
    return [(t.quantity, t.price, t.is_maker) for t in engine.registry.trades]


def test_it_rests_at_its_new_price_under_its_own_id(engine_on: On) -> None:
    engine = engine_on(*STILL)
    seen: list[tuple[str, float, float]] = []

    def hear(event: Any) -> None:
        if isinstance(event, OrderEvent):
            seen.append((event.execution, event.order.price, event.order.quantity))

    order = rest(engine, 1.0, 95.0)
    engine.books.listeners.append(hear)
    engine.advance(engine.next_ms)
    changed = engine.amend(order, 2.0, 99.0)
    assert (changed.order_id, changed.client_id, changed.status) == (order.order_id, "mine", "NEW")
    assert (changed.time_ms, changed.update_ms) == (order.time_ms, engine.now_ms)
    assert seen == [("AMENDMENT", 99.0, 2.0)]
    assert engine.registry.open_orders() == [order]
    engine.advance(engine.next_ms)
    assert trades(engine) == [(2.0, 99.0, True)]


def test_what_was_executed_stays_executed(engine_on: On) -> None:
    # half the volume lies beyond 99, a tenth of it is the account's
    engine = engine_on(*STILL[1:], (100, 100, 100, 100), volume=8.0, max_participation=0.1)
    order = rest(engine, 1.0, 99.0)
    engine.advance(engine.next_ms)
    assert (order.executed, order.status) == (0.4, "PARTIALLY_FILLED")
    engine.amend(order, 0.7, 98.5)
    assert (order.executed, order.quantity, order.status) == (0.4, 0.7, "PARTIALLY_FILLED")
    assert order.average_price == pytest.approx(99.0)
    engine.advance(engine.next_ms)
    # a quarter of the volume lies beyond 98.5
    assert trades(engine) == [(0.4, 99.0, True), (0.2, 98.5, True)]
    # what is executed already ends it
    engine.amend(order, 0.6, 98.0)
    assert (order.status, order.executed, order.quantity) == ("CANCELED", 0.6, 0.7)
    assert engine.books.position(0) == 0.6


def test_at_a_price_that_crosses_it_takes(engine_on: On) -> None:
    engine = engine_on(*STILL)
    order = rest(engine, 1.0, 95.0)
    engine.amend(order, 1.5, 101.0)
    assert trades(engine) == [(1.5, 100.0, False)]
    assert order.status == "FILLED"
    assert engine.books.wallet == pytest.approx(10_000.0 - 1.5 * 100.0 * 0.0004, abs=1e-9)


def test_a_post_only_order_that_would_take_is_cancelled(engine_on: On) -> None:
    engine = engine_on(*STILL)
    order = rest(engine, 1.0, 95.0, time_in_force="GTX")
    assert engine.amend(order, 1.0, 101.0).status == "CANCELED"
    assert trades(engine) == []


def test_margin_is_that_of_the_changed_order_alone(engine_on: On) -> None:
    engine = engine_on(*STILL, leverage=10.0)
    order = rest(engine, 600.0, 99.0)
    free = available(engine.books)
    assert free == pytest.approx(10_000.0 - 600.0 * 99.0 / 10.0)
    # what it ties up itself is free for its change
    engine.amend(order, 900.0, 99.0)
    assert available(engine.books) == pytest.approx(10_000.0 - 900.0 * 99.0 / 10.0)
    with pytest.raises(Rejected, match="-2019"):
        engine.amend(order, 1_100.0, 99.0)
    assert (order.quantity, order.price, order.is_open) == (900.0, 99.0, True)


def test_what_may_not_be_changed_is_refused_and_stays(engine_on: On) -> None:
    engine = engine_on(*STILL)
    order = rest(engine, 1.0, 95.0)
    for code, quantity, price in ((-5027, 1.0, 95.0), (-5029, 0.05, 95.0), (-4016, 1.0, 116.0)):
        with pytest.raises(Rejected, match=str(code)):
            engine.amend(order, quantity, price)
    order.amendments = 10_000
    with pytest.raises(Rejected, match="-5026"):
        engine.amend(order, 2.0, 95.0)
    engine.closed.add(0)
    with pytest.raises(Rejected, match="-5024"):
        engine.amend(order, 2.0, 95.0)
    assert (order.quantity, order.price, order.is_open) == (1.0, 95.0, True)
    engine.cancel(0, order.order_id, None)
    with pytest.raises(Rejected, match="-2013"):
        engine.amend(order, 2.0, 95.0)


def test_unmodified_ccxt_edits_an_order(local: Callable[..., Any]) -> None:
    client = local().client
    order = client.create_order(SYMBOL, "limit", "buy", 0.05, 27_000.0, {"clientOrderId": "mine"})
    edited = client.edit_order(order["id"], SYMBOL, "limit", "buy", 0.06, 27_500.5)
    assert (edited["id"], edited["clientOrderId"], edited["status"]) == (order["id"], "mine", "open")
    (resting,) = client.fetch_open_orders(SYMBOL)
    assert (resting["amount"], resting["price"], resting["timestamp"]) == (0.06, 27_500.5, order["timestamp"])
    refusals = [
        (("77", 0.05, 27_000.0, "buy"), "-2013"),
        ((order["id"], 0.06, 27_500.5, "buy"), "-5027"),
        ((order["id"], 0.05, 27_000.0, "sell"), "-1130"),
    ]
    for (number, amount, price, side), code in refusals:
        with pytest.raises(ccxt.BaseError, match=code):
            client.edit_order(number, SYMBOL, "limit", side, amount, price)
    request = {"symbol": "TESTUSDT", "side": "BUY", "orderId": order["id"]}
    for more, code in (
        ({"quantity": "0.05"}, "-1102"),
        ({"quantity": "0.0505", "price": "27000"}, "-1111"),
        ({"quantity": "0.05", "price": "27000.05"}, "-1111"),
    ):
        with pytest.raises(ccxt.BaseError, match=code):
            client.fapiPrivatePutOrder({**request, **more})
    (resting,) = client.fetch_open_orders(SYMBOL)
    assert (resting["amount"], resting["price"]) == (0.06, 27_500.5)
