"""A mark price that is none: nothing is opened by it, exits go on, and the cap holds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from perpgym.data.contract import Contract
from perpgym.envs.live.broker import AccountTruth, Disbelieved, Position
from perpgym.envs.live.limits import DeskLimits, Watchman, pieces
from perpgym.envs.live.marks import believed_mark
from perpgym.envs.live.order_table import OrderTable
from perpgym.envs.live.wishes import Wish

Open = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"
CAPPED = {"limits": DeskLimits(max_exposure=1.0), "timings": {"reconcile_s": 0.05}}
# the market trades at about 31,000
LIES = [
    ("0.00000000", "0"), ("-1", "0"), ("NaN", "31000"), ("inf", "31000"), ("3118.0", "0"),
    ("3118.0", "3118.0"), ("311800.0", "31000.0"), ("25000.0", "31000.0"),
]  # fmt: skip


def marked(mark: str, index: str) -> dict[str, Any]:
    text = json.dumps({"symbol": "TESTUSDT", "markPrice": mark, "indexPrice": index, "lastFundingRate": "0"})
    path = "/fapi/v1/premiumIndex"
    return {
        "kind": "reply", "method": "GET", "path": path, "status": 200, "text": text, "times": None,
    }  # fmt: skip


async def until(is_so: Callable[[], bool], seconds: float = 8.0) -> None:
    """Wait until something is so; fails after so long."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("mark", "index"), LIES)
def test_nothing_is_opened_by_a_mark_that_cannot_be_and_exits_go_on(
    open_desk: Open, mark: str, index: str
) -> None:
    async def story() -> None:
        async with open_desk(**CAPPED) as here:
            await here.trade(0.1)
            here.faults(marked(mark, index))
            # six times the cap, and within it
            for size in (2.0, 0.1):
                assert await here.trade(size) == []
                assert here.position == 0.1
            (reason,) = here.desk.status().reasons
            assert reason.startswith("marks: TEST/USDT:USDT: the mark price must lie within 1.1 times")
            # it is no reason to wait with the books
            assert (await here.settle()).is_whole
            await here.trade(-0.05, reduce_only=True)
            assert here.position == pytest.approx(0.05)
            assert len(here.stops()) == 1
            here.faults()
            await until(lambda: here.desk.status().state == "ready")
            await here.settle()
            await here.trade(0.1)
            assert here.position == pytest.approx(0.15)
            await here.settle()
            # as the cap has it where nobody lies
            assert await here.trade(2.0) == []

    asyncio.run(story())


def test_a_mark_near_the_last_trade_and_the_index_is_believed() -> None:
    assert believed_mark("X", "101.5", last="100", index="102") == 101.5
    # a contract without an index
    assert believed_mark("X", "101.5", last=100.0, index="0.00000000") == 101.5
    assert believed_mark("X", 101.5, last=100.0) == 101.5


@pytest.mark.parametrize(("last", "index"), [("nan", "100"), ("0", None), ("100", "-1"), ("100", "nan")])
def test_a_mark_is_not_believed_where_there_is_nothing_to_hold_it_against(last: str, index: Any) -> None:
    with pytest.raises(Disbelieved, match="must lie within"):
        believed_mark("X", "100", last=last, index=index)


@pytest.mark.parametrize("equity", [float("nan"), float("inf"), 1e9])
def test_an_equity_that_cannot_be_defeats_no_cap(equity: float) -> None:
    """The wallet is compared with the books, and no position is worth more than its move from the entry."""
    contract = Contract(symbol=SYMBOL, lot_size=0.001, min_quantity=0.001)
    held = Position(contract=SYMBOL, quantity=0.1, entry_price=30_000.0, mark_price=31_000.0)
    account = AccountTruth(time_ms=0, wallet=10_000.0, equity=equity, positions={SYMBOL: held})
    marks, watchman = {SYMBOL: 31_000.0}, Watchman(DeskLimits(max_exposure=1.0))

    def refusal(size: float) -> str:
        planned = pieces(Wish(contract=SYMBOL, quantity=size), 0.1, contract, may_increase=True)
        return watchman.refusal(planned, account, OrderTable(), marks, {SYMBOL: contract}, 0)

    assert "above max_exposure" in refusal(0.3)
    assert refusal(0.2) == "" or equity != equity
