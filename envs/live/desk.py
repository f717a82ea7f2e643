"""Keeps account and exchange the same, trades what is wished for, and stops when it does not know.

Crash-only: a start and every recovery are the same way. Nothing is sent that was not written down, nothing is
sent twice, and while an outcome, the stream or the account is in doubt nothing makes a position larger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from platformdirs import user_state_path

from perpgym.envs.live.bookkeeping import Bookkeeper
from perpgym.envs.live.broker import (
    AccountTruth,
    Broker,
    BrokerError,
    Disbelieved,
    Order,
    Settings,
)
from perpgym.envs.live.context import Context, DeskTimings
from perpgym.envs.live.exits import Exits
from perpgym.envs.live.insist import StartRefused, insist
from perpgym.envs.live.instance_lock import InstanceLock
from perpgym.envs.live.journal import Journal, JournalBroken
from perpgym.envs.live.limits import DeskLimits, reserved_notional
from perpgym.envs.live.order_table import OrderTable
from perpgym.envs.live.protection import Protection
from perpgym.envs.live.recovery import Recovery, bind
from perpgym.envs.live.sender import Sender
from perpgym.envs.live.setup import Setup
from perpgym.envs.live.slices import Job, Slicer
from perpgym.envs.live.stopping import Stopping
from perpgym.envs.live.trader import Trader
from perpgym.envs.live.watch import Watch
from perpgym.envs.live.wire import hurried
from perpgym.envs.live.wishes import Books, Decision, DeskStatus, NoteLevel, Settled, Wish

__all__ = ["Decision", "Desk", "DeskLimits", "DeskStatus", "DeskTimings", "Settled", "StartRefused", "Wish"]


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
        self.settings, self._setup = settings, Setup(x, settings)
        self._sender = Sender(x)
        self._keeper = Bookkeeper(x)
        self._exits = Exits(x, self._sender)
        self._trader = Trader(x, self._sender, self._exits, self._keeper, limits or DeskLimits())
        self._slicer = Slicer(x, self._sender, self._carry_on)
        self._protection = Protection(x, self._sender, self._exits)
        self._recovery = Recovery(x, self._sender, self._keeper, self._protection)
        self._stopping = Stopping(x, self._sender, self._keeper, self._exits, self._protection)
        self._watch = Watch(self, x, self._keeper, self._recovery, self._protection, self._setup)
        self._lock = InstanceLock(lock_folder or user_state_path("perpgym") / "locks", broker.account_id)
        # one at a time: decisions, settlements, comparisons
        self._turn = asyncio.Lock()
        # a start lets go of everything before somebody else takes it up
        self._life = asyncio.Lock()
        self._is_running = False
        self._status = DeskStatus(state="stopped")

    # --- starting and recovering ---

    async def start(self) -> AccountTruth:
        """Take the account, find out everything, make it what it must be; returns what it is.

        Raises:
            StartRefused: it cannot be what it must be.
            AccountTaken: somebody else trades on it.
            BrokerError: the exchange would not say within ``start_s``, or wanted quiet for ``quiet_s``.
        """
        async with self._life:
            return await self._start()

    async def _start(self) -> AccountTruth:
        x = self._x
        bind(x.journal, x.broker.account_id)
        self._lock.acquire()
        x.is_urgent = False
        try:
            x.hold("start", "starting", "not started yet", told="info")
            x.epoch = x.journal.begin_epoch()
            x.table = OrderTable(x.journal.orders())
            truth = await insist(
                lambda: self._recovery.open(self.settings), x.broker, x.timings,
                lambda why: x.note("warning", "start_waits", why=why),
            )  # fmt: skip
            self._watch.start()
            # one that could not be placed is tried again at once
            self._watch.see_to_stops()
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
            try:
                truth, differences = await self._keeper.reconcile()
            except BrokerError as error:
                # the next look tries again
                self._x.blame(error)
                return truth
            if differences:
                self._keeper.adopt(truth, differences)
            self._keeper.take()
        return truth

    async def _let_go(self) -> None:
        self._is_running = False
        await self._watch.stop()
        await self._sender.stop()
        await self._x.broker.close()
        self._lock.release()

    async def stop(self) -> None:
        """Cancel what rests, leave positions to their stops, and let go of the account."""
        x = self._x
        x.hold("stop", "halted", "stopped", told="info")
        self._x.is_urgent = True
        async with self._turn:
            self._slicer.end()
            try:
                # while something rests, the exchange is to cancel it in time
                is_clear = await self._sender.cancel_all(x.table.open(), x.timings.settle_s)
                for name in x.contracts if is_clear else ():
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
        *,
        is_settled: bool = False,
    ) -> list[Order]:
        """Carry wishes out as far as holds and limits admit; exits first.

        The decision and every order are on the disk before the first is sent. An order whose outcome is not
        known within ``settle_s`` comes back as it is then and is looked for until it is known. What a wish
        that takes a while still needs is sent later, until it is done, another decision comes or the desk is
        frozen; ``Settled.orders`` has it.

        Args:
            decision: what was decided.
            wishes: because of it.
            observation: what was seen, for the journal.
            is_settled: a settlement has just said what account, settings and marks are; they are not asked
                for again, unless something rests or has filled since.

        Returns:
            The orders, as far as they are known.
        """
        async with self._turn:
            try:
                return await self._trade(decision, wishes, observation, is_settled=is_settled)
            finally:
                self.tell()

    async def _trade(
        self,
        decision: Decision,
        wishes: Sequence[Wish],
        observation: Mapping[str, NDArray[Any]] | None,
        *,
        is_settled: bool,
    ) -> list[Order]:
        x = self._x
        self._slicer.end()
        try:
            x.journal.decision(decision, wishes, x.broker.now_ms(), observation)
        except JournalBroken as error:
            x.break_journal(error)
        # what rests or has filled since would be news
        is_settled = is_settled and not x.table.open() and not self._keeper.fills
        if not is_settled:
            await self._setup.check()
        if "access" in x.holds:
            # each further request would be one more with a bad key
            return []
        await self._trader.clear_the_book()
        if not is_settled:
            await self._look_at_account()
        orders = await self._trader.carry_out(self._slicer.plan(wishes, decision.id), decision.id)
        self._slicer.begin(orders)
        await self._after_sending(orders)
        return [x.table[order.client_id] for order in orders]

    async def _look_at_account(self) -> None:
        x = self._x
        try:
            await self._keeper.collect()
            x.truth = await x.broker.account()
            await self.read_marks()
        except BrokerError as error:
            x.blame(error)

    async def _carry_on(self, job: Job) -> None:
        """Send the next order of a wish that takes a while."""
        x = self._x
        async with self._turn:
            orders: list[Order] = []
            if "access" not in x.holds:
                await self._look_at_account()
                wish = job.next_wish(x.table, x.broker.now_ms())
                if wish is not None:
                    number = job.decision_of(wish.quantity)
                    orders = await self._trader.carry_out([wish], number, job.client_ids)
            self._slicer.note(job, orders)
            self._slicer.sent += orders
            await self._after_sending(orders)
            self.tell()

    async def _after_sending(self, orders: Sequence[Order]) -> None:
        """Book what filled, protect it, and wait for what is not known."""
        if any(order.filled for order in orders):
            await self._protect_now()
        is_known = await self._wait(self._sender.wait_resolved)
        if is_known and any(self._x.table[order.client_id].filled for order in orders):
            await self._protect_now()

    async def _protect_now(self) -> None:
        if not await self.protect():
            self._watch.see_to_stops()

    async def _wait(self, until: Any) -> bool:
        """Wait in short steps, for at most ``settle_s``, unless somebody wants to stop."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._x.timings.settle_s
        while not await until(self._x.timings.first_wait_s):
            if self._x.is_urgent or loop.time() >= deadline:
                return False
        return True

    async def protect(self) -> bool:
        """Make the exchange hold the stops that follow from all trades; whether it does.

        What the stream has told is protected before anything is asked, and whatever became of the question.
        """
        is_asked = False
        try:
            if self._keeper.is_told:
                self._keeper.is_told = False
                await self._protection.hold()
            try:
                with hurried():
                    await self._keeper.collect()
                is_asked = True
            except BrokerError as error:
                self._x.blame(error)
            return await self._protection.hold() and is_asked
        except BrokerError as error:
            self._x.blame(error)
            return False

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
                if not why or "access" in x.holds or self._x.is_urgent or loop.time() >= until:
                    break
                await asyncio.sleep(x.timings.first_wait_s)
            assert truth is not None
            fills, income = self._keeper.take()
            self._keep_snapshot(truth, bar_close_ms)
            self.tell()
            return Settled(
                fills=fills, income=income, truth=truth, is_whole=not why, why=why,
                orders=self._slicer.take(),
            )  # fmt: skip

    async def _compare(self) -> str:
        """Reconcile once; what is missing, in words."""
        x = self._x
        if "access" in x.holds:
            return "; ".join(x.holds.reasons)
        if not await self._sender.wait_resolved(x.timings.first_wait_s):
            return f"not known: {', '.join(o.client_id for o in x.table.unsure())}"
        try:
            why = await self.reconcile()
            await self.read_marks()
            await self._setup.check()
            return why
        except BrokerError as error:
            self._x.blame(error)
            return str(error)

    async def read_marks(self) -> None:
        """What exposure is measured by; while it is not believed nothing is opened, and all else goes on."""
        x = self._x
        try:
            x.marks = await x.broker.mark_prices()
        except Disbelieved as error:
            x.hold("marks", "recovering", str(error))
        else:
            x.lift("marks")

    async def reconcile(self) -> str:
        """Books, orders and stops against the account; a difference that stays is the exchange's word."""
        truth, differences = await self._keeper.reconcile()
        if differences and not self._x.table.unsure():
            self._keeper.adopt(truth, differences)
        await self._protection.check()
        is_protected = await self._protection.hold()
        if not is_protected:
            self._watch.see_to_stops()
        if not differences:
            self._x.lift("exchange")
        missing = "" if is_protected else "a stop could not be placed"
        return "; ".join([*differences, missing]) if missing else "; ".join(differences)

    def _keep_snapshot(self, truth: AccountTruth, bar_close_ms: int) -> None:
        try:
            self._x.journal.snapshot(truth, bar_close_ms, self._x.books.state_dict())
        except JournalBroken as error:
            self._x.break_journal(error)

    # --- settings, failures, state ---

    @property
    def timings(self) -> DeskTimings:
        """How long it waits for what."""
        return self._x.timings

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
            reserved=0.0 if truth is None else reserved_notional(truth, x.table, x.marks),
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

    async def freeze(self, reason: str, told: NoteLevel = "warning") -> bool:
        """Open nothing, cancel what rests; positions keep their stops. Whether all is cancelled.

        Args:
            reason: in words.
            told: how loudly: info for the ordinary end of a program, alarm for trouble.
        """
        x = self._x
        x.hold("operator", "halted", reason, told)
        x.is_urgent = True
        async with self._turn:
            x.is_urgent = False
            self._slicer.end()
            is_clear = await self._stopping.cancel_all(x.timings.settle_s)
            self.tell()
            return is_clear

    async def flatten(self, reason: str, told: NoteLevel = "warning") -> bool:
        """Cancel what rests and close every position; whether the account is flat."""
        self._x.hold("operator", "halted", reason, told)
        self._x.is_urgent = True
        async with self._turn:
            self._x.is_urgent = False
            self._slicer.end()
            try:
                return await self._stopping.close_all()
            finally:
                self.tell()

    async def flatten_unstarted(self, reason: str, told: NoteLevel = "warning") -> bool:
        """The same where the start failed or was given up; everything is let go of afterwards.

        Raises:
            StartRefused, AccountTaken: the account is none of ours.
            JournalBroken: the journal cannot be used.
        """
        return await self._end_unstarted(lambda: self._stopping.close_all(is_started=False), reason, told)

    async def freeze_unstarted(self, reason: str, told: NoteLevel = "warning") -> bool:
        """As :meth:`flatten_unstarted`; what the journal's earlier program left resting is cancelled."""
        return await self._end_unstarted(self._stopping.cancel_left, reason, told)

    async def _end_unstarted(
        self, end: Callable[[], Coroutine[Any, Any, bool]], reason: str, told: NoteLevel
    ) -> bool:
        x = self._x
        x.hold("operator", "halted", reason, told)
        async with self._life:
            bind(x.journal, x.broker.account_id)
            self._lock.acquire()
            try:
                x.epoch = x.journal.begin_epoch()
                x.table = OrderTable(x.journal.orders())
                x.contracts = {}
                self._keeper.begin(int(x.journal.meta("began_ms") or 0))
                return await end()
            finally:
                await self._let_go()

    async def left(self) -> list[str]:
        """What stays open if the program ends now, in words; nothing if nothing does."""
        if not self._is_running:
            # everything was let go of
            with suppress(BrokerError):
                await self._x.broker.open()
        return await self._stopping.left()

    async def resume(self) -> AccountTruth:
        """Lift what only somebody can lift, and recover; returns what the account is.

        Raises:
            BrokerError: the exchange would not say; the desk is held, and looks again.
        """
        x = self._x
        async with self._turn:
            self._x.is_urgent = False
            self._slicer.end()
            x.holds.clear_halts()
            x.note("info", "resume")
            try:
                await x.broker.server_time_ms()
                truth = await self._recovery.recover()
            except BrokerError as error:
                # as little is known as before
                x.blame(error)
                raise
            finally:
                self._watch.start()
                self.tell()
            await self._setup.check()
            self._x.lift("exchange")
            self.tell()
            return truth
