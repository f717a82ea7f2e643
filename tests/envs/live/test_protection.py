"""A position is bare for as long as the exchange cannot be asked to protect it, and no longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from perpgym.envs.live.broker import Throttled
from perpgym.envs.live.context import DeskTimings

Open = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"
STOP = "/fapi/v1/algoOrder"
# as the program is shipped
SHIPPED = asdict(DeskTimings())
# of which a position may be without its stop
MOST_BARE_S = 2.0
BUSY = {"kind": "reply", "method": "POST", "status": 503, "text": "Service Unavailable."}


async def bare_s(here: Any) -> float:
    """How long it takes until the exchange holds a stop, at most a moment more than it may."""
    begun = time.monotonic()
    while not here.stops() and time.monotonic() < begun + 2.0 * MOST_BARE_S:
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


@pytest.mark.parametrize("path", ["/fapi/v1/income", "/fapi/v1/userTrades"])
def test_what_the_stream_tells_is_protected_though_nothing_can_be_read(open_desk: Open, path: str) -> None:
    async def story() -> None:
        async with open_desk(timings=SHIPPED) as here:
            (order,) = await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            here.faults({"kind": "reply", "method": "GET", "path": path, "status": 502, "times": None})
            here.admin("fill", orderId=order.exchange_id)
            assert await bare_s(here) < MOST_BARE_S
            assert here.position == 0.05
            here.faults()
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_a_fill_that_the_stream_keeps_to_itself_is_protected_from_the_budget_of_exits(
    open_desk: Open,
) -> None:
    async def story() -> None:
        async with open_desk(timings=SHIPPED, limits_enforced=True, weight_per_minute=600) as here:
            here.faults({"kind": "drop_event", "times": None})
            # four fifths are the reads'
            while here.venue.limits.weight <= 480:
                await here.broker.find("nobody", SYMBOL)
            here.admin("order", symbol="TESTUSDT", side="BUY", type="MARKET", quantity=0.05)
            with pytest.raises(Throttled):
                await here.broker.account()
            assert await here.desk.protect()
            assert len(here.stops()) == 1

    asyncio.run(story())


@pytest.mark.parametrize("row", ["F02", "F03", "F04", "F05", "F06", "F08"])
def test_a_position_is_bare_for_two_seconds_at_most_with_the_waits_that_are_shipped(
    open_desk: Open, row: str
) -> None:
    async def story() -> None:
        async with open_desk(timings=SHIPPED) as here:
            here.faults({"id": row, "path": STOP, "method": "POST"})
            trading = asyncio.ensure_future(here.trade(0.05))
            while here.position == 0.0:
                await asyncio.sleep(0.01)
            assert await bare_s(here) < MOST_BARE_S
            assert here.hits() == 1
            assert len(here.stops()) == 1
            # an order of ours is looked for meanwhile
            trading.cancel()
            await asyncio.gather(trading, return_exceptions=True)

    asyncio.run(story())


def test_nothing_is_opened_while_a_stop_is_not_known_to_be_there(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.faults({**BUSY, "path": STOP, "times": None})
            await here.trade(0.05)
            assert here.stops() == []
            assert await here.trade(0.05) == []
            # what makes it smaller is sent
            await here.trade(-0.02)
            assert here.position == pytest.approx(0.03)
            here.faults()
            assert await bare_s(here) < MOST_BARE_S
            assert (await here.settle()).is_whole
            await here.trade(0.02)
            assert here.position == pytest.approx(0.05)
            here.check_sound()

    asyncio.run(story())


def test_somebody_elses_closing_stop_is_no_protection(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"reconcile_s": 0.05}) as here:
            await here.trade(0.05)
            (stop,) = here.stops()
            here.admin("forget_algo", algoId=stop.algo_id)
            here.admin(
                "algo", symbol="TESTUSDT", side="SELL", type="STOP_MARKET", closePosition=True,
                triggerPrice=round(0.2 * here.last, 1), workingType="MARK_PRICE",
            )  # fmt: skip
            begun = time.monotonic()
            while [other.trigger_price for other in here.stops()] != [stop.trigger_price]:
                assert time.monotonic() < begun + 5.0
                await asyncio.sleep(0.01)
            (met,) = here.journal.events("foreign_stop")
            assert (met["level"], met["text"]["wanted"]) == (
                "alarm",
                pytest.approx(stop.trigger_price, abs=0.1),
            )
            assert (await here.settle()).is_whole
            assert here.desk.status().state == "ready"
            here.check_sound()

    asyncio.run(story())


def test_a_stop_that_stays_refused_is_not_sent_at_every_look(open_desk: Open) -> None:
    async def story() -> None:
        waits = {"first_wait_s": 0.02, "reconcile_s": 10.0, "settle_s": 1.0}
        async with open_desk(timings=waits) as here:
            here.faults(
                {"kind": "reply", "method": "POST", "path": STOP, "status": 400, "code": -4045, "times": None}
            )
            await here.trade(0.05)
            settled = await here.settle()
            assert (settled.is_whole, settled.why) == (False, "a stop could not be placed")
            # 0.02 s, and twice as long each time: seven within a second and a half, and some slack
            assert 3 <= here.hits() <= 9
            assert "stops:" in " ".join(here.desk.status().reasons)

    asyncio.run(story())


@pytest.mark.parametrize("row", ["F05", "F05b"])
def test_an_exit_that_the_exchange_is_too_busy_for_does_not_wait_for_the_next_decision(
    open_desk: Open, row: str
) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            # the exchange spares exits where it is only overloaded: here it does not
            here.faults({"id": row, "path": "/fapi/v1/order", "times": 3, "spares_exits": False})
            sent = await here.trade(-0.05)
            assert (len(sent), here.hits()) == (4, 3)
            assert here.position == 0.0
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_an_exit_that_stays_refused_gives_way_to_who_wants_to_stop(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=SHIPPED) as here:
            await here.trade(0.05)
            here.faults({**BUSY, "path": "/fapi/v1/order", "times": None})
            trading = asyncio.ensure_future(here.trade(-0.05))
            await asyncio.sleep(0.3)
            flattening = asyncio.ensure_future(here.desk.flatten("somebody stops it"))
            # settle_s is 45 s
            await asyncio.wait_for(trading, 10.0)
            assert here.position == 0.05
            here.faults()
            assert await flattening
            assert here.position == 0.0

    asyncio.run(story())
