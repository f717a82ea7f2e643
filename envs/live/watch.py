"""Listens to the user stream, and looks at the account again and again: the stream may lie or be silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from perpgym.envs.live.bookkeeping import FORCED_PREFIXES, Bookkeeper
from perpgym.envs.live.broker import (
    BrokerError,
    Fill,
    Happening,
    Order,
    SettingsChanged,
    StreamBroken,
    StreamOpened,
)
from perpgym.envs.live.context import LOG, PREFIX, Context
from perpgym.envs.live.protection import Protection
from perpgym.envs.live.recovery import Recovery
from perpgym.envs.live.setup import Setup

if TYPE_CHECKING:
    from perpgym.envs.live.desk import Desk

# a pause of the whole program that is so many times longer than the wait: the machine slept
_SLEPT = 3.0


class Watch:
    """The background of one desk."""

    def __init__(
        self,
        desk: Desk,
        context: Context,
        keeper: Bookkeeper,
        recovery: Recovery,
        protection: Protection,
        setup: Setup,
    ) -> None:
        self._desk, self._x, self._keeper, self._recovery = desk, context, keeper, recovery
        self._protection, self._setup = protection, setup
        self._tasks: list[asyncio.Task[None]] = []
        self._due = asyncio.Event()
        self._heard = asyncio.Event()
        self._stops_due = asyncio.Event()
        self._clock_at = 0.0

    def start(self) -> None:
        """Begin, or begin again what has ended."""
        self._tasks = [task for task in self._tasks if not task.done()]
        running = {task.get_name() for task in self._tasks}
        for step in (self._listen, self._look_again, self._keep_stops, self._feel_sleep):
            if step.__name__ not in running:
                self._tasks.append(asyncio.create_task(self._survive(step), name=step.__name__))

    async def _survive(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a step again that failed as nobody foresaw: nothing ends in silence."""
        wait_s = self._x.timings.first_wait_s
        while True:
            try:
                return await step()
            except Exception as error:
                LOG.exception("%s has failed", step.__name__)
                # texts of errors may hold what must not be told
                why = f"{step.__name__.strip('_')} failed ({type(error).__name__})"
                self._x.hold("watch", "recovering", why)
                self._x.counts["watch_failures"] += 1
            await asyncio.sleep(wait_s)
            wait_s = min(2.0 * wait_s, self._x.timings.longest_wait_s)
            self._due.set()

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def wait_heard(self, seconds: float) -> None:
        """Until the user stream is open."""
        try:
            await asyncio.wait_for(self._heard.wait(), seconds)
        except TimeoutError:
            self._x.hold("stream", "recovering", "the user stream does not open")

    # --- the stream ---

    async def _listen(self) -> None:
        """Ends with the broker; whatever else ends it leaves the desk deaf until the next look."""
        try:
            await self._hear_all()
        except Exception:
            LOG.exception("the user stream has ended")
            self._heard.clear()
            self._x.hold("stream", "recovering", "the user stream has ended")
            self._due.set()

    async def _hear_all(self) -> None:
        async for happening in self._x.broker.events():
            try:
                self._hear(happening)
                self._desk.tell()
            except Exception:
                LOG.exception("an event could not be booked")
                self._x.hold("stream", "recovering", "an event could not be booked")
                self._due.set()

    def _hear(self, happening: Happening) -> None:
        x = self._x
        x.counts["events"] += 1
        if isinstance(happening, Fill):
            if self._keeper.book_fill(happening, is_heard=True):
                self.see_to_stops()
        elif isinstance(happening, Order):
            self._hear_order(happening)
        elif isinstance(happening, StreamBroken):
            self._heard.clear()
            x.hold("stream", "recovering", happening.text)
        elif isinstance(happening, StreamOpened):
            self._heard.set()
            if "stream" in x.holds:
                self._due.set()
        elif isinstance(happening, SettingsChanged):
            x.hold("settings", "halted", f"somebody changed the settings: {happening.text}")

    def _hear_order(self, order: Order) -> None:
        x = self._x
        if order.client_id in x.table:
            x.report(order, "stream")
            if order.is_stop and order.state.is_final:
                self.see_to_stops()
        elif order.client_id.startswith(FORCED_PREFIXES):
            x.hold("forced", "halted", f"the exchange closes {order.contract} ({order.client_id})")
        elif order.client_id.startswith(PREFIX):
            x.hold("stranger", "halted", f"another perpgym trades on this account ({order.client_id})")
        else:
            x.counts["external_orders"] += 1

    def see_to_stops(self) -> None:
        """The exchange may not hold what it should: look at once, and again until it does."""
        self._stops_due.set()

    async def _keep_stops(self) -> None:
        t = self._x.timings
        while True:
            # no turn is waited for: a stop does not wait for what somebody else waits for
            await self._stops_due.wait()
            self._stops_due.clear()
            wait_s = t.first_wait_s
            while not await self._desk.protect() and "access" not in self._x.holds:
                refused_s = self._protection.wait_s
                await asyncio.sleep(wait_s if refused_s is None else refused_s)
                wait_s = min(2.0 * wait_s, t.reconcile_s)

    async def _feel_sleep(self) -> None:
        """The machine slept, the program stood still, or the wall's clock jumped: what is known is old."""
        wait_s = self._x.timings.reconcile_s
        while True:
            before = time.time()
            await asyncio.sleep(wait_s)
            if not 0.0 <= time.time() - before <= _SLEPT * wait_s:
                self._x.hold("sleep", "recovering", "the program stood still, or the clock jumped")
                self._due.set()

    # --- the account ---

    async def _look_again(self) -> None:
        x, loop = self._x, asyncio.get_running_loop()
        self._clock_at = loop.time()
        while "access" not in x.holds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), x.timings.reconcile_s)
            self._due.clear()
            try:
                async with self._desk.turn:
                    await self._look()
            except BrokerError as error:
                x.blame(error)
            self._desk.tell()

    async def _look(self) -> None:
        x, loop = self._x, asyncio.get_running_loop()
        if "sleep" in x.holds or loop.time() - self._clock_at >= x.timings.clock_s:
            await x.broker.server_time_ms()
            await x.learn_rules()
            self._clock_at = loop.time()
        self.start()
        await self._setup.check_if_due()
        await self._desk.reconcile()
        x.lift("sleep")
        if "marks" in x.holds:
            await self._desk.read_marks()
        await self._recovery.arm()
        x.lift("watch")
        if self._heard.is_set():
            x.lift("stream")
        if self._keeper.unheard_for(x.timings.stream_grace_s):
            x.hold("stream", "recovering", "the user stream kept a trade to itself")
            self._heard.clear()
            await x.broker.renew_stream()
