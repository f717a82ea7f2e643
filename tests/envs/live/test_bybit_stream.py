"""Bybit's private stream: login, topics, pings, cuts, and what its messages say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import bybit_messages as say
import pytest
from bybit_server import SYMBOL, LocalBybit, trading

from perpgym.envs.live.broker import (
    Fill,
    Happening,
    Order,
    OrderState,
    Position,
    SettingsChanged,
    StreamBroken,
    StreamOpened,
)
from perpgym.envs.live.bybit import Bybit
from perpgym.envs.live.order_table import merged

Step = Callable[[LocalBybit, Bybit, AsyncIterator[Happening]], Awaitable[None]]


def play(step: Step, **settings: Any) -> None:
    async def run() -> None:
        async with trading(**settings) as (server, broker):
            events = broker.events()
            try:
                async with asyncio.timeout(10.0):
                    await step(server, broker, events)
            finally:
                await events.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())


def of_order(**more: Any) -> dict[str, Any]:
    return say.event("order.linear", say.order("pg1-1", **more))


async def take(events: AsyncIterator[Happening], count: int) -> list[Happening]:
    return [await anext(events) for _happening in range(count)]


# --- the connection ---


def test_the_stream_opens_once_login_and_topics_are_accepted() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        assert isinstance(await anext(events), StreamOpened)
        assert server.logins == 1
        assert [said["op"] for said in server.heard] == ["auth", "subscribe"]
        assert server.heard[1]["args"] == ["order.linear", "execution.linear", "position.linear"]
        # what happens from now on is heard
        await server.tell(of_order())
        assert isinstance(await anext(events), Order)

    play(step)


def test_a_wrong_key_opens_no_stream_and_the_error_does_not_show_it() -> None:
    async def step(server: LocalBybit, broker: Bybit, events: AsyncIterator[Happening]) -> None:
        broker.wire.exchange.secret = "another"
        broken = await anext(events)
        assert isinstance(broken, StreamBroken)
        assert "another" not in broken.text
        assert server.logins == 0

    play(step)


def test_topics_that_are_refused_are_no_stream() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        server.refuses_topics = True
        assert isinstance(await anext(events), StreamBroken)
        server.refuses_topics = False
        assert isinstance(await anext(events), StreamOpened)

    play(step)


def test_a_stream_that_was_cut_is_told_and_opened_anew() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        await server.sockets[0].close()
        assert isinstance(await anext(events), StreamBroken)
        assert isinstance(await anext(events), StreamOpened)
        assert server.logins == 2
        await server.tell(of_order())
        assert isinstance(await anext(events), Order)

    play(step)


def test_a_renewed_stream_is_another_connection() -> None:
    async def step(server: LocalBybit, broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        await broker.renew_stream()
        assert isinstance(await anext(events), StreamBroken)
        assert isinstance(await anext(events), StreamOpened)
        assert server.logins == 2
        assert len(server.sockets) == 1

    play(step)


def test_the_stream_is_kept_open_by_pings() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        # several times what two missed pongs take
        await asyncio.sleep(0.4)
        assert not waiting.done()
        assert sum(said["op"] == "ping" for said in server.heard) >= 4
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    play(step, ping_s=0.05)


def test_a_stream_that_has_gone_silent_is_told_though_the_exchanges_clock_is_far_from_ours() -> None:
    async def step(server: LocalBybit, broker: Bybit, events: AsyncIterator[Happening]) -> None:
        assert abs(server.skew_ms) > 3_600_000
        await anext(events)
        server.answers_pings = False
        assert isinstance(await anext(events), StreamBroken)

    play(step, ping_s=0.05)


def test_a_closed_broker_ends_its_events() -> None:
    async def step(_server: LocalBybit, broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        await broker.close()
        assert [type(happening) async for happening in events] == [StreamBroken]

    play(step)


# --- what it says ---


def test_an_execution_is_a_trade_and_funding_is_none() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        rows = [say.funding_execution(1, time_ms=5), say.execution(2, "pg1-1"), say.execution(3, "pg1-1")]
        await server.tell(say.event("execution.linear", *rows))
        found = await take(events, 2)
        assert [type(happening) for happening in found] == [Fill, Fill]
        assert [happening.trade_id[-1] for happening in found if isinstance(happening, Fill)] == ["2", "3"]

    play(step)


def test_a_position_is_told_signed_and_flat() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        short, flat = say.position_event("0.010", "Sell"), say.position_event("0", "")
        await server.tell(say.event("position.linear", short, flat))
        found = await take(events, 2)
        assert [p.quantity for p in found if isinstance(p, Position)] == [-0.01, 0.0]

    play(step)


def test_a_leverage_that_somebody_changed_is_told_once() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        rows = [say.position_event("0.010", leverage=leverage) for leverage in ("10", "10", "25", "25")]
        await server.tell(say.event("position.linear", *rows))
        changes = [h for h in await take(events, 5) if isinstance(h, SettingsChanged)]
        assert [(change.contract, change.text) for change in changes] == [(SYMBOL, "leverage 10 became 25")]

    play(step)


def test_a_position_of_hedge_mode_is_a_change_of_settings() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        await server.tell(say.event("position.linear", say.position_event("0.010", positionIdx=1)))
        assert isinstance(await anext(events), SettingsChanged)

    play(step)


def test_the_coin_of_the_same_name_is_not_the_contract() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        coins = say.order("pg1-coins", category="spot")
        await server.tell(say.event("order.linear", coins), of_order())
        happening = await anext(events)
        assert isinstance(happening, Order)
        assert happening.client_id == "pg1-1"

    play(step)


@pytest.mark.parametrize(
    "strange",
    [
        {"topic": "greeks", "data": [{}]},
        {"topic": "order.linear"},
        {"topic": "order.linear", "data": [{"category": "linear", "symbol": "BTCUSDT"}]},
        {"topic": "order.linear", "data": "?"},
        {"op": "notice"},
    ],
)
def test_a_message_that_nobody_understands_is_passed_over(strange: dict[str, Any]) -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        await server.tell(strange, of_order())
        assert isinstance(await anext(events), Order)

    play(step)


def test_events_doubled_and_out_of_order_leave_the_order_filled_and_each_trade_once() -> None:
    async def step(server: LocalBybit, _broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        filled = of_order(orderStatus="Filled", cumExecQty="0.010", avgPrice="42000", updatedTime="30")
        part = of_order(orderStatus="PartiallyFilled", cumExecQty="0.004", avgPrice="42000", updatedTime="20")
        trades = say.event("execution.linear", say.execution(2, "pg1-1"), say.execution(1, "pg1-1"))
        # the exchange tells a filled order once more when a cancel came too late
        late = of_order(orderStatus="Filled", cumExecQty="0.010", cancelType="CancelByUser", updatedTime="30")
        await server.tell(filled, trades, part, of_order(updatedTime="10"), late, trades)
        order = Order(client_id="pg1-1", contract=SYMBOL, quantity=0.01, state=OrderState.OPEN)
        fills: dict[str, Fill] = {}
        for happening in await take(events, 8):
            if isinstance(happening, Order):
                order = merged(order, happening)
            elif isinstance(happening, Fill):
                fills[happening.trade_id] = happening
        assert (order.state, order.filled) == (OrderState.FILLED, 0.01)
        assert len(fills) == 2

    play(step)


# --- the dead man's switch ---


def guards(server: LocalBybit) -> list[str]:
    """What was asked of the topic that guards, in order."""
    return [said["op"] for said in server.heard if said.get("args") == ["dcp.future"]]


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.01)


def test_the_dead_man_is_a_window_and_a_topic_that_every_connection_takes() -> None:
    async def step(server: LocalBybit, broker: Bybit, events: AsyncIterator[Happening]) -> None:
        path = "/v5/order/disconnected-cancel-all"
        await anext(events)
        await broker.arm_dead_man(SYMBOL, 60_000)
        await until(lambda: guards(server) == ["subscribe"])
        assert server.asked(path) == [{"product": "DERIVATIVES", "timeWindow": 60}]
        # no countdown: asking again changes nothing
        await broker.arm_dead_man(SYMBOL, 60_000)
        assert len(server.asked(path)) == 1
        await server.sockets[0].close()
        await take(events, 2)
        await until(lambda: guards(server) == ["subscribe", "subscribe"])
        await broker.arm_dead_man(SYMBOL, 0)
        await until(lambda: guards(server)[2:] == ["unsubscribe"])

    play(step, has_dead_man=True)


@pytest.mark.parametrize(("ms", "window_s"), [(1, 3), (2_500, 3), (10_001, 11), (900_000, 300)])
def test_a_window_is_what_the_exchange_admits(ms: int, window_s: int) -> None:
    async def step(server: LocalBybit, broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await broker.arm_dead_man(SYMBOL, ms)
        assert server.asked("/v5/order/disconnected-cancel-all")[0]["timeWindow"] == window_s

    play(step, has_dead_man=True)


def test_an_account_without_the_protection_asks_for_none() -> None:
    async def step(server: LocalBybit, broker: Bybit, events: AsyncIterator[Happening]) -> None:
        await anext(events)
        await broker.arm_dead_man(SYMBOL, 60_000)
        assert server.asked("/v5/order/disconnected-cancel-all") == []
        await server.tell(of_order())
        await anext(events)
        assert guards(server) == []

    play(step)
