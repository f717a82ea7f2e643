"""TWAP, VWAP and iceberg at an exchange: one order after another, never more than was wished for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perpgym.envs.live.broker import OrderState
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.wishes import Decision, Wish

Open = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"
HOUR_MS = 3_600_000
# six slices to a bar
SLICED = {"slice_ms": HOUR_MS // 6}


async def until(is_so: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


async def slow(here: Any, quantity: float, style: str, **more: Any) -> list[Any]:
    """One decision that takes the bar."""
    orders: list[Any] = await here.trade(quantity, style=style, end_ms=here.venue.engine.next_ms, **more)
    return orders


async def pass_slice(here: Any) -> None:
    """A sixth of the bar; the desk has the time to do what is due in it, and no less."""
    here.venue.clock.move_to(here.venue.clock.now_ms() + SLICED["slice_ms"])
    here.server.pass_time()
    await asyncio.sleep(0.1)


def sizes(here: Any) -> list[float]:
    return [round(order.quantity, 9) for order in here.orders()]


@pytest.mark.parametrize("style", ["twap", "vwap"])
def test_slices_are_spread_over_the_bar_and_add_up_to_the_wish(open_desk: Open, style: str) -> None:
    async def story() -> None:
        async with open_desk(timings=SLICED) as here:
            # a moment after the bar has opened
            begun_ms = here.venue.clock.now_ms() + 2_000
            here.venue.clock.move_to(begun_ms)
            (first,) = await slow(here, 0.05, style)
            assert (first.state, first.quantity) == (OrderState.FILLED, 0.008)
            assert len(here.orders()) == 1
            for _slice in range(5):
                await pass_slice(here)
            assert sizes(here) == [0.008, 0.008, 0.008, 0.008, 0.009, 0.009]
            assert here.position == pytest.approx(0.05, abs=1e-12)
            times = [(order.time_ms - begun_ms) / SLICED["slice_ms"] for order in here.orders()]
            assert times == pytest.approx(range(6), abs=0.05)
            assert len(here.stops()) == 1
            await here.next_bar()
            settled = await here.settle()
            assert settled.is_whole
            # with the first one, which the decision returned, the whole wish
            assert len(settled.orders) == 5
            assert {row["decision_id"] for order in settled.orders
                    for row in here.rows("intents", order.client_id)} == {1}  # fmt: skip
            await asyncio.sleep(0.1)
            assert len(here.orders()) == 6
            here.check_sound()

    asyncio.run(story())


def test_an_exit_in_slices_only_reduces_and_leaves_nothing_over(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=SLICED) as here:
            await here.trade(0.005)
            await here.settle()
            await slow(here, -0.005, "twap", reduce_only=True)
            for _slice in range(5):
                await pass_slice(here)
            # five lots: less than the exchange's smallest order each, which an exit may be
            assert sizes(here)[1:] == [0.001] * 5
            assert all(order.reduce_only for order in here.orders()[1:])
            assert here.position == 0.0
            assert (await here.settle()).is_whole
            assert here.stops() == []
            here.check_sound()

    asyncio.run(story())


def test_what_is_too_small_for_slices_is_one_order(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=SLICED) as here:
            # min_notional is 100: two would be too small
            await slow(here, 0.005, "twap")
            for _slice in range(5):
                await pass_slice(here)
            assert sizes(here) == [0.005]
            assert here.desk.status().counts.get("rejects", 0) == 0

    asyncio.run(story())


def test_an_iceberg_shows_one_clip_after_another(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            price = round(0.97 * here.last, 1)
            await slow(here, 0.05, "iceberg", limit_price=price, clip=0.02)
            for clip in (0.02, 0.02, 0.01):
                await until(lambda: len(here.resting()) == 1)
                (order,) = here.resting()
                assert (order.quantity, order.price, order.time_in_force) == (clip, price, "GTX")
                # a clip that is not used up still shows
                here.admin("fill", orderId=order.order_id, quantity=0.005)
                await asyncio.sleep(0.1)
                assert len(here.resting()) == 1
                here.admin("fill", orderId=order.order_id, quantity=clip - 0.005)
            await until(lambda: len(here.stops()) == 1)
            await asyncio.sleep(0.1)
            assert here.resting() == []
            assert here.position == pytest.approx(0.05, abs=1e-12)
            settled = await here.settle()
            assert settled.is_whole
            assert [order.quantity for order in settled.orders] == [0.02, 0.01]
            here.check_sound()

    asyncio.run(story())


def test_a_clip_whose_price_was_passed_is_tried_again_and_one_that_was_withdrawn_is_not(
    open_desk: Open,
) -> None:
    async def story() -> None:
        async with open_desk() as here:
            price = round(0.97 * here.last, 1)
            await slow(here, 0.05, "iceberg", limit_price=price, clip=0.02)
            (order,) = here.resting()
            here.faults({"kind": "reply", "status": 400, "code": -5022, "text": "-", "times": 2,
                         "method": "POST", "path": "/fapi/v1/order"})  # fmt: skip
            here.admin("fill", orderId=order.order_id, quantity=0.02)
            await until(lambda: here.hits() == 1)
            here.venue.clock.move_to(here.venue.clock.now_ms() + 1_000)
            await until(lambda: here.hits() == 2)
            here.venue.clock.move_to(here.venue.clock.now_ms() + 1_000)
            await until(lambda: len(here.resting()) == 1)
            # what was refused is no second part of the decision's quantity
            planned = [
                row["quantity"]
                for known in here.journal.orders()
                for row in here.rows("intents", known.client_id)
                if row["decision_id"] is not None
            ]
            assert sum(planned) <= 0.05 + 1e-12
            (order,) = here.resting()
            here.server.pass_time()
            here.venue.engine.cancel(0, order.order_id, None)
            await asyncio.sleep(0.2)
            here.venue.clock.move_to(here.venue.clock.now_ms() + 10_000)
            await asyncio.sleep(0.2)
            assert here.resting() == []
            assert here.position == 0.02
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


async def decide_anew(here: Any) -> None:
    await here.trade(-0.001)


async def freeze(here: Any) -> None:
    assert await here.desk.freeze("a test")


async def resume(here: Any) -> None:
    await here.desk.resume()


async def flatten(here: Any) -> None:
    assert await here.desk.flatten("a test")
    assert here.position == 0.0


async def stop(here: Any) -> None:
    await here.desk.stop()


async def change_settings(here: Any) -> None:
    here.admin("leverage", symbol="TESTUSDT", leverage=3)


async def somebody_trades(here: Any) -> None:
    here.admin("order", symbol="TESTUSDT", side="SELL", type="MARKET", quantity=0.004)


@pytest.mark.parametrize(
    "end", [decide_anew, freeze, resume, flatten, stop, change_settings, somebody_trades]
)
@pytest.mark.parametrize("style", ["twap", "iceberg"])
def test_nothing_more_is_sent_once_something_has_come_between(
    open_desk: Open, style: str, end: Callable[[Any], Awaitable[None]]
) -> None:
    async def story() -> None:
        async with open_desk(timings=SLICED) as here:
            more = {"limit_price": round(0.97 * here.last, 1), "clip": 0.01} if style == "iceberg" else {}
            await slow(here, 0.05, style, **more)
            if style == "iceberg":
                here.admin("fill", orderId=here.resting()[0].order_id, quantity=0.01)
                await until(lambda: len(here.resting()) == 1)
            await end(here)
            await asyncio.sleep(0.05)
            sent = len(here.orders())
            for order in here.resting():
                here.admin("fill", orderId=order.order_id, quantity=order.left)
            for _slice in range(2):
                await pass_slice(here)
            assert len(here.orders()) == sent
            assert here.resting() == []

    asyncio.run(story())


def test_a_slice_that_nobody_answers_for_is_counted_until_it_is_found(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=SLICED, timeout_ms=200) as here:
            await slow(here, 0.06, "twap")
            for row in ("F02", "F03", "F08", "F12"):
                here.faults(row, path="/fapi/v1/order" if row != "F12" else "*")
                await pass_slice(here)
                await until(lambda: here.desk.status().state == "ready")
            await pass_slice(here)
            # one was never executed, and is not sent again
            assert sizes(here) == [0.01] * 5
            assert here.position == pytest.approx(0.05, abs=1e-12)
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_every_slice_is_held_to_the_limits(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=SLICED, limits=DeskLimits(max_exposure=0.1)) as here:
            # 0.06 would be an exposure of 0.17
            await slow(here, 0.06, "twap")
            for _slice in range(5):
                await pass_slice(here)
            assert 0.0 < here.position * here.last <= 0.1 * 10_000.0
            assert len(here.orders()) < 6
            here.check_sound()

    asyncio.run(story())


def test_a_margin_that_does_not_suffice_ends_the_slices(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=SLICED) as here:
            await slow(here, 0.06, "twap")
            here.faults({"id": "F18", "path": "/fapi/v1/order", "times": None})
            for _slice in range(2):
                await pass_slice(here)
            # no order that is refused is tried again
            assert here.hits() == 1
            assert here.position == 0.01

    asyncio.run(story())


def test_a_contract_has_one_wish_that_takes_a_while(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            end_ms = here.venue.engine.next_ms
            twice = [Wish(contract=SYMBOL, quantity=0.02, style="twap", end_ms=end_ms)] * 2
            decision = Decision(id=1, bar_close_ms=0, observation_hash="", action=[])
            with pytest.raises(ValueError, match="must be its contract's only one"):
                await here.desk.trade(decision, twice)
            assert here.orders() == []

    asyncio.run(story())


def test_a_journal_keeps_how_a_wish_was_to_be_carried_out(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await slow(here, 0.05, "iceberg", limit_price=round(0.97 * here.last, 1), clip=0.02)
            (row,) = here.journal._read("SELECT wanted FROM decisions")
            (wish,) = json.loads(row["wanted"])
            assert (wish["style"], wish["quantity"], wish["clip"]) == ("iceberg", 0.05, 0.02)

    asyncio.run(story())
