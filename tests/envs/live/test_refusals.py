"""F16-F27: what the exchange refuses, limits or changes; judged by its own state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perpgym.envs.live.broker import AccessDenied, Banned, BrokerError, OrderState, Settings
from perpgym.envs.live.desk import StartRefused

Open = Callable[..., Any]
ORDER = "/fapi/v1/order"
SYMBOL = "TEST/USDT:USDT"


def test_an_exit_makes_room_for_itself_and_never_turns_the_position(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            # somebody's exit of the whole position is in the way: -4118
            here.admin(
                "order", symbol="TESTUSDT", side="SELL", type="LIMIT", timeInForce="GTC", quantity=0.05,
                price=round(here.last * 1.05, 1), reduceOnly=True, newClientOrderId="web_1",
            )  # fmt: skip
            await here.trade(-0.05)
            assert here.position == 0.0
            assert here.resting() == []
            here.check_sound()

    asyncio.run(story())


def test_an_exit_from_what_is_flat_already_is_done(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            close = {"symbol": "TESTUSDT", "side": "SELL", "type": "MARKET", "quantity": 0.05}
            refuse = {"kind": "reply", "status": 400, "code": -2022, "text": "ReduceOnly Order is rejected.",
                      "method": "POST", "path": ORDER}  # fmt: skip
            here.faults(refuse)
            trading = asyncio.ensure_future(here.trade(-0.05))
            while here.hits() == 0:
                await asyncio.sleep(0)
            here.admin("order", **close, newClientOrderId="web_1")
            await trading
            assert here.position == 0.0
            await here.settle()
            assert here.stops() == []
            assert len(here.orders()) == 2
            here.check_sound()

    asyncio.run(story())


def test_an_exit_whose_position_shrank_is_complete_with_what_was_left(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            (order,) = await here.trade(-0.05, style="limit", limit_price=here.last * 1.03)
            here.admin("order", symbol="TESTUSDT", side="SELL", type="MARKET", quantity=0.03)
            here.admin("fill", orderId=order.exchange_id, quantity=0.02)
            settled = await here.settle()
            assert settled.is_whole
            assert here.position == 0.0
            known = {o.client_id: o for o in here.journal.orders()}[order.client_id]
            assert (known.state, known.filled) == (OrderState.EXPIRED, -0.02)
            assert here.stops() == []
            here.check_sound()

    asyncio.run(story())


def test_what_margin_refuses_is_not_tried_again(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.faults({"id": "F18", "path": ORDER, "times": None})
            (order,) = await here.trade(0.05)
            assert order.state is OrderState.REJECTED
            assert here.hits() == 1
            assert here.desk.status().state == "ready"

    asyncio.run(story())


def test_filters_that_change_are_learned_from_one_refusal(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.admin("contract", symbol="TESTUSDT", lot_size=0.01, min_quantity=0.01)
            (order,) = await here.trade(0.055)
            assert order.state is OrderState.REJECTED
            (order,) = await here.trade(0.055)
            assert here.position == 0.05
            await here.settle()
            here.admin("contract", symbol="TESTUSDT", max_quantity=0.02)
            # an exit does not wait for the next decision
            await here.trade(-0.05)
            assert here.position == 0.0
            here.check_sound()

    asyncio.run(story())


def test_dust_can_always_be_closed_and_is_never_opened(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            # min_notional is 100
            assert await here.trade(0.002) == []
            await here.trade(0.005)
            await here.settle()
            await here.trade(-0.003)
            await here.settle()
            await here.trade(-0.002)
            assert here.position == 0.0
            assert here.desk.status().counts.get("rejects", 0) == 0
            here.check_sound()

    asyncio.run(story())


def test_trading_rules_leave_exits_only(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            here.faults({"id": "F20", "path": ORDER})
            (order,) = await here.trade(0.05)
            assert order.state is OrderState.REJECTED
            assert here.desk.status().state == "reduce_only"
            assert await here.trade(0.05) == []
            await here.trade(-0.08)
            # the part that closes, and no more
            assert here.position == 0.0
            await here.desk.resume()
            await here.trade(0.05)
            assert here.position == 0.05
            here.check_sound()

    asyncio.run(story())


def test_a_post_only_order_that_would_cross_is_refused_and_forgotten(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            (order,) = await here.trade(0.05, style="post_only", limit_price=here.last * 1.02)
            assert order.state is OrderState.REJECTED
            assert (here.orders(), here.desk.status().state) == ([], "ready")

    asyncio.run(story())


def test_a_setting_that_was_set_already_is_no_failure(open_desk: Open) -> None:
    async def story() -> None:
        isolated = Settings(leverage={SYMBOL: 10}, margin_mode="isolated")
        async with open_desk(start=False, account=isolated) as here:
            here.faults({"kind": "reply_after", "status": 400, "code": -4046, "text": "No need to change.",
                         "method": "POST", "path": "/fapi/v1/marginType"})  # fmt: skip
            await here.desk.start()
            assert here.hits() == 1
            assert here.venue.books.rules(0).is_isolated == 1.0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("path", "answer", "why"),
    [("feeBurn", '{"feeBurn": true}', "paid in BNB"),
     ("multiAssetsMargin", '{"multiAssetsMargin": true}', "multi-assets mode")],
)  # fmt: skip
def test_an_account_of_several_currencies_is_refused(
    open_desk: Open, path: str, answer: str, why: str
) -> None:
    async def story() -> None:
        async with open_desk(start=False) as here:
            here.faults({"kind": "reply", "status": 200, "text": answer, "path": f"/fapi/v1/{path}"})
            with pytest.raises(StartRefused, match=why):
                await here.desk.start()

    asyncio.run(story())


def test_an_account_that_cannot_be_set_up_is_refused(open_desk: Open) -> None:
    async def story() -> None:
        isolated = Settings(leverage={SYMBOL: 10}, margin_mode="isolated")
        async with open_desk(start=False, account=isolated) as here:
            here.admin("order", symbol="TESTUSDT", side="BUY", type="MARKET", quantity=0.05)
            with pytest.raises(StartRefused, match="-4048"):
                await here.desk.start()
            assert here.desk.status().state == "stopped"

    asyncio.run(story())


@pytest.mark.parametrize("is_told", [True, False])
def test_settings_that_somebody_changes_stop_new_orders(open_desk: Open, is_told: bool) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            if not is_told:
                here.faults({"kind": "drop_event", "times": None})
            here.admin("leverage", symbol="TESTUSDT", leverage=3)
            await asyncio.sleep(0.05)
            assert (here.desk.status().state == "halted") is is_told
            assert await here.trade(0.05) == []
            assert here.desk.status().state == "halted"
            assert here.position == 0.05
            await here.trade(-0.05)
            assert here.position == 0.0

    asyncio.run(story())


def test_nothing_is_asked_until_the_exchange_admits_it_again(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"reconcile_s": 0.03, "settle_s": 0.1}) as here:
            await here.trade(0.05)
            here.faults("F23", "F23")
            await asyncio.sleep(0.1)
            assert here.hits() == 1
            asked = here.venue.limits.weight
            assert await here.trade(0.05) == []
            assert not (await here.settle()).is_whole
            await here.desk.freeze("a test")
            assert (here.hits(), here.venue.limits.weight) == (1, asked)
            here.faults()
            here.venue.clock.move_to(here.venue.clock.now_ms() + 31_000)
            here.server.pass_time()
            await here.desk.resume()
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_a_ban_is_waited_for_in_silence(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"reconcile_s": 0.03, "settle_s": 0.1}) as here:
            await here.trade(0.05)
            here.admin("ban", seconds=120)
            await asyncio.sleep(0.2)
            assert await here.trade(0.05) == []
            # the one that learned of it
            assert here.venue.limits.calls_while_banned == 1
            assert here.desk.status().state == "recovering"
            here.venue.clock.move_to(here.venue.clock.now_ms() + 121_000)
            await asyncio.sleep(0.2)
            assert here.desk.status().state == "ready"
            assert here.venue.limits.calls_while_banned == 1
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("row", ["F23", "ban"])
def test_a_start_waits_for_as_long_as_the_exchange_asks(open_desk: Open, row: str) -> None:
    async def story() -> None:
        # four times as long as an exchange that does not answer is asked
        async with open_desk(start=False, timings={"start_s": 0.1}) as here:
            here.admin("order", symbol="TESTUSDT", side="BUY", type="MARKET", quantity=0.05)
            if row == "ban":
                here.admin("ban", seconds=120)
            else:
                here.faults({"id": "F23", "path": "/fapi/*", "retry_after_s": 120})
            starting = asyncio.ensure_future(here.desk.start())
            await asyncio.sleep(0.4)
            assert not starting.done()
            assert here.desk.status().state == "stopped"
            (waits,) = here.journal.events("start_waits")
            assert "is asked again at" in waits["text"]["why"]
            here.venue.clock.move_to(here.venue.clock.now_ms() + 121_000)
            await starting
            assert here.desk.status().state == "ready"
            # the one that learned of it
            assert here.venue.limits.calls_while_banned == (1 if row == "ban" else 0)
            assert len(here.stops()) == 1
            here.check_sound()

    asyncio.run(story())


def test_a_start_that_waits_ends_when_it_is_told_to_or_after_the_longest_ban(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(start=False, timings={"quiet_s": 0.3}) as here:
            here.admin("ban", seconds=120)
            starting = asyncio.ensure_future(here.desk.start())
            await asyncio.sleep(0.1)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            # the account is free for the next one
            with pytest.raises(Banned):
                await here.build().start()
            assert here.desk.status().state == "stopped"
            assert here.venue.limits.calls_while_banned == 2

    asyncio.run(story())


def test_a_firewalls_answer_to_an_order_says_nothing_of_it(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"settle_s": 0.1}) as here:
            here.faults({"id": "F25", "path": ORDER})
            (order,) = await here.trade(0.05)
            assert order.state is OrderState.UNKNOWN
            asked = here.venue.limits.weight
            await asyncio.sleep(0.2)
            assert here.venue.limits.weight == asked
            here.venue.clock.move_to(here.venue.clock.now_ms() + 121_000)
            await asyncio.sleep(0.5)
            assert here.journal.orders()[0].state is OrderState.ABSENT
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_a_revoked_key_halts_without_a_storm(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"reconcile_s": 0.03, "settle_s": 0.1}) as here:
            await here.trade(0.05)
            here.faults(
                {"kind": "reply", "status": 401, "code": -2015, "text": "Invalid API-key", "times": None}
            )
            await asyncio.sleep(0.2)
            assert here.desk.status().state == "halted"
            assert await here.trade(0.05) == []
            assert not (await here.settle()).is_whole
            assert here.hits() <= 3
            # what is held keeps its stop
            assert len(here.stops()) == 1
            # a resume that is refused, too, changes nothing
            with pytest.raises(AccessDenied):
                await here.desk.resume()
            assert here.desk.status().state == "halted"
            here.faults()
            await here.desk.resume()
            assert here.desk.status().state == "ready"
            await here.trade(-0.05)
            assert here.position == 0.0

    asyncio.run(story())


def test_a_resume_that_is_not_answered_is_made_good_by_the_next_look(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"reconcile_s": 0.03, "settle_s": 0.1}) as here:
            await here.trade(0.05)
            here.admin("keys", revoked=True)
            await asyncio.sleep(0.1)
            here.admin("keys", revoked=False)
            here.faults("F46")
            with pytest.raises(BrokerError):
                await here.desk.resume()
            assert here.desk.status().state == "recovering"
            here.faults()
            (stop,) = here.stops()
            here.admin("forget_algo", algoId=stop.algo_id)
            await asyncio.sleep(0.3)
            assert here.desk.status().state == "ready"
            assert len(here.stops()) == 1

    asyncio.run(story())


@pytest.mark.parametrize("skew_ms", [20_000, -20_000])
def test_a_clock_that_is_off_is_set_and_the_order_sent_once(open_desk: Open, skew_ms: int) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.admin("skew", ms=skew_ms)
            (order,) = await here.trade(0.05)
            assert order.state is OrderState.FILLED
            assert len(here.orders()) == 1
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_reads_leave_room_for_exits(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"settle_s": 0.1}, limits_enforced=True, weight_per_minute=600) as here:
            await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            while here.venue.limits.weight < 481:
                await here.settle()
            asked = here.venue.limits.weight
            assert not (await here.settle()).is_whole
            assert here.venue.limits.weight == asked
            assert await here.desk.freeze("a test")
            assert here.resting() == []

    asyncio.run(story())
