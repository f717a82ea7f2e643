"""Answers with a status of 200 that say nothing: the desk asks again, keeps looking and still closes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from perpgym.envs.live.broker import AccountTruth

Open = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"
OFTEN = {"reconcile_s": 0.05, "settings_s": 0.05, "clock_s": 0.05}
_NOT_A_NUMBER = [{"symbol": "TESTUSDT", "asset": "USDT", "positionAmt": "NaN", "income": "NaN"}]
STRANGE = [
    ("/fapi/v3/account", {}),
    ("/fapi/v3/account", []),
    ("/fapi/v3/account", {"assets": {}}),
    ("/fapi/v3/account", {"assets": [{"asset": "USDT", "walletBalance": "NaN", "marginBalance": "1"}]}),
    ("/fapi/v3/positionRisk", {}),
    ("/fapi/v3/positionRisk", [{}]),
    ("/fapi/v3/positionRisk", _NOT_A_NUMBER),
    ("/fapi/v1/openOrders", {}),
    ("/fapi/v1/openAlgoOrders", {}),
    ("/fapi/v1/openAlgoOrders", "none"),
    ("/fapi/v1/userTrades", {}),
    ("/fapi/v1/income", [{}]),
    ("/fapi/v1/income", _NOT_A_NUMBER),
    ("/fapi/v1/symbolConfig", {}),
    ("/fapi/v1/positionSide/dual", {}),
    ("/fapi/v1/time", {}),
]


def strange(path: str, body: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "reply", "method": "GET", "path": path, "status": 200, "text": json.dumps(body), **more}


async def until(is_so: Callable[[], bool], seconds: float = 8.0) -> None:
    """Wait until something is so; fails after so long."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("path", "body"), STRANGE)
def test_a_look_that_is_answered_strangely_is_followed_by_another(
    open_desk: Open, path: str, body: Any
) -> None:
    async def story() -> None:
        async with open_desk(timings=OFTEN) as here:
            await here.trade(0.5)
            (stop,) = here.stops()
            opened = here.books.opened
            # more often than a look asks before it believes a difference
            here.faults(strange(path, body, times=6))
            await until(lambda: here.hits() == 6)
            await until(lambda: here.desk.status().state == "ready")
            # nothing was believed of it
            assert here.books.opened == opened
            assert here.stops() == [stop]
            # and whoever looks sees what comes after: somebody else's trade, a stop that is gone
            here.admin("order", symbol="TESTUSDT", side="BUY", type="MARKET", quantity=0.3)
            here.admin("forget_algo", algoId=stop.algo_id)
            await until(lambda: len(here.stops()) == 1)
            assert (await here.settle()).is_whole
            assert here.position == pytest.approx(0.8)
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize(("path", "body"), STRANGE[::2])
def test_the_kill_switch_closes_through_strange_answers(open_desk: Open, path: str, body: Any) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.5)
            here.faults(strange(path, body, times=3))
            assert await here.desk.flatten("somebody stops it")
            assert here.position == 0.0
            assert here.stops() == []

    asyncio.run(story())


@pytest.mark.parametrize(("path", "body"), STRANGE[::3])
def test_a_decision_and_its_settlement_survive_strange_answers(open_desk: Open, path: str, body: Any) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.faults(strange(path, body, times=1))
            await here.trade(0.5)
            assert (await here.settle()).is_whole
            here.faults()
            await here.trade(0.5 - here.position or 0.001)
            assert (await here.settle()).is_whole
            assert here.position > 0.4
            assert len(here.stops()) == 1

    asyncio.run(story())


def test_whatever_a_look_dies_of_the_next_one_comes_and_somebody_is_told(open_desk: Open) -> None:
    """Nobody foresaw it: here it is the books that fail, as a mistake of ours would."""

    async def story() -> None:
        async with open_desk(timings=OFTEN) as here:
            await here.trade(0.5)
            (stop,) = here.stops()
            compare, is_broken = here.books.compare, True

            def fail(truth: AccountTruth) -> list[str]:
                if is_broken:
                    raise RuntimeError("nobody foresaw this")
                found: list[str] = compare(truth)
                return found

            here.books.compare = fail
            await until(lambda: "watch" in " ".join(here.desk.status().reasons))
            (held,) = [row for row in here.journal.events("hold") if row["text"]["name"] == "watch"]
            assert held["text"]["why"] == "look_again failed (RuntimeError)"
            # nothing is opened by who cannot look
            assert await here.trade(0.1) == []
            is_broken = False
            await until(lambda: here.desk.status().state == "ready")
            here.admin("forget_algo", algoId=stop.algo_id)
            await until(lambda: len(here.stops()) == 1)
            assert here.position == 0.5

    asyncio.run(story())


def test_the_kill_switch_goes_on_after_a_round_that_nobody_foresaw(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.5)
            compare, left = here.books.compare, [RuntimeError("a mistake of ours")] * 2

            def fail(truth: AccountTruth) -> list[str]:
                if left:
                    raise left.pop()
                found: list[str] = compare(truth)
                return found

            here.books.compare = fail
            assert await here.desk.flatten("somebody stops it")
            assert here.position == 0.0

    asyncio.run(story())
