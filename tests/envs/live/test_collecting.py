"""What happened while nobody could be asked is in the journal in the end, and nothing is asked for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Open = Callable[..., Any]
SILENT = {"kind": "reply", "method": "GET", "status": 503, "text": "Service Unavailable.", "times": None}
HOUR_MS = 3_600_000


async def cut_power(here: Any) -> None:
    """The program is gone without a word."""
    desk = here.desk
    await desk._watch.stop()
    await desk._sender.stop()
    await here.broker.close()
    desk._lock.release()
    here.journal.close()


def test_funding_of_an_outage_is_booked_though_the_stream_told_of_later_trades(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"settle_s": 0.3}) as here:
            await here.trade(0.5)
            assert (await here.settle()).is_whole
            here.faults({**SILENT, "path": "/fapi/*"})
            for _bar in range(9):
                await here.next_bar()
            here.admin("order", symbol="TESTUSDT", side="SELL", type="MARKET", quantity=0.1)
            await asyncio.sleep(0.1)
            # the stream has told the trade, nobody the funding before it
            assert len(here.journal.fills()) == 2
            assert not any(row.kind == "funding" for row in here.journal.incomes())
            assert not (await here.settle()).is_whole
            await cut_power(here)
            here.faults()
            here.build()
            await here.desk.start()
            assert (await here.settle()).is_whole
            assert any(row.kind == "funding" for row in here.journal.incomes())
            here.check_sound()

    asyncio.run(story())


def test_an_idle_account_is_not_asked_for_more_and_more_of_its_past(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            asked: list[int] = []
            income = here.broker.income

            async def listen(since_ms: int) -> Any:
                asked.append(here.venue.now_ms - since_ms)
                return await income(since_ms)

            for _bar in range(20):
                await here.next_bar()
                await here.settle()
            here.broker.income = listen
            await here.settle()
            await here.desk.stop()
            here.journal.close()
            desk = here.build()
            income, here.broker.income = here.broker.income, listen
            await desk.start()
            # twenty hours have passed
            assert max(asked) <= 1.1 * HOUR_MS
            here.check_sound()

    asyncio.run(story())
