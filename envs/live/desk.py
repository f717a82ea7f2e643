"""Keeps account and exchange the same, trades what is wished for, and stops when it does not know.

Crash-only: a start and every recovery are the same way. Nothing is sent that was not written down, nothing is
sent twice, and while an outcome, the stream or the account is in doubt nothing makes a position larger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from platformdirs import user_state_path

from perpgym.envs.live.bookkeeping import Bookkeeper
from perpgym.envs.live.broker import (
    AccessDenied,
    AccountTruth,
    Broker,
    BrokerError,
    Order,
    OrderState,
    Rejected,
    Settings,
)
from perpgym.envs.live.context import PREFIX, Context, DeskTimings
from perpgym.envs.live.instance_lock import AccountTaken, InstanceLock
from perpgym.envs.live.journal import Journal, JournalBroken
from perpgym.envs.live.limits import (
    DeskLimits,
    Piece,
    Watchman,
    check_style,
    pieces,
    reserved_notional,
)
from perpgym.envs.live.order_table import OrderTable
from perpgym.envs.live.protection import Protection
from perpgym.envs.live.sender import Sender
from perpgym.envs.live.watch import Watch
from perpgym.envs.live.wishes import Books, Decision, DeskStatus, Settled, Wish

__all__ = ["Decision", "Desk", "DeskLimits", "DeskStatus", "DeskTimings", "Settled", "StartRefused", "Wish"]

# trading rules are in force, or the contract is being closed: the exchange takes at most what closes
_ONLY_EXITS = frozenset({-4140, -4141, -4192, -4400})
# filters that changed under us
_FILTER_CODES = frozenset({-1111, -1013, -4003, -4004, -4005, -4014, -4023, -4164})
# nothing to reduce, or other exits rest that reduce it already
_NOTHING_TO_REDUCE = frozenset({-2022, -4118})
_OLD_MARGIN_CODES = frozenset({-2027, -2028})


class StartRefused(Exception):  # noqa: N818 - what is wrong with the account
    """The desk will not trade on this account as it is."""


class Desk:
    """One account. Every method runs in the loop of ``start``; only ``status`` may be called from elsewhere.

    Args:
        broker: the exchange.
        journal: open.
        books: the account as we book it.
        settings: what the account must be set up as.
        limits, timings: see there.
        lock_folder: of the files that keep a second program away; one for all programs of a machine.
    """

    def __init__(
        self,
        broker: Broker,
        journal: Journal,
        books: Books,
        settings: Settings,
        limits: DeskLimits | None = None,
        timings: DeskTimings | None = None,
        lock_folder: Path | None = None,
    ) -> None:
        self._x = x = Context(broker=broker, journal=journal, books=books, timings=timings or DeskTimings())
        self.settings = settings
        self._watchman = Watchman(limits or DeskLimits())
        self._sender = Sender(x)
        self._keeper = Bookkeeper(x)
        self._protection = Protection(x, self._sender)
        self._watch = Watch(self, x, self._keeper)
        self._lock = InstanceLock(lock_folder or user_state_path("perpgym") / "locks", broker.account_id)
        # one at a time: decisions, settlements, comparisons
        self._turn = asyncio.Lock()
        # somebody wants to stop: what waits gives way
        self._is_urgent = False
        self._is_running = False
        self._marks: Mapping[str, float] = {}
        self._settings_at = -float("inf")
        self._status = DeskStatus(state="stopped")

    # --- starting and recovering ---

    async def start(self) -> AccountTruth:
        """Take the account, find out everything, make it what it must be; returns what it is.

        Raises:
            StartRefused: it cannot be what it must be.
            AccountTaken: somebody else trades on it.
            BrokerError: the exchange would not say within ``start_s``.
        """
        x = self._x
        self._lock.acquire()
        try:
            x.hold("start", "starting", "not started yet")
            x.epoch = x.journal.begin_epoch()
            x.table = OrderTable(x.journal.orders())
            truth = await self._until(self._open, x.timings.start_s)
            self._watch.start()
            self._is_running = True
            await self._watch.wait_heard(x.timings.start_s)
            x.lift("start")
            return await self._again(truth)
        except BaseException:
            await self._let_go()
            raise
        finally:
            self.tell()

    async def _again(self, truth: AccountTruth) -> AccountTruth:
        """What happened before the stream could be heard."""
        async with self._turn:
            fresh, differences = await self._keeper.reconcile()
            if differences:
                self._keeper.adopt(fresh, differences)
            self._keeper.take()
        return fresh or truth

    async def _until(self, step: Any, seconds: float) -> AccountTruth:
        """Try again what the exchange did not answer."""
        loop = asyncio.get_running_loop()
        until, wait_s = loop.time() + seconds, self._x.timings.first_wait_s
        while True:
            try:
                truth: AccountTruth = await step()
                return truth
            except (Rejected, AccessDenied) as error:
                raise StartRefused(str(error)) from error
            except BrokerError as error:
                if loop.time() + wait_s > until:
                    raise
                self._x.note("warning", "start_waits", why=str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(2.0 * wait_s, self._x.timings.longest_wait_s)

    async def _open(self) -> AccountTruth:
        x = self._x
        await x.broker.open()
        x.contracts = await x.broker.contracts()
        if x.journal.meta("began_ms") is None:
            x.journal.set_meta("began_ms", str(x.broker.now_ms()))
        self._keeper.begin(int(x.journal.meta("began_ms") or 0))
        truth = await x.broker.account()
        self._check_strangers(truth)
        await self._check_status(truth)
        await x.broker.set_up(self.settings)
        return await self.recover()

    def _check_strangers(self, truth: AccountTruth) -> None:
        """Raises AccountTaken where orders rest that another perpgym sent."""
        x = self._x
        others = [
            order.client_id
            for order in (*truth.orders, *truth.stops)
            if order.client_id.startswith(PREFIX) and order.client_id not in x.table
        ]
        if others:
            raise AccountTaken(
                f"orders of another perpgym rest on this account ({', '.join(others[:3])}): stop it and "
                "cancel them, or start with its journal"
            )

    async def _check_status(self, truth: AccountTruth) -> None:
        for name in self._x.contracts:
            status = await self._x.broker.status(name)
            if status != "trading" and truth.quantity(name) == 0.0:
                raise StartRefused(f"{name} must be trading, is {status}; leave it out or wait")
            if status != "trading":
                self._x.hold(f"status {name}", "reduce_only", f"{name} is {status}")

    async def recover(self) -> AccountTruth:
        """From whatever was left to: no unsure order, books = account, no resting order, stops in place."""
        x = self._x
        for order in x.table.open() + x.table.open(stops=True):
            if order.state is OrderState.PREPARED:
                # it was never sent: one look is proof enough
                found = await x.broker.find(order.client_id, order.contract, order.is_stop)
                if found is None:
                    self._sender.drop(order, "a restart came before it was sent")
                else:
                    x.report(found, "found")
            elif order in x.table.unsure():
                self._sender.look_for(order.client_id)
        if not await self._sender.wait_resolved(x.timings.settle_s):
            x.note("alarm", "still_unknown", orders=[o.client_id for o in x.table.unsure()])
        truth = await self._keeper.open()
        if x.journal.meta("began_wallet") is None:
            known = sum(row.amount for row in x.journal.incomes())
            x.journal.set_meta("began_wallet", repr(truth.wallet - known))
        await self._sender.cancel_all(x.table.open(), x.timings.settle_s)
        if x.table.open():
            x.hold("orders", "recovering", "resting orders could not be cancelled")
        truth, differences = await self._keeper.reconcile()
        if differences:
            self._keeper.adopt(truth, differences)
        self._keeper.take()
        await self._protection.check()
        await self._protection.hold()
        await self.arm()
        self._marks = await x.broker.mark_prices()
        return truth

    async def arm(self) -> None:
        """Tell the exchange that somebody is here."""
        for name in self._x.contracts:
            await self._x.broker.arm_dead_man(name, self._x.timings.dead_man_ms)

    async def _let_go(self) -> None:
        self._is_running = False
        await self._watch.stop()
        await self._sender.stop()
        await self._x.broker.close()
        self._lock.release()

    async def stop(self) -> None:
        """Cancel what rests, leave positions to their stops, and let go of the account."""
        x = self._x
        x.hold("stop", "halted", "stopped")
        self._is_urgent = True
        async with self._turn:
            try:
                await self._sender.cancel_all(x.table.open(), x.timings.settle_s)
                for name in x.contracts:
                    await x.broker.arm_dead_man(name, 0)
            except BrokerError as error:
                x.note("alarm", "stop_incomplete", why=str(error))
        await self._let_go()
        self.tell()

    # --- trading ---

    async def trade(
        self,
        decision: Decision,
        wishes: Sequence[Wish],
        observation: Mapping[str, NDArray[Any]] | None = None,
    ) -> list[Order]:
        """Carry wishes out as far as holds and limits admit; exits first.

        The decision and every order are on the disk before the first is sent. An order whose outcome is not
        known within ``settle_s`` comes back as it is then and is looked for until it is known.

        Returns:
            The orders, as far as they are known.
        """
        for wish in wishes:
            check_style(wish.style)
        async with self._turn:
            self._is_urgent = False
            try:
                return await self._trade(decision, wishes, observation)
            finally:
                self.tell()

    async def _trade(
        self, decision: Decision, wishes: Sequence[Wish], observation: Mapping[str, NDArray[Any]] | None
    ) -> list[Order]:
        x = self._x
        try:
            x.journal.decision(decision, wishes, x.broker.now_ms(), observation)
        except JournalBroken as error:
            x.break_journal(error)
        await self._check_settings()
        if "access" in x.holds:
            # each further request would be one more with a bad key
            return []
        await self._clear_the_book()
        try:
            await self._keeper.collect()
            x.truth = await x.broker.account()
            self._marks = await x.broker.mark_prices()
        except BrokerError as error:
            self.blame(error)
        orders: list[Order] = []
        for order in self._sender.prepare(self._plan(wishes), decision.id):
            orders += await self._send(order)
        await self._after_sending(orders)
        return self._fresh(orders)

    async def _clear_the_book(self) -> None:
        """What rests was another decision's."""
        x = self._x
        if await self._sender.cancel_all(x.table.open(), x.timings.settle_s):
            x.lift("orders")
        else:
            x.hold("orders", "recovering", "resting orders could not be cancelled")

    def _plan(self, wishes: Sequence[Wish]) -> list[Order]:
        """Orders within holds and limits, exits first."""
        x = self._x
        assert x.truth is not None
        moved = {fill.contract for fill in self._keeper.fills}
        planned: list[Piece] = []
        for wish in wishes:
            # a position that is not the one decided upon is not made larger
            may_increase = not x.holds and wish.contract not in moved
            held = x.truth.quantity(wish.contract)
            found = pieces(wish, held, x.contracts[wish.contract], may_increase=may_increase)
            why = self._watchman.refusal(
                planned + found, x.truth, x.table, self._marks, x.contracts, x.broker.now_ms()
            )
            if why or not found:
                reasons = (why, *x.holds.reasons, "its fills moved the position" * (wish.contract in moved))
                x.note("warning", "wish_refused", contract=wish.contract, quantity=wish.quantity,
                       why="; ".join(r for r in reasons if r))  # fmt: skip
                found = [] if why else found
            planned += found
        planned.sort(key=lambda piece: not piece.reduce_only)
        return [self._order(piece) for piece in planned]

    def _order(self, piece: Piece) -> Order:
        wish = piece.wish
        return Order(
            client_id=self._x.next_id(), contract=wish.contract, quantity=piece.quantity,
            style=wish.style if wish.style in ("limit", "post_only") else "market",
            price=None if wish.style == "market" else wish.limit_price, reduce_only=piece.reduce_only,
        )  # fmt: skip

    async def _send(self, order: Order) -> list[Order]:
        """One prepared order, unless something has come between, and what a refused exit is followed by."""
        x = self._x
        if not order.reduce_only:
            if x.holds:
                return [self._sender.drop(order, "; ".join(x.holds.reasons))]
            self._watchman.count(x.broker.now_ms())
        after = await self._sender.send(order)
        error = self._sender.refusals.get(order.client_id)
        return [after] if error is None else [after, *await self._meet_refusal(after, error)]

    async def _meet_refusal(self, order: Order, error: BrokerError) -> list[Order]:
        x = self._x
        code = error.code if isinstance(error, Rejected) else 0
        if code in _ONLY_EXITS:
            x.hold("rules", "reduce_only", str(error))
        elif code in _FILTER_CODES | _OLD_MARGIN_CODES:
            x.contracts = await x.broker.contracts()
        if order.reduce_only and code in _NOTHING_TO_REDUCE | _FILTER_CODES:
            return await self._close_again(order)
        return []

    async def _close_again(self, order: Order) -> list[Order]:
        """An exit was refused: others may be in its way, or it is flat. Once more, with the rest."""
        x = self._x
        truth = await x.broker.account()
        held = truth.quantity(order.contract)
        for other in truth.orders:
            # an exit of somebody else's is in the way as well as one of ours
            if other.reduce_only and other.contract == order.contract:
                await self._sender.cancel_other(other)
        if held * order.quantity >= 0.0:
            return []
        size = min(abs(held), abs(order.quantity))
        wish = Wish(
            contract=order.contract, quantity=size if order.quantity > 0.0 else -size, reduce_only=True
        )
        again = [self._order(p) for p in pieces(wish, held, x.contracts[order.contract], may_increase=False)]
        return [await self._sender.send(piece) for piece in self._sender.prepare(again)]

    async def _after_sending(self, orders: Sequence[Order]) -> None:
        """Book what filled, protect it, and wait for what is not known."""
        if any(order.filled for order in orders):
            await self.protect()
        if await self._wait(self._sender.wait_resolved) and any(o.filled for o in self._fresh(orders)):
            await self.protect()

    def _fresh(self, orders: Sequence[Order]) -> list[Order]:
        return [self._x.table[order.client_id] for order in orders]

    async def _wait(self, until: Any) -> bool:
        """Wait in short steps, for at most ``settle_s``, unless somebody wants to stop."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._x.timings.settle_s
        while not await until(self._x.timings.first_wait_s):
            if self._is_urgent or loop.time() >= deadline:
                return False
        return True

    async def protect(self) -> None:
        """Book new trades and make the exchange hold the stops that follow from them."""
        try:
            await self._keeper.collect()
            await self._protection.hold()
        except BrokerError as error:
            self.blame(error)

    # --- settling ---

    async def settle(self, bar_close_ms: int) -> Settled:
        """Everything booked since the last settlement, once the books are the account's.

        What is still missing after ``settle_s`` is said in ``why``.
        """
        async with self._turn:
            x = self._x
            truth, why = x.truth, "the account could not be read"
            loop = asyncio.get_running_loop()
            until = loop.time() + x.timings.settle_s
            while True:
                why = await self._compare()
                truth = x.truth or truth
                if not why or "access" in x.holds or self._is_urgent or loop.time() >= until:
                    break
                await asyncio.sleep(x.timings.first_wait_s)
            assert truth is not None
            fills, income = self._keeper.take()
            self._keep_snapshot(truth, bar_close_ms)
            self.tell()
            return Settled(fills=fills, income=income, truth=truth, is_whole=not why, why=why)

    async def _compare(self) -> str:
        """Reconcile once; what is missing, in words."""
        x = self._x
        if "access" in x.holds:
            return "; ".join(x.holds.reasons)
        if not await self._sender.wait_resolved(x.timings.first_wait_s):
            return f"not known: {', '.join(o.client_id for o in x.table.unsure())}"
        try:
            return await self.reconcile()
        except BrokerError as error:
            self.blame(error)
            return str(error)

    async def reconcile(self) -> str:
        """Books, orders and stops against the account; a difference that stays is the exchange's word."""
        truth, differences = await self._keeper.reconcile()
        if differences and not self._x.table.unsure():
            self._keeper.adopt(truth, differences)
        await self._protection.check()
        is_protected = await self._protection.hold()
        if not differences:
            self.absolve()
        missing = "" if is_protected else "a stop could not be placed"
        return "; ".join([*differences, missing]) if missing else "; ".join(differences)

    def _keep_snapshot(self, truth: AccountTruth, bar_close_ms: int) -> None:
        try:
            self._x.journal.snapshot(truth, bar_close_ms, self._x.books.state_dict())
        except JournalBroken as error:
            self._x.break_journal(error)

    # --- settings, failures, state ---

    async def _check_settings(self) -> None:
        """Leverage and modes must read back as they were set, or nothing is opened."""
        x = self._x
        try:
            found = await x.broker.settings()
        except BrokerError as error:
            self.blame(error)
            return
        self._settings_at = asyncio.get_running_loop().time()
        if found != self.settings:
            x.hold("settings", "halted", f"must be {self.settings}, reads {found}: set it back and resume")

    async def check_settings_if_due(self) -> None:
        """Once every ``settings_s``."""
        if asyncio.get_running_loop().time() - self._settings_at >= self._x.timings.settings_s:
            await self._check_settings()

    def blame(self, error: BrokerError) -> None:
        """The exchange could not be asked."""
        if isinstance(error, AccessDenied):
            self._x.hold("access", "halted", str(error))
        else:
            self._x.hold("exchange", "recovering", str(error))
        self.tell()

    def absolve(self) -> None:
        """The exchange answers and agrees."""
        self._x.lift("exchange")

    @property
    def turn(self) -> asyncio.Lock:
        """Held by whoever acts."""
        return self._turn

    def tell(self) -> None:
        """Let ``status`` show what is so now."""
        x = self._x
        truth = x.truth
        self._status = DeskStatus(
            state=x.holds.state if self._is_running else "stopped",
            reasons=x.holds.reasons,
            unknown=tuple(order.client_id for order in x.table.unsure()),
            reserved=0.0 if truth is None else reserved_notional(truth, x.table, self._marks),
            wallet=0.0 if truth is None else truth.wallet,
            equity=0.0 if truth is None else truth.equity,
            time_ms=x.broker.now_ms(),
            counts=dict(x.counts),
        )

    def status(self) -> DeskStatus:
        """Where the desk stands; may be called from any thread."""
        return replace(
            self._status,
            state=self._x.holds.state if self._is_running else "stopped",
            reasons=self._x.holds.reasons,
        )

    # --- stopping ---

    async def freeze(self, reason: str) -> bool:
        """Open nothing, cancel what rests; positions keep their stops. Whether all is cancelled."""
        x = self._x
        x.hold("operator", "halted", reason)
        self._is_urgent = True
        async with self._turn:
            self._is_urgent = False
            is_clear = await self._sender.cancel_all(x.table.open(), x.timings.settle_s)
            if not is_clear:
                left = [o.client_id for o in x.table.open()]
                x.note("alarm", "freeze_incomplete", orders=left)
            self.tell()
            return is_clear

    async def flatten(self, reason: str) -> bool:
        """Freeze, and close every position; whether the account is flat."""
        await self.freeze(reason)
        x = self._x
        loop = asyncio.get_running_loop()
        until = loop.time() + x.timings.settle_s
        async with self._turn:
            while True:
                try:
                    if await self._close_everything():
                        return True
                except BrokerError as error:
                    x.note("warning", "flatten_waits", why=str(error))
                if loop.time() >= until:
                    x.note("alarm", "flatten_incomplete", why="positions remain")
                    return False
                await asyncio.sleep(x.timings.first_wait_s)

    async def _close_everything(self) -> bool:
        """One round; whether nothing was left to close."""
        x = self._x
        await self._sender.wait_resolved(x.timings.first_wait_s)
        # an exit that may have been executed is not sent again
        unsure = {order.contract for order in x.table.unsure()}
        truth, _differences = await self._keeper.reconcile()
        held = [p for name, p in truth.positions.items() if name in x.contracts]
        for position in held:
            if position.contract in unsure:
                continue
            wish = Wish(contract=position.contract, quantity=-position.quantity, reduce_only=True)
            rules = x.contracts[position.contract]
            orders = [self._order(p) for p in pieces(wish, position.quantity, rules, may_increase=False)]
            for order in self._sender.prepare(orders):
                await self._send(order)
        if not held:
            await self._protection.hold()
        self.tell()
        return not held

    async def resume(self) -> AccountTruth:
        """Lift what only somebody can lift, and recover; returns what the account is."""
        x = self._x
        async with self._turn:
            self._is_urgent = False
            x.holds.clear_halts()
            x.note("info", "resume")
            await x.broker.server_time_ms()
            truth = await self.recover()
            await self._check_settings()
            self.absolve()
            self._watch.start()
            self.tell()
            return truth
