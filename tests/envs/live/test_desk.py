"""What a desk does when nothing goes wrong; judged by the exchange's own state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perpgym.envs.live.broker import OrderState, Settings
from perpgym.envs.live.desk import StartRefused
from perpgym.envs.live.limits import DeskLimits

Open = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"


def test_a_wish_becomes_one_order_a_stop_and_a_settled_account(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            assert here.desk.status().state == "ready"
            (order,) = await here.trade(0.05)
            assert order.state is OrderState.FILLED
            assert here.position == 0.05
            (stop,) = here.stops()
            assert stop.close_position
            assert stop.trigger_price == pytest.approx(0.9 * here.venue.books.entry_price(0), abs=0.05)
            await here.next_bar()
            settled = await here.settle()
            assert (settled.is_whole, settled.why) == (True, "")
            assert [fill.quantity for fill in settled.fills] == [0.05]
            assert settled.truth.quantity(SYMBOL) == 0.05
            assert (await here.settle()).fills == ()
            here.check_sound()

    asyncio.run(story())


def test_a_closed_position_leaves_no_stop_behind(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            (order,) = await here.trade(-0.05)
            assert order.reduce_only
            assert here.position == 0.0
            assert here.stops() == []
            assert here.resting() == []
            here.check_sound()

    asyncio.run(story())


def test_what_rests_of_a_decision_is_cancelled_by_the_next(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            (first,) = await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            assert first.state is OrderState.OPEN
            assert len(here.resting()) == 1
            await here.trade(0.04, style="post_only", limit_price=here.last * 0.96)
            assert [order.quantity for order in here.resting()] == [0.04]
            here.check_sound()

    asyncio.run(story())


def test_a_large_wish_is_split_and_a_turn_of_the_position_is_one_decision(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(start=False) as here:
            here.admin("contract", symbol="TESTUSDT", max_quantity=0.02)
            await here.desk.start()
            orders = await here.trade(0.05)
            assert sorted(order.quantity for order in orders) == [0.016, 0.017, 0.017]
            assert here.position == pytest.approx(0.05, abs=1e-12)
            await here.settle()
            await here.trade(-0.08)
            assert here.position == pytest.approx(-0.03, abs=1e-12)
            (stop,) = here.stops()
            assert stop.side == "BUY"
            here.check_sound()

    asyncio.run(story())


def test_a_stop_that_strikes_is_booked_and_nothing_is_left(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(stop_distance=0.004) as here:
            await here.trade(0.05)
            await here.settle()
            for _bar in range(30):
                await here.next_bar()
                if here.position == 0.0:
                    break
            settled = await here.settle()
            assert settled.is_whole
            assert [fill.quantity for fill in settled.fills] == [-0.05]
            assert here.stops() == []
            assert here.desk.status().state == "ready"
            here.check_sound()

    asyncio.run(story())


def test_funding_reaches_the_ledger(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            for _bar in range(9):
                await here.next_bar()
            settled = await here.settle()
            assert settled.is_whole
            assert "funding" in {row.kind for row in settled.income}
            here.check_sound()

    asyncio.run(story())


def test_no_decision_exceeds_the_limits(open_desk: Open) -> None:
    async def story() -> None:
        limits = DeskLimits(max_exposure=0.5, max_order_notional=4_000.0, max_orders_per_minute=2)
        async with open_desk(limits=limits) as here:
            assert await here.trade(0.2) == []
            assert await here.trade(0.14) == []
            await here.trade(0.1)
            await here.settle()
            # what rests counts as if it had filled
            assert await here.trade(0.1, style="limit", limit_price=here.last * 0.97) == []
            await here.trade(0.01)
            await here.settle()
            # the third within a minute
            assert await here.trade(0.01) == []
            assert here.position == pytest.approx(0.11)
            # an exit is never too much
            await here.trade(-0.11)
            assert here.position == 0.0
            here.check_sound()

    asyncio.run(story())


def test_an_account_is_set_up_or_refused(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(account=Settings(leverage={SYMBOL: 7}, margin_mode="isolated")) as here:
            rules = here.venue.books.rules(0)
            assert (rules.leverage, rules.is_isolated) == (7.0, 1.0)
        async with open_desk(start=False, account=Settings(leverage={SYMBOL: 7}, is_hedged=True)) as here:
            here.journal.close()
            here.build(journal=here.folder / "another.sqlite")
            with pytest.raises(StartRefused, match="-4084"):
                await here.desk.start()
        async with open_desk(start=False, account=Settings(leverage={SYMBOL: 500})) as here:
            here.journal.close()
            here.build(journal=here.folder / "a third.sqlite")
            with pytest.raises(StartRefused, match="-4028"):
                await here.desk.start()

    asyncio.run(story())


def test_flatten_closes_everything_and_freeze_leaves_the_stop(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            assert await here.desk.freeze("a test")
            assert here.resting() == []
            assert len(here.stops()) == 1
            assert here.desk.status().state == "halted"
            assert await here.trade(0.05) == []
            assert await here.desk.flatten("a test")
            assert here.position == 0.0
            assert here.stops() == []
            await here.desk.resume()
            assert here.desk.status().state == "ready"
            await here.trade(0.05)
            assert here.position == 0.05
            here.check_sound()

    asyncio.run(story())
