"""F01-F15: an order or a cancel that nobody answers for; judged by the exchange's own state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perpgym.envs.live.broker import OrderState

Open = Callable[..., Any]
ORDER = "/fapi/v1/order"
# row, whether the order was executed, and what becomes of it
UNKNOWN = [
    ("F01", True), ("F02", True), ("F03", False), ("F04", True), ("F04b", True), ("F06", True),
    ("F06b", True), ("F07", True), ("F07b", False), ("F08", True), ("F08b", True), ("F08c", True),
]  # fmt: skip


@pytest.mark.parametrize(("row", "is_executed"), UNKNOWN)
def test_an_unanswered_order_is_looked_for_and_never_sent_again(
    open_desk: Open, row: str, is_executed: bool
) -> None:
    async def story() -> None:
        async with open_desk(timeout_ms=300) as here:
            here.faults(row, path=ORDER)
            (order,) = await here.trade(0.05)
            assert here.hits() == 1
            assert len(here.orders()) == int(is_executed)
            assert here.position == (0.05 if is_executed else 0.0)
            assert order.state is (OrderState.FILLED if is_executed else OrderState.ABSENT)
            assert len(here.stops()) == int(is_executed)
            settled = await here.settle()
            assert settled.is_whole
            assert here.desk.status().state == "ready"
            # only a new decision sends a new order
            await here.trade(0.01)
            assert len(here.orders()) == int(is_executed) + 1
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("row", ["F05", "F05b"])
def test_an_order_refused_for_certain_is_not_looked_for(open_desk: Open, row: str) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.faults(row, path=ORDER)
            (order,) = await here.trade(0.05)
            assert (order.state, here.orders()) == (OrderState.REJECTED, [])
            assert here.desk.status().counts.get("unknowns", 0) == 0
            await here.trade(0.05)
            assert here.position == 0.05
            here.check_sound()

    asyncio.run(story())


def test_an_overloaded_exchange_still_takes_exits(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            here.faults("F05b", times=None)
            (order,) = await here.trade(0.05)
            assert order.state is OrderState.REJECTED
            await here.trade(-0.05)
            assert here.position == 0.0

    asyncio.run(story())


def test_an_order_that_the_copies_deny_stays_reserved_until_it_is_found(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"absent_after_s": 5.0, "settle_s": 0.2}) as here:
            deny = {
                "kind": "reply",
                "status": 400,
                "code": -2013,
                "method": "GET",
                "path": ORDER,
                "times": None,
            }
            hidden = {
                "kind": "reply",
                "status": 200,
                "text": "[]",
                "path": "/fapi/v1/allOrders",
                "times": None,
            }
            here.faults({"id": "F02", "path": ORDER}, deny, hidden)
            (order,) = await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            # openOrders has it
            assert order.state is OrderState.OPEN
            silent = {"kind": "drop_event", "times": None}
            here.faults({"id": "F02", "path": ORDER}, deny, hidden, silent)
            (order,) = await here.trade(0.05)
            assert order.state is OrderState.UNKNOWN
            assert here.desk.status().state == "recovering"
            assert here.desk.status().reserved >= 0.05 * here.last
            assert not (await here.settle()).is_whole
            assert await here.trade(0.05) == []
            assert here.position == 0.05
            here.faults()
            await asyncio.sleep(0.3)
            assert (await here.settle()).is_whole
            assert here.desk.status().unknown == ()
            assert len(here.orders()) == 2
            here.check_sound()

    asyncio.run(story())


def test_an_id_is_never_used_again(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.close()
            here.build()
            await here.desk.start()
            await here.trade(0.05)
            here.check_sound()
            assert len({order.client_id for order in here.orders()}) == 2

    asyncio.run(story())


def test_a_fill_that_comes_before_the_answer_is_counted_once(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timeout_ms=2_000) as here:
            here.faults("F11", path=ORDER, delay_ms=200)
            trading = asyncio.ensure_future(here.trade(0.05))
            await asyncio.sleep(0.1)
            # the stream has told it all
            assert here.desk.status().counts["fills"] == 1
            (order,) = await trading
            assert order.state is OrderState.FILLED
            states = [row["state"] for row in here.rows("order_states", order.client_id)]
            assert states[-1] == "filled"
            assert states.count("filled") == 1
            settled = await here.settle()
            assert [fill.quantity for fill in settled.fills] == [0.05]
            here.check_sound()

    asyncio.run(story())


def test_a_fill_that_the_stream_loses_is_found_in_the_account(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            (order,) = await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            here.faults("F12", times=20)
            here.admin("fill", orderId=order.exchange_id)
            settled = await here.settle()
            assert settled.is_whole
            assert [fill.quantity for fill in settled.fills] == [0.05]
            known = {o.client_id: o for o in here.journal.orders()}[order.client_id]
            assert (known.state, known.filled) == (OrderState.FILLED, 0.05)
            assert len(here.stops()) == 1
            here.check_sound()

    asyncio.run(story())


def test_what_filled_before_an_order_expired_is_booked(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            (order,) = await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            here.admin("fill", orderId=order.exchange_id, quantity=0.02)
            here.admin("expire", orderId=order.exchange_id)
            settled = await here.settle()
            assert [fill.quantity for fill in settled.fills] == [0.02]
            known = {o.client_id: o for o in here.journal.orders()}[order.client_id]
            assert (known.state, known.filled) == (OrderState.EXPIRED, 0.02)
            here.check_sound()

    asyncio.run(story())


def test_a_cancel_that_comes_after_the_fill_is_no_second_order(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            (order,) = await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            here.faults("F14")
            # the fill makes the position another than the one decided upon
            assert await here.trade(0.05) == []
            known = {o.client_id: o for o in here.journal.orders()}[order.client_id]
            assert known.state is OrderState.FILLED
            assert here.position == 0.05
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_a_lost_cancel_keeps_its_order_reserved_and_is_repeated(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timeout_ms=100, timings={"settle_s": 0.15}) as here:
            await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            here.faults("F15", times=None)
            assert await here.trade(0.05) == []
            assert len(here.resting()) == 1
            assert here.desk.status().reserved >= 0.049 * here.last
            here.faults()
            await here.trade(0.04)
            assert here.resting() == []
            assert here.position == 0.04
            here.check_sound()

    asyncio.run(story())


def test_an_order_that_nobody_waits_for_any_more_is_still_looked_for(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.faults({"id": "F01", "path": ORDER})
            trading = asyncio.ensure_future(here.trade(0.05))
            while here.position == 0.0:
                await asyncio.sleep(0.01)
            trading.cancel()
            await asyncio.gather(trading, return_exceptions=True)
            assert (await here.settle()).is_whole
            assert (len(here.orders()), len(here.stops())) == (1, 1)
            here.check_sound()

    asyncio.run(story())


def test_a_fill_is_protected_while_something_else_is_waited_for(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timeout_ms=2_000) as here:
            (resting,) = await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            here.faults("F15")
            deciding = asyncio.ensure_future(here.trade(0.05))
            await asyncio.sleep(0.1)
            here.admin("fill", orderId=resting.exchange_id)
            await asyncio.sleep(0.3)
            # the cancel hangs
            assert not deciding.done()
            assert len(here.stops()) == 1
            deciding.cancel()
            await asyncio.gather(deciding, return_exceptions=True)
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())
