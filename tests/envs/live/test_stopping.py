"""The kill switch closes whatever the exchange will not say, and says what it could not do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perpgym.envs.live.desk import StartRefused
from perpgym.envs.live.instance_lock import AccountTaken, InstanceLock

Open = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"
SILENT = {"kind": "reply", "method": "GET", "status": 503, "text": "Service Unavailable.", "times": None}


def test_the_kill_switch_closes_with_the_budget_that_reads_have_left(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(limits_enforced=True, weight_per_minute=600) as here:
            await here.trade(0.05)
            while here.venue.limits.weight <= 480:
                await here.broker.find("nobody", SYMBOL)
            assert await here.desk.flatten("somebody stops it")
            assert (here.position, here.stops()) == (0.0, [])

    asyncio.run(story())


def test_the_kill_switch_leaves_budget_to_an_exit_that_is_refused_for_long(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"longest_wait_s": 1.0, "settle_s": 2.0}) as here:
            await here.trade(0.05)
            here.faults({"id": "F05", "path": "/fapi/v1/order", "times": None})
            asked = here.venue.limits.weight
            assert not await here.desk.flatten("somebody stops it")
            # a round asks for about 20; a minute admits 2,400
            assert here.venue.limits.weight - asked < 300
            assert len(here.stops()) == 1

    asyncio.run(story())


@pytest.mark.parametrize("is_deaf", [True, False])
def test_the_kill_switch_closes_what_is_believed_to_be_held_if_nothing_can_be_read(
    open_desk: Open, is_deaf: bool
) -> None:
    async def story() -> None:
        async with open_desk(timings={"settle_s": 0.5}) as here:
            await here.trade(0.05)
            await here.settle()
            if is_deaf:
                here.faults({**SILENT, "path": "/fapi/*"}, {"kind": "drop_event", "times": None})
            else:
                # the stream tells of more than the account was last read to be
                here.faults({**SILENT, "path": "/fapi/*"})
                here.admin("order", symbol="TESTUSDT", side="BUY", type="MARKET", quantity=0.02)
                await asyncio.sleep(0.05)
            # flat, but nobody says so
            assert not await here.desk.flatten("somebody stops it")
            assert here.position == 0.0
            assert "cannot be read" in (await here.desk.left())[0]
            here.faults()
            assert await here.desk.flatten("somebody stops it")
            assert (await here.desk.left(), here.stops()) == ([], [])

    asyncio.run(story())


def test_what_a_freeze_leaves_open_is_said_with_its_stop(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            (stop,) = here.stops()
            await here.desk.freeze("somebody stops it")
            (line,) = await here.desk.left()
            assert line == f"{SYMBOL}: 0.05 is held, its stop rests at {stop.trigger_price:g} (mark price)"
            here.admin("forget_algo", algoId=stop.algo_id)
            (line,) = await here.desk.left()
            assert line == f"{SYMBOL}: 0.05 is held, and NO stop rests at the exchange"

    asyncio.run(story())


@pytest.mark.parametrize("silent", ["/fapi/v3/positionRisk", "/fapi/v1/income", "/fapi/v1/userTrades", None])
def test_a_start_that_is_given_up_can_still_close(open_desk: Open, silent: str | None) -> None:
    async def story() -> None:
        async with open_desk(timings={"settle_s": 0.5}) as here:
            await here.trade(0.05)
            await here.settle()
            await here.desk.stop()
            here.journal.close()
            desk = here.build()
            if silent is not None:
                here.faults({**SILENT, "path": silent})
                starting = asyncio.ensure_future(desk.start())
                await asyncio.sleep(0.2)
                assert not starting.done()
                starting.cancel()
            is_flat = await desk.flatten_unstarted("somebody stops it")
            assert is_flat is (silent != "/fapi/v3/positionRisk")
            assert here.position == 0.0
            assert is_flat <= (here.stops() == [])
            # the account is free for the next one
            here.faults()
            here.build()
            await here.desk.start()
            assert (await here.settle()).is_whole
            assert (here.position, here.stops()) == (0.0, [])
            here.check_sound()

    asyncio.run(story())


def test_nothing_is_closed_on_an_account_that_another_program_trades(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.desk.stop()
            here.journal.close()
            desk = here.build()
            other = InstanceLock(here.folder / "locks", here.broker.account_id)
            other.acquire()
            with pytest.raises(AccountTaken):
                await desk.flatten_unstarted("somebody stops it")
            other.release()
            assert here.position == 0.05

    asyncio.run(story())


def test_a_journal_is_of_one_account(open_desk: Open, tmp_path: Path) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.desk.stop()
            here.journal.close()
            here.venue.keys.secrets["other"] = "secret"
            desk = here.build()
            object.__setattr__(here.broker.config, "api_key", "other")
            here.broker._exchange.apiKey = "other"
            for act in (desk.start, lambda: desk.flatten_unstarted("somebody stops it")):
                with pytest.raises(StartRefused, match=r"is the journal of account .* accept_new_key=true"):
                    await act()
            assert here.position == 0.05
            # a new key of the same account
            here.journal.set_meta("account_id", here.broker.account_id)
            await desk.start()
            assert (await here.settle()).is_whole

    asyncio.run(story())
