"""F28-F35, F48, F55: what a market that misbehaves does to an account; judged by the exchange's own state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perpgym.envs.exchange.margins import equity
from perpgym.envs.live.broker import OrderState
from perpgym.envs.live.limits import reserved_notional

Open = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"
HOUR_MS = 3_600_000


async def until(is_so: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


def test_a_bar_that_is_still_open_is_no_bar(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            market = here.venue.market
            for into_ms in (0, 1, HOUR_MS // 2, HOUR_MS - 1):
                here.venue.clock.move_to(market.open_ms + into_ms)
                rows = await here.broker.bars(SYMBOL, "last", market.open_ms - 3 * HOUR_MS, 10)
                # the exchange shows the open one, too
                assert [row[0] for row in rows] == [market.open_ms - n * HOUR_MS for n in (3, 2, 1)]

    asyncio.run(story())


def test_last_and_mark_are_never_taken_for_each_other(open_desk: Open) -> None:
    async def story() -> None:
        # the mark is 1 % off
        async with open_desk(tape={"mark_basis": 0.01}) as here:
            market = here.venue.market
            since, bar = market.open_ms - 5 * HOUR_MS, market.bar
            for kind in ("last", "mark"):
                rows = await here.broker.bars(SYMBOL, kind, since, 5)
                shown = getattr(market.tape, kind)[bar - 5 : bar, 0]
                np.testing.assert_allclose([row[1:5] for row in rows], shown, rtol=1e-12)
            last, mark = market.last_price(0), market.mark_price(0)
            assert abs(mark / last - 1.0) > 0.005
            assert (await here.broker.mark_prices())[SYMBOL] == pytest.approx(mark, rel=1e-12)
            (order,) = await here.trade(0.05)
            # it filled at the book, and is worth what the mark says
            assert order.average == pytest.approx(last, rel=1e-3)
            truth = await here.broker.account()
            assert truth.equity == pytest.approx(equity(here.venue.books), abs=1e-8)
            assert truth.equity - truth.wallet == pytest.approx(0.05 * (mark - order.average), abs=1e-6)
            assert (await here.settle()).is_whole
            assert here.desk.status().reserved == pytest.approx(0.05 * mark, rel=1e-9)
            (stop,) = here.stops()
            assert stop.working_type == "MARK_PRICE"
            here.check_sound()

    asyncio.run(story())


def test_no_order_book_is_read(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.faults(*({"id": row, "times": None} for row in ("F33", "F33b", "F33c")))
            await here.trade(0.05)
            await here.next_bar()
            assert (await here.settle()).is_whole
            # no diff of depth was ever on its way here, so that none can be missing
            assert here.hits() == 0
            assert len(here.server.hub.sockets) == 1
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("is_deaf", [False, True])
def test_a_stream_that_falls_silent_is_found_out_by_what_it_does_not_say(
    open_desk: Open, is_deaf: bool
) -> None:
    async def story() -> None:
        often = {"reconcile_s": 0.05, "stream_grace_s": 0.05}
        async with open_desk(timings=often) as here:
            here.admin("stall", on=True, deaf=is_deaf)
            here.admin("order", symbol="TESTUSDT", side="BUY", type="MARKET", quantity=0.05)
            await until(lambda: "stream" in " ".join(here.desk.status().reasons))
            # what it kept to itself is protected, and nothing is added to it
            assert len(here.stops()) == 1
            assert await here.trade(0.05) == []
            assert here.position == 0.05
            here.admin("stall", on=False)
            await until(lambda: here.desk.status().state == "ready")
            heard = here.desk.status().counts["events"]
            await here.settle()
            await here.trade(0.01)
            await until(lambda: here.desk.status().counts["events"] > heard)
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("is_told", [True, False])
def test_brackets_that_change_are_learned_and_leave_exits_only(open_desk: Open, is_told: bool) -> None:
    async def story() -> None:
        often = {} if is_told else {"reconcile_s": 0.03, "clock_s": 0.05}
        async with open_desk(timings=often) as here:
            await here.trade(0.02)
            await here.settle()
            rules = here.venue.books.contracts[0].to_json()["brackets"]
            cap = 0.03 * here.last
            here.admin("contract", symbol="TESTUSDT", brackets=[
                # at this account's leverage no more than that
                {**rules[0], "cap": cap}, {**rules[0], "floor": cap, "cap": 1e9, "max_leverage": 5.0},
            ])  # fmt: skip
            if is_told:
                (order,) = await here.trade(0.05)
                assert order.state is OrderState.REJECTED
                assert here.desk.status().counts["rejects"] == 1
            await until(lambda: here.desk.status().state == "reduce_only")
            assert "start again to take them over" in " ".join(here.desk.status().reasons)
            assert await here.trade(0.005) == []
            assert here.position == 0.02
            assert len(here.stops()) == 1
            # somebody has looked at them
            await here.desk.resume()
            await here.trade(0.005)
            assert here.position == 0.025
            await here.settle()
            await here.trade(-0.025)
            assert here.position == 0.0
            here.check_sound()

    asyncio.run(story())


def test_a_wish_that_is_no_number_cannot_be_made(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            for quantity in (float("nan"), float("inf"), 0.0):
                with pytest.raises(ValueError, match="finite quantity other than 0"):
                    await here.trade(quantity)
            assert here.orders() == []
            truth = await here.broker.account()
            assert reserved_notional(truth, here.desk._x.table, {SYMBOL: here.last}) == 0.0

    asyncio.run(story())
