"""Sends orders once, cancels them until they are gone, and finds out what became of unanswered ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from perpgym.envs.live.broker import (
    AccessDenied,
    BrokerError,
    Order,
    OrderState,
    RefusalReason,
    Rejected,
    Throttled,
    Unknown,
)
from perpgym.envs.live.context import Context
from perpgym.envs.live.crash_points import reach
from perpgym.envs.live.journal import JournalBroken
from perpgym.envs.live.order_table import UNSURE_STATES

# how much longer the next wait is
_GROWTH = 1.6
# a trade a moment before its order's intent: clocks differ
_CLOCK_SLACK_MS = 5_000


class Sender:
    """The only room that sends.

    Attributes:
        refusals: why the exchange or we refused an order, by client id.
    """

    def __init__(self, context: Context) -> None:
        self._x = context
        self.refusals: dict[str, BrokerError] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}

    # --- sending ---

    def prepare(self, orders: Sequence[Order], decision_id: int | None = None) -> list[Order]:
        """Write intents, all or none, before anything is sent; ``send`` sees to it that they are written."""
        x = self._x
        reach("before_intent")
        try:
            with x.journal.together():
                for order in orders:
                    x.journal.intent(order, decision_id, x.broker.now_ms())
        except JournalBroken as error:
            x.break_journal(error)
        reach("after_intent")
        return [x.table.put(order) for order in orders]

    async def send(self, order: Order) -> Order:
        """Send a prepared order, once for ever; returns it as far as it is known."""
        x = self._x
        x.keep(replace(order, state=OrderState.SENT), "send")
        reach("after_mark")
        if "journal" in x.holds and not (order.reduce_only or order.closes_position):
            return self.drop(order, "the journal could not be written")
        x.counts["orders"] += 1
        after = await self._submit(order)
        self._lift_unknown()
        return after

    async def _submit(self, order: Order) -> Order:
        x = self._x
        try:
            report = await x.broker.submit(order)
        except Unknown as error:
            reach("after_send")
            return self._doubt(order.client_id, error)
        except asyncio.CancelledError:
            # whoever waited has gone; the order may be on its way
            self._doubt(order.client_id, Unknown("nobody waited for the answer"))
            raise
        except BrokerError as error:
            return self.refuse(order.client_id, error)
        reach("after_send")
        after = x.report(report, "ack")
        reach("after_ack")
        return after

    def refuse(self, client_id: str, error: BrokerError) -> Order:
        """An order that certainly does not exist."""
        x = self._x
        self.refusals[client_id] = error
        x.counts["rejects"] += 1
        order = x.table[client_id]
        if order.state not in (OrderState.PREPARED, OrderState.SENT):
            # the stream was faster than the refusal, and knows it
            return order
        x.note("warning", "refused", client_id=client_id, contract=order.contract, why=str(error))
        if isinstance(error, AccessDenied):
            x.hold("access", "halted", str(error))
        return x.keep(replace(order, state=OrderState.REJECTED), "refused")

    async def learn(self, client_id: str) -> RefusalReason | None:
        """Why an order was refused, None if it was not; what that says of the exchange's rules is heeded."""
        error = self.refusals.get(client_id)
        if error is None:
            return None
        reason = error.reason if isinstance(error, Rejected) else "other"
        if reason == "only_exits":
            self._x.hold("rules", "reduce_only", str(error))
        elif reason in ("filter", "bracket"):
            # they changed under us
            await self._x.learn_rules()
        return reason

    def drop(self, order: Order, why: str) -> Order:
        """A prepared order that will not be sent."""
        self._x.note("info", "not_sent", client_id=order.client_id, why=why)
        return self._x.keep(replace(order, state=OrderState.ABSENT), "not sent")

    def lose(self, order: Order) -> Order:
        """An order that was there and is in none of the exchange's lists any more; it may come back."""
        return self._x.keep(replace(order, state=OrderState.ABSENT), "lost")

    # --- finding out ---

    def _doubt(self, client_id: str, error: BrokerError) -> Order:
        x = self._x
        order = x.table[client_id]
        if order.state not in UNSURE_STATES:
            return order
        x.counts["unknowns"] += 1
        x.note("warning", "unknown", client_id=client_id, why=str(error))
        order = x.keep(replace(order, state=OrderState.UNKNOWN), "no answer")
        self.look_for(client_id)
        return order

    def look_for(self, client_id: str) -> None:
        """Ask for an unsure order in the background until it is found or does not exist."""
        self._x.hold("unknown", "recovering", "the outcome of an order is not known")
        if client_id not in self._resolving:
            task = asyncio.create_task(self._resolve(client_id))
            self._resolving[client_id] = task
            task.add_done_callback(lambda done: self._forget(client_id, done))

    def _forget(self, client_id: str, done: asyncio.Task[None]) -> None:
        self._resolving.pop(client_id, None)
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._x.hold("search", "halted", f"{client_id} could not be looked for: {error!r}")
        self._lift_unknown()

    def _lift_unknown(self) -> None:
        if not self._x.table.unsure():
            self._x.lift("unknown")

    async def wait_resolved(self, seconds: float) -> bool:
        """Whether no order is unsure any more, at the latest after so long."""
        tasks = list(self._resolving.values())
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        elif self._x.table.unsure():
            # one is on its way, and whoever sent it waits for the answer
            self._x.table.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._x.table.changed.wait(), seconds)
        return not self._x.table.unsure()

    async def _resolve(self, client_id: str) -> None:
        x, t = self._x, self._x.timings
        loop = asyncio.get_running_loop()
        wait_s, asks, since = t.first_wait_s, 0, loop.time()
        while x.table[client_id].state in UNSURE_STATES:
            order = x.table[client_id]
            try:
                found = await x.broker.find(client_id, order.contract, order.is_stop)
                is_proven = found is None and await self._is_without_trades(order)
            except BrokerError as error:
                if isinstance(error, AccessDenied):
                    x.hold("access", "halted", str(error))
                # not answered: the silence proves nothing
                asks, since = 0, loop.time()
            else:
                asks += 1
                if found is not None:
                    x.report(found, "found")
                elif is_proven and asks >= t.absent_asks and loop.time() - since >= t.absent_after_s:
                    x.note("info", "absent", client_id=client_id)
                    x.keep(replace(x.table[client_id], state=OrderState.ABSENT), "not found")
                elif not is_proven:
                    asks, since = 0, loop.time()
            if x.table[client_id].state in UNSURE_STATES:
                x.table.changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(x.table.changed.wait(), wait_s)
                wait_s = min(wait_s * _GROWTH, t.longest_wait_s)

    async def _is_without_trades(self, order: Order) -> bool:
        """No trade since the order was prepared is its own or of an order that cannot be named."""
        since = self._x.journal.prepared_ms(order.client_id) - _CLOCK_SLACK_MS
        fills = await self._x.broker.fills(order.contract, since)
        return all(fill.client_id not in (None, order.client_id) for fill in fills)

    # --- cancelling ---

    async def cancel(self, order: Order) -> Order:
        """Ask once to cancel an order; it stays reserved until the exchange says that it is gone."""
        x = self._x
        order = x.table[order.client_id]
        if order.state.is_final:
            return order
        if order.state is not OrderState.PENDING_CANCEL:
            x.keep(replace(order, state=OrderState.PENDING_CANCEL), "cancel")
        try:
            return x.report(await x.broker.cancel(order), "cancelled")
        except Rejected:
            # it filled, ended or never came: only asking tells
            return await self._look_at(order)
        except Unknown:
            return x.table[order.client_id]

    async def _look_at(self, order: Order) -> Order:
        found = await self._x.broker.find(order.client_id, order.contract, order.is_stop)
        if found is not None:
            return self._x.report(found, "found")
        self._x.keep(replace(self._x.table[order.client_id], state=OrderState.UNKNOWN), "cancel not found")
        self.look_for(order.client_id)
        return self._x.table[order.client_id]

    async def cancel_other(self, order: Order) -> None:
        """Cancel an order of the account, whoever sent it."""
        x = self._x
        if order.client_id in x.table:
            await self.cancel(order)
            return
        x.note("warning", "cancel_other", client_id=order.client_id, contract=order.contract)
        with suppress(Rejected):
            await x.broker.cancel(order)

    async def cancel_all(self, orders: Iterable[Order], seconds: float) -> bool:
        """Cancel until every order has ended; whether that was so in time."""
        x = self._x
        loop = asyncio.get_running_loop()
        until, wait_s = loop.time() + seconds, x.timings.first_wait_s
        names = [order.client_id for order in orders]
        while True:
            for name in names:
                try:
                    await self.cancel(x.table[name])
                except AccessDenied as error:
                    x.hold("access", "halted", str(error))
                    return False
                except (Throttled, BrokerError) as error:
                    x.note("warning", "cancel_failed", client_id=name, why=str(error))
            names = [name for name in names if not x.table[name].state.is_final]
            if not names or loop.time() >= until:
                return not names
            await asyncio.sleep(min(wait_s, max(until - loop.time(), 0.0)))
            wait_s = min(wait_s * _GROWTH, x.timings.longest_wait_s)

    async def stop(self) -> None:
        """Give up asking; a later start asks again."""
        for task in list(self._resolving.values()):
            task.cancel()
        await asyncio.gather(*self._resolving.values(), return_exceptions=True)
