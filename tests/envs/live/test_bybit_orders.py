"""Orders at Bybit: what is sent, what an acknowledgement means, and where an order is found again."""

from __future__ import annotations

import asyncio
from typing import Any

import bybit_messages as say
import pytest
from bybit_server import SYMBOL, refuse, trading

from perpgym.envs.live.broker import Order, OrderState, Rejected, Unknown
from perpgym.envs.live.bybit_payloads import read_order

CREATE, CANCEL, REALTIME, HISTORY = (
    "/v5/order/create",
    "/v5/order/cancel",
    "/v5/order/realtime",
    "/v5/order/history",
)


def order(**more: Any) -> Order:
    return Order(**({"client_id": "pg1-1", "contract": SYMBOL, "quantity": 0.01} | more))


def sent(asked: Order) -> dict[str, Any]:
    """What the exchange gets of an order."""

    async def play() -> dict[str, Any]:
        async with trading() as (server, broker):
            await broker.submit(asked)
            return server.asked(CREATE)[0]

    return asyncio.run(play())


def found(row: dict[str, Any] | None, path: str = REALTIME) -> Order | None:
    """What the broker finds where the exchange has one order, or none."""

    async def play() -> Order | None:
        async with trading() as (server, broker):
            server.rows[path] = [row] if row else []
            return await broker.find("pg1-1", SYMBOL)

    return asyncio.run(play())


def read(row: dict[str, Any]) -> Order:
    return read_order(row, lambda symbol: symbol)


def test_a_market_order_is_for_one_way_positions_and_carries_our_id() -> None:
    assert sent(order(quantity=-0.0129)) == {
        "category": "linear",
        "symbol": "BTCUSDT",
        "side": "Sell",
        "orderType": "Market",
        "qty": "0.012",
        "orderLinkId": "pg1-1",
        "positionIdx": 0,
    }


def test_a_limit_order_rests_at_a_whole_tick() -> None:
    params = sent(order(style="limit", price=42_000.04))
    assert (params["orderType"], params["price"], params["timeInForce"]) == ("Limit", "42000", "GTC")


def test_a_post_only_order_says_so() -> None:
    assert sent(order(style="post_only", price=42_000.1))["timeInForce"] == "PostOnly"


def test_an_exit_may_only_reduce() -> None:
    assert sent(order(reduce_only=True))["reduceOnly"] is True


@pytest.mark.parametrize(
    ("style", "quantity", "side", "direction"),
    [
        ("stop", -1.0, "Sell", 2),
        ("stop", 1.0, "Buy", 1),
        ("take_profit", -1.0, "Sell", 1),
        ("take_profit", 1.0, "Buy", 2),
    ],
)
def test_a_stop_waits_for_a_loss_and_a_take_profit_for_a_gain(
    style: str, quantity: float, side: str, direction: int
) -> None:
    params = sent(
        order(style=style, quantity=quantity, trigger_price=40_000.04, closes_position=True, watches="mark")
    )
    assert (params["side"], params["triggerDirection"]) == (side, direction)
    assert (params["triggerPrice"], params["triggerBy"]) == ("40000", "MarkPrice")


def test_a_stop_for_everything_held_asks_for_no_quantity_and_makes_room_for_itself() -> None:
    params = sent(order(style="stop", quantity=-0.01, trigger_price=40_000.0, closes_position=True))
    assert (params["qty"], params["reduceOnly"], params["closeOnTrigger"]) == ("0", True, True)
    assert params["orderType"] == "Market"


def test_a_stop_for_a_part_asks_for_its_quantity_and_only_reduces() -> None:
    params = sent(order(style="stop", quantity=-0.01, trigger_price=40_000.0, watches="last"))
    assert (params["qty"], params["reduceOnly"], params["triggerBy"]) == ("0.01", True, "LastPrice")
    assert "closeOnTrigger" not in params


def test_an_acknowledged_order_is_open_and_older_than_every_event_about_it() -> None:
    async def play() -> None:
        async with trading() as (_server, broker):
            known = await broker.submit(order())
            assert (known.state, known.exchange_id, known.filled) == (OrderState.OPEN, "id-of-pg1-1", 0.0)
            assert known.updated_ms == 0

    asyncio.run(play())


def test_a_cancel_that_is_acknowledged_is_not_yet_carried_out() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            known = await broker.cancel(order(state=OrderState.OPEN))
            assert known.state is OrderState.PENDING_CANCEL
            assert server.asked(CANCEL) == [
                {"category": "linear", "symbol": "BTCUSDT", "orderLinkId": "pg1-1"}
            ]

    asyncio.run(play())


def test_a_cancel_of_an_order_that_is_gone_is_refused() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            server.failures[CANCEL] = [refuse(110001, "order not exists or too late to cancel")]
            with pytest.raises(Rejected) as told:
                await broker.cancel(order())
            assert told.value.code == 110001

    asyncio.run(play())


@pytest.mark.parametrize("code", [110030, 110072])
def test_an_id_that_is_taken_proves_that_the_order_is_there(code: int) -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            server.failures[CREATE] = [refuse(code, "OrderLinkedID is duplicate")]
            with pytest.raises(Unknown):
                await broker.submit(order())

    asyncio.run(play())


def test_an_order_with_an_id_that_the_exchange_would_not_take_is_not_sent() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            for name in ("p" * 37, "pg 1", ""):
                with pytest.raises(Rejected):
                    await broker.submit(order(client_id=name))
            assert server.asked(CREATE) == []

    asyncio.run(play())


def test_an_open_order_is_found_by_our_id() -> None:
    known = found(say.order("pg1-1", orderStatus="PartiallyFilled", cumExecQty="0.004", avgPrice="42000"))
    assert known is not None
    assert (known.state, known.quantity, known.filled, known.average) == (
        OrderState.PARTIAL,
        0.01,
        0.004,
        42_000.0,
    )
    assert (known.style, known.price, known.updated_ms) == ("limit", 42_000.0, say.START_MS)


def test_an_order_that_has_ended_is_found_in_the_history() -> None:
    known = found(say.order("pg1-1", orderStatus="Filled", cumExecQty="0.010", avgPrice="42000"), HISTORY)
    assert known is not None
    assert (known.state, known.filled) == (OrderState.FILLED, 0.01)


def test_an_order_that_is_in_no_list_is_not_found() -> None:
    assert found(None) is None


def test_another_order_than_the_one_asked_for_is_not_taken_for_it() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            server.results[REALTIME] = say.page([say.order("somebody-elses")])
            server.failures[HISTORY] = [refuse(110001)]
            assert await broker.find("pg1-1", SYMBOL) is None

    asyncio.run(play())


def test_a_history_that_cannot_be_asked_proves_nothing() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            server.failures[HISTORY] = [refuse(10001)]
            with pytest.raises(Rejected):
                await broker.find("pg1-1", SYMBOL)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("status", "cancel_type", "state"),
    [
        ("New", "UNKNOWN", OrderState.OPEN),
        ("Untriggered", "UNKNOWN", OrderState.OPEN),
        ("Triggered", "UNKNOWN", OrderState.PARTIAL),
        ("Filled", "UNKNOWN", OrderState.FILLED),
        ("Cancelled", "CancelByUser", OrderState.CANCELLED),
        # post-only that would have crossed, and the like
        ("Cancelled", "UNKNOWN", OrderState.EXPIRED),
        ("Cancelled", "CancelByPrepareLiq", OrderState.EXPIRED),
        ("Rejected", "UNKNOWN", OrderState.REJECTED),
        ("SomethingNew", "UNKNOWN", OrderState.UNKNOWN),
    ],
)
def test_a_status_says_where_an_order_stands(status: str, cancel_type: str, state: OrderState) -> None:
    known = read(say.order("pg1-1", orderStatus=status, cancelType=cancel_type))
    assert known.state is state


@pytest.mark.parametrize(
    ("more", "style"),
    [
        ({"orderType": "Market", "timeInForce": "IOC"}, "market"),
        ({"timeInForce": "PostOnly"}, "post_only"),
        ({"side": "Sell", "triggerPrice": "40000", "triggerDirection": 2}, "stop"),
        ({"side": "Sell", "triggerPrice": "44000", "triggerDirection": 1}, "take_profit"),
        ({"side": "Buy", "triggerPrice": "44000", "triggerDirection": 1}, "stop"),
        # set on the position by hand
        ({"side": "Sell", "triggerPrice": "44000", "stopOrderType": "TakeProfit"}, "take_profit"),
        ({"side": "Sell", "triggerPrice": "40000", "stopOrderType": "StopLoss"}, "stop"),
        ({"triggerPrice": "0.00"}, "limit"),
    ],
)
def test_an_order_is_read_back_as_what_it_was_sent_as(more: dict[str, Any], style: str) -> None:
    known = read(say.order("pg1-1", **more))
    assert known.style == style


def test_the_worst_price_of_a_market_order_is_no_limit_price() -> None:
    known = read(say.order("pg1-1", orderType="Market", price="44100"))
    assert known.price is None


def test_a_stop_for_everything_held_is_read_back_as_one_and_keeps_its_side() -> None:
    known = read(say.waiting_stop("pg1-1"))
    assert (known.closes_position, known.reduce_only, known.is_stop) == (True, True, True)
    assert (known.trigger_price, known.watches) == (40_000.0, "mark")
    # it has no quantity; zero carries the sign
    assert str(known.quantity) == "-0.0"
