"""A desk on the simulated exchange: real ccxt, requests and streams, and the exchange's state to judge by."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig
from perpgym.envs.exchange.admin import call
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.engine import Engine
from perpgym.envs.exchange.gate import Keys, Limits
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.server import Server, serving
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.exchange.warm import warm_up
from perpgym.envs.live.binance import Binance, BinanceConfig
from perpgym.envs.live.broker import AccountTruth, Fill, Income, Order, Settings, StopWish
from perpgym.envs.live.context import DeskTimings
from perpgym.envs.live.desk import Desk
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.wishes import Decision, Settled, Wish

SYMBOL = "TEST/USDT:USDT"
SETTINGS = Settings(leverage={SYMBOL: 10})
QUICK = {
    "first_wait_s": 0.02, "longest_wait_s": 0.1, "absent_after_s": 0.15, "absent_asks": 2, "settle_s": 5.0,
    "start_s": 10.0, "reconcile_s": 60.0, "settings_s": 60.0, "stream_grace_s": 0.1,
}  # fmt: skip


class SumBooks:
    """The account as sums: quantities of trades, amounts of income, and one stop for what is held.

    Args:
        stop_distance: fraction of the last fill's price; None for no stops.
    """

    def __init__(self, stop_distance: float | None = 0.1) -> None:
        self.stop_distance = stop_distance
        self.wallet = 0.0
        self.quantities: dict[str, float] = {}
        self.prices: dict[str, float] = {}
        self.opened = 0
        self._told: set[tuple[str, str]] = set()

    def open(self, truth: AccountTruth) -> None:
        self.opened += 1
        self.wallet = truth.wallet
        self.quantities = {name: p.quantity for name, p in truth.positions.items()}
        self.prices = {name: p.entry_price for name, p in truth.positions.items()}

    def keep_stops(self, truth: AccountTruth) -> None:
        """They are where the entry says."""

    def book_fill(self, fill: Fill) -> None:
        key = (fill.contract, fill.trade_id)
        if key in self._told:
            return
        self._told.add(key)
        held = self.quantities.get(fill.contract, 0.0)
        if held == 0.0:
            self.prices[fill.contract] = fill.price
        after = held + fill.quantity
        self.quantities[fill.contract] = 0.0 if abs(after) < 1e-9 else after

    def book_income(self, income: Income) -> None:
        key = ("", income.income_id)
        if key not in self._told:
            self._told.add(key)
            self.wallet += income.amount

    def wanted_stops(self) -> list[StopWish]:
        if self.stop_distance is None:
            return []
        return [
            StopWish(
                contract=name, quantity=-held,
                trigger_price=self.prices[name] * (1.0 - math.copysign(self.stop_distance, held)),
            )
            for name, held in self.quantities.items()
            if held
        ]  # fmt: skip

    def compare(self, truth: AccountTruth) -> list[str]:
        found = [
            f"{name}: {self.quantities.get(name, 0.0)} is booked, {truth.quantity(name)} is held"
            for name in {*self.quantities, *truth.positions}
            if abs(self.quantities.get(name, 0.0) - truth.quantity(name)) > 1e-9
        ]
        if abs(self.wallet - truth.wallet) > 1e-8:
            found.append(f"the wallet is {truth.wallet!r}, {self.wallet!r} is booked")
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"wallet": np.array(self.wallet)}


class Here:
    """A desk, the exchange that it trades on, and what a test asks of both."""

    def __init__(self, server: Server, folder: Path, settings: dict[str, Any]) -> None:
        self.server, self.venue, self.folder = server, server.venue, folder
        self.settings = settings
        self.desk: Desk = None  # type: ignore[assignment]
        self.decisions = 0

    def build(self, *, journal: Path | None = None) -> Desk:
        """A new program: everything but the journal's file and the exchange begins anew."""
        settings = self.settings
        self.broker = Binance(
            BinanceConfig(
                contracts=(SYMBOL,), api_key="key", secret="secret", is_paced=False,
                timeout_ms=settings.get("timeout_ms", 2_000),
                keep_alive_s=settings.get("keep_alive_s", 1_200.0),
                weight_per_minute=settings.get("weight_per_minute", 1_000_000),
            ),
            point=lambda exchange: point_at(exchange, self.server.url),
            local_ms=self.venue.clock.now_ms,
        )  # fmt: skip
        self.journal = Journal.open(journal or self.folder / "journal.sqlite", busy_s=0.05)
        self.books = SumBooks(settings.get("stop_distance", 0.1))
        self.desk = Desk(
            self.broker, self.journal, self.books, settings.get("account", SETTINGS),
            settings.get("limits", DeskLimits()), DeskTimings(**{**QUICK, **settings.get("timings", {})}),
            lock_folder=self.folder / "locks",
        )  # fmt: skip
        return self.desk

    async def close(self) -> None:
        if self.desk.status().state != "stopped":
            await self.desk.stop()
        self.journal.close()

    def admin(self, name: str, **body: Any) -> Any:
        """What somebody else, or the exchange itself, does."""
        self.server.pass_time()
        status, answer = call(self.server, name, body)
        assert status == 200, answer
        return answer

    def faults(self, *rows: Any, **more: Any) -> None:
        """Faults of the matrix by id, or as objects."""
        self.admin("faults", faults=[{"id": row, **more} if isinstance(row, str) else row for row in rows])

    def hits(self) -> int:
        """How many faults have struck."""
        return len(self.server.hub.faults.log)

    async def trade(self, quantity: float, **more: Any) -> list[Order]:
        """One decision with one wish."""
        self.decisions += 1
        decision = Decision(
            id=self.journal.last_decision_id() + 1, bar_close_ms=self.venue.now_ms, observation_hash="",
            action=[quantity],
        )  # fmt: skip
        return await self.desk.trade(decision, [Wish(contract=SYMBOL, quantity=quantity, **more)])

    async def settle(self) -> Settled:
        return await self.desk.settle(self.venue.now_ms)

    async def next_bar(self) -> None:
        self.venue.clock.move_to(self.venue.engine.next_ms)
        self.server.pass_time()
        await asyncio.sleep(0.01)

    # --- the exchange's own state ---

    @property
    def position(self) -> float:
        return self.venue.books.position(0)

    @property
    def last(self) -> float:
        return float(self.venue.market.last_price(0))

    def orders(self) -> list[Any]:
        """Plain orders that ever reached the exchange, but those that a stop sent."""
        orders = self.venue.books.registry.orders.values()
        return [order for order in orders if order.original_kind in ("MARKET", "LIMIT")]

    def stops(self) -> list[Any]:
        """Conditional orders that wait."""
        return self.venue.books.registry.open_algos()

    def resting(self) -> list[Any]:
        return self.venue.books.registry.open_orders()

    def rows(self, table: str, client_id: str) -> list[dict[str, Any]]:
        """What the journal's file says of an order, read as somebody else would."""
        with closing(sqlite3.connect(self.journal.path)) as database:
            database.row_factory = sqlite3.Row
            found = database.execute(f"SELECT * FROM {table} WHERE client_id = ?", (client_id,))
            return [dict(row) for row in found]

    def check_sound(self) -> None:
        """I1, I2, I4, I10: one order an intent and no order without; books and ledger are the exchange's."""
        ids = [order.client_id for order in self.orders()]
        ids += [algo.client_id for algo in self.venue.books.registry.algos.values()]
        ours = [name for name in ids if name.startswith("pg")]
        assert len(ours) == len(set(ours))
        intents = {order.client_id: order for order in self.journal.orders()}
        assert set(ours) <= set(intents)
        for order in self.orders():
            if order.client_id in intents:
                assert order.quantity <= abs(intents[order.client_id].quantity) + 1e-9
        assert abs(self.books.quantities.get(SYMBOL, 0.0) - self.position) <= 1e-9
        began = float(self.journal.meta("began_wallet") or "nan")
        booked = began + sum(row.amount for row in self.journal.incomes())
        assert abs(booked - self.venue.books.wallet) <= 1e-8


Open = Callable[..., AbstractAsyncContextManager[Here]]


@pytest.fixture(scope="session")
def live_tape(make_tape: Callable[..., Tape]) -> Tape:
    """A tape whose kernels are compiled."""
    tape = make_tape()
    warm_up(Replay(tape))
    return tape


@pytest.fixture
def open_desk(live_tape: Tape, make_tape: Callable[..., Tape], tmp_path: Path) -> Open:
    """Open a desk on a fresh exchange; settings of the venue, then of ``Here.build``."""

    @asynccontextmanager
    async def opening(
        *, start: bool = True, tape: dict[str, Any] | None = None, config: dict[str, Any] | None = None,
        limits_enforced: bool = False, **settings: Any,
    ) -> AsyncIterator[Here]:  # fmt: skip
        market = Replay(live_tape if tape is None else make_tape(**tape), start_bar=50)
        engine = Engine(market, EnvConfig(**{"initial_wallet": 10_000.0, **(config or {})}))
        venue = Venue(
            engine=engine, clock=Clock(engine.now_ms, 0.0), keys=Keys(is_strict=True),
            limits=Limits(is_enforced=limits_enforced), has_admin=True,
        )  # fmt: skip
        async with asyncio.timeout(60), serving(venue) as server:
            here = Here(server, tmp_path, settings)
            desk = here.build()
            try:
                if start:
                    await desk.start()
                yield here
            finally:
                # what a fault still holds back is no part of the story
                server.hub.faults.faults.clear()
                await here.close()

    return opening
