"""F36-F48: a stream that lies or dies, somebody else on the account, liquidation, lost stops, maintenance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perpgym.envs.account import WALLET
from perpgym.envs.live.broker import OrderState, Settings
from perpgym.envs.live.desk import StartRefused
from perpgym.envs.live.limits import DeskLimits

Open = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"
OFTEN = {"reconcile_s": 0.03}


async def until(is_so: Callable[[], bool], seconds: float = 8.0) -> None:
    """Wait until something is so; fails after so long."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


def noted(here: Any, kind: str) -> int:
    return len(here.journal.events(kind))


def test_a_stream_whose_key_expires_is_opened_anew(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            key = here.venue.listen_key.text
            here.admin("listen_key", tell=True)
            await until(lambda: "stream" in " ".join(here.desk.status().reasons))
            assert await here.trade(0.05) == []
            await until(lambda: here.desk.status().state == "ready")
            assert here.venue.listen_key.text not in ("", key)
            heard = here.desk.status().counts["events"]
            await here.trade(0.05)
            await until(lambda: here.desk.status().counts["events"] > heard)
            assert here.position == 0.05
            here.check_sound()

    asyncio.run(story())


def test_the_streams_key_is_told_to_nobody(
    open_desk: Open, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """With it anybody hears every order. Here ccxt itself ends the connection, in words that hold the key."""

    async def story() -> None:
        async with open_desk() as here:
            key = here.venue.listen_key.text
            (client,) = here.broker._exchange.clients.values()
            assert key in client.url
            # no pong since the beginning of time
            client.keepAlive, client.lastPong = 20, 0
            client.ping_looper.cancel()
            client.ping_looper = asyncio.ensure_future(client.ping_loop())
            await until(lambda: "stream" in " ".join(here.desk.status().reasons))
            (reason,) = here.desk.status().reasons
            await until(lambda: here.desk.status().state == "ready")
            await here.trade(0.05)
            assert here.position == 0.05
            told = reason + caplog.text + "".join(capsys.readouterr())
            told += "".join(str(row) for row in here.journal.events())
            assert "RequestTimeout" in reason
            assert key not in told
            for part in here.folder.glob("journal.sqlite*"):
                assert key.encode() not in part.read_bytes()

    asyncio.run(story())


@pytest.mark.parametrize("by", ["a trade that it does not tell", "the answer to a prolongation"])
def test_a_stream_that_is_deaf_without_a_word_is_found_out(open_desk: Open, by: str) -> None:
    async def story() -> None:
        is_by_trade = by.startswith("a trade")
        settings = {"timings": OFTEN} if is_by_trade else {"keep_alive_s": 0.15}
        async with open_desk(**settings) as here:
            here.admin("listen_key", tell=False)
            if is_by_trade:
                await here.trade(0.05)
                await here.settle()
            await until(lambda: bool(here.venue.listen_key.text))
            await until(lambda: here.desk.status().state == "ready")
            heard = here.desk.status().counts["events"]
            await here.trade(0.01)
            await until(lambda: here.desk.status().counts["events"] > heard + 1)
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("code", [1001, 1006])
def test_a_connection_that_is_cut_is_opened_anew(open_desk: Open, code: int) -> None:
    async def story() -> None:
        async with open_desk() as here:
            opened = here.desk.status().counts["hold"]
            here.admin("disconnect", code=code)
            await until(lambda: here.desk.status().counts["hold"] > opened)
            await until(lambda: here.desk.status().state == "ready")
            await here.trade(0.05)
            assert here.position == 0.05
            here.check_sound()

    asyncio.run(story())


def test_a_stream_that_ends_by_a_mistake_of_ours_is_begun_anew(
    open_desk: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with open_desk() as here:
            # no message: the reader fails on it before anything can be made of it
            monkeypatch.setattr(here.broker._stream, "ignored", None)
            here.admin("event", e="STRATEGY_UPDATE")
            await until(lambda: noted(here, "hold") == 2)
            monkeypatch.undo()
            await until(lambda: here.desk.status().state == "ready")
            await here.trade(0.05)
            await until(lambda: here.desk.status().counts.get("fills") == 1)
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("row", ["F38", "F39"])
def test_events_that_come_twice_or_out_of_order_count_once(open_desk: Open, row: str) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.faults(row, times=None)
            await here.trade(0.05)
            first = await here.settle()
            (order,) = await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            here.admin("replay", last=10)
            await asyncio.sleep(0.05)
            second = await here.settle()
            assert (first.is_whole, second.is_whole) == (True, True)
            assert len(first.fills + second.fills) == 1
            states = {o.client_id: o.state for o in here.journal.orders() if not o.is_stop}
            assert set(states.values()) <= {OrderState.FILLED, OrderState.OPEN}
            assert states[order.client_id] is OrderState.OPEN
            here.check_sound()

    asyncio.run(story())


def test_somebody_elses_trade_is_adopted_and_protected(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            here.admin("order", symbol="TESTUSDT", side="SELL", type="MARKET", quantity=0.08,
                       newClientOrderId="web_1")  # fmt: skip
            await until(lambda: [stop.side for stop in here.stops()] == ["BUY"])
            settled = await here.settle()
            assert settled.is_whole
            assert settled.truth.quantity(SYMBOL) == pytest.approx(-0.03)
            assert here.desk.status().state == "ready"
            assert noted(here, "external") == 1
            # an order of somebody's that rests counts as if it had filled
            here.admin("order", symbol="TESTUSDT", side="BUY", type="LIMIT", timeInForce="GTC", quantity=0.9,
                       price=round(here.last * 0.98, 1), newClientOrderId="web_2")  # fmt: skip
            assert await here.trade(0.1) == []
            assert [order.client_id for order in here.resting()] == ["web_2"]
            here.check_sound()

    asyncio.run(story())


def test_events_that_nobody_knows_are_ignored(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.admin("event", e="STRATEGY_UPDATE", E=1, su={"si": 7})
            here.admin("event", e="ORDER_TRADE_UPDATE", o={})
            here.admin("event", e="ACCOUNT_UPDATE", a={"B": None, "P": [{}]})
            here.admin("event", nothing=True)
            await here.trade(0.05)
            assert (await here.settle()).is_whole
            assert here.desk.status().state == "ready"
            here.check_sound()

    asyncio.run(story())


def test_a_position_that_moved_unheard_is_found_within_a_look(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=OFTEN) as here:
            here.faults({"kind": "drop_event", "times": None})
            here.admin("order", symbol="TESTUSDT", side="BUY", type="MARKET", quantity=0.05)
            await until(lambda: len(here.stops()) == 1)
            here.faults()
            await until(lambda: here.desk.status().state == "ready")
            assert (await here.settle()).truth.quantity(SYMBOL) == 0.05
            here.check_sound()

    asyncio.run(story())


def test_a_difference_that_nothing_explains_halts(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=OFTEN) as here:
            await here.trade(0.05)
            await here.settle()
            here.venue.books.account.wallet[WALLET] -= 25.0
            await until(lambda: here.desk.status().state == "halted")
            assert any("drift" in reason for reason in here.desk.status().reasons)
            assert await here.trade(0.05) == []
            # the exchange is right
            assert here.books.wallet == pytest.approx(here.venue.books.wallet, abs=1e-8)
            assert len(here.stops()) == 1

    asyncio.run(story())


def test_funding_of_an_absence_is_booked_once(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            await here.desk.stop()
            here.journal.close()
            for _bar in range(20):
                await here.next_bar()
            for _start in range(2):
                here.build()
                await here.desk.start()
                here.check_sound()
                await here.desk.stop()
                here.journal.close()
            here.build()
            await here.desk.start()
            funding = [row for row in here.journal.incomes() if row.kind == "funding"]
            assert len(funding) == 2
            here.check_sound()

    asyncio.run(story())


def test_a_liquidation_ends_trading(open_desk: Open) -> None:
    async def story() -> None:
        closes = np.concatenate([np.full(51, 30_000.0), np.full(20, 26_000.0)])
        limits = DeskLimits(max_exposure=20.0)
        settings = Settings(leverage={SYMBOL: 20})
        async with open_desk(
            tape={"closes": closes}, limits=limits, account=settings, stop_distance=None
        ) as here:
            await here.trade(3.0)
            await here.settle()
            sent = len(here.orders())
            await here.next_bar()
            await here.next_bar()
            settled = await here.settle()
            assert here.position < 3.0
            assert settled.truth.quantity(SYMBOL) == here.position
            assert settled.why == ""
            assert here.desk.status().state == "halted"
            assert "forced" in " ".join(here.desk.status().reasons)
            assert await here.trade(0.05) == []
            assert len(here.orders()) == sent
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("is_heard", [True, False])
def test_what_the_exchange_closes_by_force_ends_trading(open_desk: Open, is_heard: bool) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            here.faults({"kind": "drop_event", "times": 0 if is_heard else None})
            here.admin("order", symbol="TESTUSDT", side="SELL", type="MARKET", quantity=0.05, reduceOnly=True,
                       newClientOrderId="adl_autoclose")  # fmt: skip
            assert (await here.settle()).is_whole
            assert here.desk.status().state == "halted"
            assert await here.trade(0.05) == []
            assert (here.position, here.stops()) == (0.0, [])
            here.check_sound()

    asyncio.run(story())


def test_a_lost_stop_is_replaced_once(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=OFTEN) as here:
            await here.trade(0.05)
            (stop,) = here.stops()
            here.admin("forget_algo", algoId=stop.algo_id)
            await until(lambda: len(here.stops()) == 1)
            await asyncio.sleep(0.1)
            (second,) = here.stops()
            assert second.trigger_price == stop.trigger_price
            assert len(here.venue.books.registry.algos) == 1
            assert noted(here, "stop_lost") == 1
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("row", ["F01", "F02", "F03", "F08"])
def test_a_stop_that_nobody_answers_for_is_there_once(open_desk: Open, row: str) -> None:
    async def story() -> None:
        async with open_desk(timings=OFTEN, timeout_ms=300) as here:
            here.faults(row, path="/fapi/v1/algoOrder")
            await here.trade(0.05)
            await until(lambda: len(here.stops()) == 1 and here.desk.status().state == "ready")
            await asyncio.sleep(0.1)
            assert len(here.venue.books.registry.algos) == 1
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_a_stop_that_the_exchanges_lists_hide_is_not_doubled(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings=OFTEN) as here:
            await here.trade(0.05)
            reply = {"kind": "reply", "method": "GET", "times": None}
            hide = {**reply, "status": 200, "text": "[]", "path": "/fapi/v1/*AlgoOrders"}
            deny = {**reply, "status": 400, "code": -2013, "text": "-", "path": "/fapi/v1/algoOrder"}
            here.faults(hide, deny)
            await until(lambda: here.desk.status().counts.get("rejects", 0) >= 2)
            # some closing stop is there: until it is seen, nobody knows which
            assert here.desk.status().state == "recovering"
            assert len(here.venue.books.registry.algos) == 1
            assert len(here.stops()) == 1
            here.faults()
            assert (await here.settle()).is_whole
            assert len(here.venue.books.registry.algos) == 1
            await here.trade(-0.05)
            await here.settle()
            assert here.stops() == []
            here.check_sound()

    asyncio.run(story())


def test_a_stop_that_the_price_has_passed_closes_at_once(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            here.books.prices[SYMBOL] = 1.3 * here.last
            assert (await here.settle()).is_whole
            assert here.position == 0.0
            assert here.stops() == []
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("held", [0.05, -0.05])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_passed_stop_closes_though_another_exit_rests(open_desk: Open, held: float, is_ours: bool) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(held)
            await here.settle()
            price = round(here.last * (1.05 if held > 0.0 else 0.95), 1)
            if is_ours:
                await here.trade(-held, style="limit", limit_price=price)
            else:
                here.admin(
                    "order", symbol="TESTUSDT", side="SELL" if held > 0.0 else "BUY", type="LIMIT",
                    timeInForce="GTC", quantity=abs(held), price=price, reduceOnly=True,
                    newClientOrderId="web_1",
                )  # fmt: skip
            here.books.prices[SYMBOL] = here.last * (1.3 if held > 0.0 else 0.7)
            assert (await here.settle()).is_whole
            refused = [event["text"]["why"] for event in here.journal.events("refused")]
            assert sum(why.startswith("-4118") for why in refused) == 1
            assert (here.position, here.resting()) == (0.0, [])
            assert (await here.settle()).is_whole
            assert here.stops() == []
            here.check_sound()

    asyncio.run(story())


def test_a_passed_stop_closes_what_is_held_and_no_more(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            here.faults({"kind": "drop_event", "times": None})
            here.admin("order", symbol="TESTUSDT", side="SELL", type="MARKET", quantity=0.02)
            here.books.prices[SYMBOL] = 1.3 * here.last
            # the larger part of what is closed was never heard of
            await here.desk.protect()
            assert here.position == 0.0
            here.admin("contract", symbol="TESTUSDT", max_quantity=0.02)
            await here.desk.resume()
            for _order in range(2):
                await here.trade(0.02)
                await here.settle()
            here.books.prices[SYMBOL] = 1.3 * here.last
            await here.settle()
            # more than one order may take
            assert here.position == 0.0
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("path", ["/fapi/v1/algoOrder", "/fapi/v1/order"])
def test_a_stop_that_is_refused_is_tried_again_at_once(open_desk: Open, path: str) -> None:
    async def story() -> None:
        # the next look at the account is a minute away
        async with open_desk() as here:
            await here.trade(0.05)
            here.faults({"id": "F05", "path": path, "times": 2, "method": "POST"})
            here.admin("forget_algo", algoId=here.stops()[0].algo_id)
            if path.endswith("/order"):
                here.books.prices[SYMBOL] = 1.3 * here.last
            assert not (await here.settle()).is_whole or here.hits() == 2
            await until(lambda: here.position == 0.0 if path.endswith("/order") else len(here.stops()) == 1)
            assert here.hits() == 2
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_maintenance_is_waited_for_and_the_account_looked_at_after_it(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={**OFTEN, "settle_s": 0.1}) as here:
            await here.trade(0.05)
            here.faults("F46")
            here.admin("restart")
            await until(lambda: here.desk.status().state == "recovering")
            assert await here.trade(0.05) == []
            here.faults()
            await until(lambda: here.desk.status().state == "ready")
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_a_contract_that_is_being_closed_is_not_opened(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.admin("status", symbol="TESTUSDT", status="SETTLING")
            (order,) = await here.trade(0.05)
            assert order.state is OrderState.REJECTED
            assert here.desk.status().state == "reduce_only"
        async with open_desk(start=False) as here:
            here.journal.close()
            here.build(journal=here.folder / "another.sqlite")
            here.admin("status", symbol="TESTUSDT", status="SETTLING")
            with pytest.raises(StartRefused, match="must be trading, is halted"):
                await here.desk.start()

    asyncio.run(story())


def test_a_program_that_slept_looks_before_it_trades(open_desk: Open) -> None:
    def slept(here: Any, kind: str) -> int:
        return sum(event["text"]["name"] == "sleep" for event in here.journal.events(kind))

    async def story() -> None:
        async with open_desk(timings={"reconcile_s": 0.05}) as here:
            await here.trade(0.05)
            time.sleep(0.3)  # the whole program stands still
            await until(lambda: slept(here, "lift") == 1)
            assert slept(here, "hold") == 1
            assert here.desk.status().state == "ready"
            assert (await here.settle()).is_whole

    asyncio.run(story())
