"""The desk on Bybit: an account small enough to keep by hand, and orders that it must not double."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import bybit_messages as say
import pytest
from bybit_server import SYMBOL, LocalBybit, Refusal, broker_on, cut, page_of, refuse, serving

from perpgym.envs.live.broker import (
    AccountTruth,
    Fill,
    Income,
    Order,
    OrderState,
    Settings,
    StopWish,
)
from perpgym.envs.live.context import DeskTimings
from perpgym.envs.live.desk import Desk
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.wishes import Decision, Wish

PRICE, FEE_RATE = 42_100.5, 0.00055
REALTIME, HISTORY, CREATE = "/v5/order/realtime", "/v5/order/history", "/v5/order/create"
QUICK = DeskTimings(
    first_wait_s=0.02, longest_wait_s=0.1, absent_after_s=0.15, absent_asks=2, settle_s=2.0, start_s=5.0
)  # fmt: skip
Step = Callable[["Exchange", Desk, "Books"], Awaitable[None]]


class Exchange(LocalBybit):
    """Orders at one price: market orders fill, the rest waits.

    Attributes:
        has_passed: every trigger price has been passed already.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held, self.balance, self.number = 0.0, 10_000.0, 0
        self.has_passed = False
        self.tasks: set[asyncio.Task[None]] = set()

    def result(self, path: str, params: dict[str, Any]) -> Any:
        if path == CREATE:
            return self._create(params)
        if path == "/v5/order/cancel":
            return self._cancel(params)
        self.rows["/v5/position/list"] = [
            say.position(f"{abs(self.held):.3f}", "Buy" if self.held > 0.0 else "Sell" if self.held else "")
        ]
        self.results["/v5/account/wallet-balance"] = say.wallet(f"{self.balance:.8f}", f"{self.balance:.8f}")
        return super().result(path, params)

    def _create(self, params: dict[str, Any]) -> Any:
        link = params["orderLinkId"]
        if any(row["orderLinkId"] == link for row in self.rows[REALTIME] + self.rows[HISTORY]):
            return Refusal(110072, "OrderLinkedID is duplicate")
        if params.get("reduceOnly") and self.held == 0.0:
            return Refusal(110017, "current position is zero, cannot fix reduce-only order qty")
        if "triggerPrice" in params and self.has_passed:
            return Refusal(110093, "expect Falling, but trigger_price[378905000] >= current[376000000]")
        names = ("side", "orderType", "qty", "reduceOnly", "closeOnTrigger", "triggerBy", "triggerDirection")
        row = say.order(link, f"id-{link}", **{name: params[name] for name in names if name in params})
        row |= {"price": params.get("price", "0"), "updatedTime": str(self.now_ms())}
        if "triggerPrice" in params:
            row |= {
                "triggerPrice": params["triggerPrice"],
                "stopOrderType": "Stop",
                "orderStatus": "Untriggered",
            }
        if params["orderType"] == "Market" and "triggerPrice" not in params:
            self._fill(row)
        else:
            self.rows[REALTIME].insert(0, row)
            self._say(say.event("order.linear", row))
        return {"orderId": row["orderId"], "orderLinkId": link}

    def _fill(self, row: dict[str, Any]) -> None:
        self.number += 1
        quantity = float(row["qty"]) * (1 if row["side"] == "Buy" else -1)
        fee = abs(quantity) * PRICE * FEE_RATE
        self.held = round(self.held + quantity, 6)
        self.balance -= fee
        at = self.now_ms()
        trade = say.execution(
            self.number, row["orderLinkId"], time_ms=at, side=row["side"], execQty=row["qty"],
            execPrice=str(PRICE), execFee=f"{fee:.8f}", orderId=row["orderId"],
        )  # fmt: skip
        self.rows["/v5/execution/list"].insert(0, trade)
        booked = say.transaction(self.number, "TRADE", time_ms=at, fee=f"{fee:.8f}", change=f"{-fee:.8f}")
        self.rows["/v5/account/transaction-log"].insert(0, booked)
        row |= {"orderStatus": "Filled", "cumExecQty": row["qty"], "avgPrice": str(PRICE)}
        self.rows[HISTORY].insert(0, row)
        self._say(say.event("execution.linear", trade), say.event("order.linear", row))

    def _cancel(self, params: dict[str, Any]) -> Any:
        link = params["orderLinkId"]
        found = [row for row in self.rows[REALTIME] if row["orderLinkId"] == link]
        if not found:
            return Refusal(110001, "order not exists or too late to cancel")
        self.rows[REALTIME].remove(found[0])
        ended = found[0] | {"orderStatus": "Cancelled", "cancelType": "CancelByUser"}
        self.rows[HISTORY].insert(0, ended)
        self._say(say.event("order.linear", ended))
        return {"orderId": ended["orderId"], "orderLinkId": link}

    def _say(self, *messages: Any) -> None:
        task = asyncio.ensure_future(self.tell(*messages))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def of(self, side: str) -> list[dict[str, Any]]:
        """Orders of one side that ever were."""
        return [row for row in self.rows[REALTIME] + self.rows[HISTORY] if row["side"] == side]


class Books:
    """What is held, and a stop a tenth below it."""

    def __init__(self) -> None:
        self.held, self.wallet = 0.0, 0.0

    def open(self, truth: AccountTruth) -> None:
        self.held, self.wallet = truth.quantity(SYMBOL), truth.wallet

    def keep_stops(self, truth: AccountTruth) -> None:
        """They are where they are."""

    def book_fill(self, fill: Fill) -> None:
        self.held = round(self.held + fill.quantity, 6)

    def book_income(self, income: Income) -> None:
        self.wallet += income.amount

    def wanted_stops(self) -> list[StopWish]:
        if not self.held:
            return []
        return [StopWish(contract=SYMBOL, quantity=-self.held, trigger_price=0.9 * PRICE)]

    def compare(self, truth: AccountTruth) -> list[str]:
        is_same = self.held == truth.quantity(SYMBOL) and abs(self.wallet - truth.wallet) < 1e-6
        return [] if is_same else [f"{self.held}, {self.wallet} is not {truth}"]

    def state_dict(self) -> dict[str, Any]:
        return {}


def play(step: Step, folder: Path) -> None:
    async def run() -> None:
        async with serving(Exchange()) as server, asyncio.timeout(20.0):
            assert isinstance(server, Exchange)
            books = Books()
            desk = Desk(
                broker_on(server), Journal.open(folder / "journal.sqlite"), books,
                Settings(leverage={SYMBOL: 10}), timings=QUICK, lock_folder=folder / "locks",
            )  # fmt: skip
            await desk.start()
            try:
                await step(server, desk, books)
            finally:
                await desk.stop()

    asyncio.run(run())


async def buy(desk: Desk, quantity: float, number: int = 1, **more: Any) -> Order:
    decision = Decision(id=number, bar_close_ms=say.START_MS, observation_hash="", action=[0.0])
    orders = await desk.trade(decision, [Wish(contract=SYMBOL, quantity=quantity, **more)])
    return orders[-1]


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.01)


def test_an_order_fills_is_booked_and_is_protected_by_one_stop(tmp_path: Path) -> None:
    async def step(server: Exchange, desk: Desk, books: Books) -> None:
        await buy(desk, 0.01)
        await until(lambda: books.held == 0.01)
        await until(lambda: len(server.of("Sell")) == 1)
        (stop,) = server.of("Sell")
        assert (stop["orderStatus"], stop["qty"], stop["triggerPrice"]) == ("Untriggered", "0", "37890.5")
        settled = await desk.settle(say.START_MS)
        assert settled.is_whole, settled.why
        assert settled.truth.wallet == pytest.approx(10_000.0 - 0.01 * PRICE * FEE_RATE, abs=1e-6)

    play(step, tmp_path)


@pytest.mark.parametrize("broken", [cut, page_of(504)])
def test_an_order_that_filled_without_an_answer_is_found_and_not_sent_again(
    broken: Any, tmp_path: Path
) -> None:
    async def step(server: Exchange, desk: Desk, books: Books) -> None:
        server.after[CREATE] = [broken]
        order = await buy(desk, 0.01)
        assert (order.state, order.filled) == (OrderState.FILLED, 0.01)
        assert len(server.of("Buy")) == 1
        assert books.held == server.held == 0.01

    play(step, tmp_path)


def test_an_order_that_never_arrived_is_proven_absent(tmp_path: Path) -> None:
    async def step(server: Exchange, desk: Desk, _books: Books) -> None:
        server.failures[CREATE] = [cut]
        assert (await buy(desk, 0.01)).state is OrderState.ABSENT
        assert server.of("Buy") == []

    play(step, tmp_path)


def test_a_resting_order_is_gone_when_the_desk_stops_though_a_cancel_is_only_acknowledged(
    tmp_path: Path,
) -> None:
    async def step(server: Exchange, desk: Desk, _books: Books) -> None:
        order = await buy(desk, 0.01, style="limit", limit_price=40_000.0)
        assert order.state is OrderState.OPEN
        await desk.stop()
        assert server.rows[REALTIME] == []

    play(step, tmp_path)


def test_an_exit_that_is_refused_as_not_reducing_is_sent_once_more_and_closes(tmp_path: Path) -> None:
    async def step(server: Exchange, desk: Desk, books: Books) -> None:
        await buy(desk, 0.01)
        await desk.settle(say.START_MS)
        server.failures[CREATE] = [refuse(110017, "Reduce-only rule not satisfied")]
        await buy(desk, -0.01, 2, reduce_only=True)
        await until(lambda: books.held == 0.0)
        assert server.held == 0.0

    play(step, tmp_path)


def test_a_stop_whose_price_has_passed_already_closes_the_position(tmp_path: Path) -> None:
    async def step(server: Exchange, desk: Desk, books: Books) -> None:
        server.has_passed = True
        await buy(desk, 0.01)
        await until(lambda: len(server.of("Sell")) == 1)
        # the fill is heard a moment after the order is
        await until(lambda: server.held == books.held == 0.0)

    play(step, tmp_path)
