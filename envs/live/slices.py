"""Wishes that take a while: a TWAP or VWAP in slices along the bar, an iceberg in clips one after another.

Each slice and each clip is an order of its own, written down before it is sent, cut and refused like any
other at its moment. Nothing is remembered across a restart: a program that dies leaves what it has sent.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from perpgym.data.contract import Contract
from perpgym.envs.live.broker import Order, OrderState, Rejected
from perpgym.envs.live.context import LOG, Context
from perpgym.envs.live.order_table import OrderTable
from perpgym.envs.live.rounding import on_grid
from perpgym.envs.live.sender import Sender
from perpgym.envs.live.wishes import SLOW_STYLES, Wish, WishStyle

# the smallest order is one of a price that may fall by so much until the last slice
_PRICE_SLACK = 1.1


def smallest_order(contract: Contract, price: float, *, is_exit: bool) -> float:
    """base: what the exchange takes; what only closes may be worth less than its smallest order."""
    worth = 0.0 if is_exit else _PRICE_SLACK * contract.min_notional / price
    lots = math.ceil(worth / contract.lot_size - 1e-9)
    return max(contract.min_quantity, lots * contract.lot_size)


@dataclass(kw_only=True)
class Job:
    """One wish that takes a while.

    Attributes:
        smallest: base, of one order.
        step_ms: between two slices, or before a clip that was refused is tried again.
        due_ms: when the next order is due, by the exchange's clock.
        planned: base, signed, of all that was sent for it.
        client_ids: of what was sent for it, in its order.
        is_over: nothing more is sent.
    """

    wish: Wish
    decision_id: int
    contract: Contract
    smallest: float
    step_ms: float
    due_ms: float
    planned: float = 0.0
    client_ids: list[str] = field(default_factory=list)
    is_over: bool = False

    def left(self, table: OrderTable) -> float:
        """base, signed: what was neither filled nor may still be."""
        return self.wish.quantity - sum(_taken(table[name]) for name in self.client_ids)

    def decision_of(self, quantity: float) -> int | None:
        """Whose order this is: what is tried again is no part of the decision's quantity once more."""
        self.planned += quantity
        return self.decision_id if abs(self.planned) <= abs(self.wish.quantity) * (1.0 + 1e-9) else None

    def next_wish(self, table: OrderTable, now_ms: int) -> Wish | None:
        """The next order; None where nothing is left that the exchange would take."""
        left = self.left(table)
        if self.wish.style == "iceberg":
            size = max(self.wish.clip, self.smallest)
        else:
            slices = max(1, round((self.wish.end_ms - now_ms) / self.step_ms))
            size = abs(left) / slices
        # no crumb is left over
        if abs(left) - size < self.smallest:
            size = abs(left)
        quantity = float(on_grid(math.copysign(size, left), self.contract.lot_size))
        if left * self.wish.quantity <= 0.0 or abs(quantity) < self.contract.min_quantity:
            return None
        style: WishStyle = "post_only" if self.wish.style == "iceberg" else "market"
        return replace(self.wish, quantity=quantity, style=style, end_ms=0, clip=0.0)


def _taken(order: Order) -> float:
    """base, signed: what of an order has filled or still may; one that is absent may come back."""
    is_over = order.state.is_final and order.state is not OrderState.ABSENT
    return order.filled if is_over else order.quantity


class Slicer:
    """Keeps the jobs of one decision going until they are done, or another one comes.

    Args:
        context, sender: of the desk.
        carry_on: sends a job's next order, in the desk's turn.

    Attributes:
        sent: orders since the last settlement, beside the first of each job.
    """

    def __init__(self, context: Context, sender: Sender, carry_on: Callable[[Job], Awaitable[None]]) -> None:
        self._x, self._sender, self._carry_on = context, sender, carry_on
        self.sent: list[Order] = []
        self._jobs: list[Job] = []
        self._tasks: list[asyncio.Task[None]] = []

    def plan(self, wishes: Sequence[Wish], decision_id: int) -> list[Wish]:
        """Wishes as far as they are to be carried out now; the rest follows after :meth:`begin`.

        Raises:
            ValueError: a contract has a wish that takes a while, and another one.
        """
        x, now_ms, out = self._x, self._x.broker.now_ms(), []
        for wish in wishes:
            if wish.style not in SLOW_STYLES:
                out.append(wish)
                continue
            if sum(other.contract == wish.contract for other in wishes) > 1:
                raise ValueError(f"{wish.contract}: a {wish.style} wish must be its contract's only one")
            job = self._job(wish, decision_id, now_ms)
            first = job.next_wish(x.table, now_ms)
            if first is not None:
                job.decision_of(first.quantity)
                self._jobs.append(job)
                out.append(first)
        return out

    def _job(self, wish: Wish, decision_id: int, now_ms: int) -> Job:
        x, contract = self._x, self._x.contracts[wish.contract]
        price = wish.limit_price or x.marks[wish.contract]
        smallest = smallest_order(contract, price, is_exit=wish.reduce_only)
        over_ms = max(wish.end_ms - now_ms, 1)
        # the bar has begun a moment ago
        slices = min(round(over_ms / x.timings.slice_ms), int(abs(wish.quantity) / smallest + 1e-9))
        step_ms = over_ms / max(slices, 1)
        if wish.style == "iceberg":
            step_ms = 1_000.0 * x.timings.longest_wait_s
        return Job(
            wish=wish, decision_id=decision_id, contract=contract, smallest=smallest, step_ms=step_ms,
            due_ms=now_ms,
        )  # fmt: skip

    def begin(self, orders: Sequence[Order]) -> None:
        """The first orders of the planned jobs were sent: go on with the others."""
        for job in self._jobs:
            self.note(job, [order for order in orders if order.contract == job.wish.contract])
            self._tasks.append(asyncio.create_task(self._work(job)))

    def note(self, job: Job, orders: Sequence[Order]) -> None:
        """What was sent for a job, none if nothing could be; a refusal ends it, unless it was the price's."""
        job.client_ids += [order.client_id for order in orders]
        job.is_over |= not orders or self._is_refused(orders[-1])
        # what was missed is part of the next one
        missed = (self._x.broker.now_ms() - job.due_ms) // job.step_ms
        job.due_ms += job.step_ms * (1 + max(missed, 0))

    def _is_refused(self, order: Order) -> bool:
        error = self._sender.refusals.get(order.client_id)
        return error is not None and not (isinstance(error, Rejected) and error.reason == "would_take")

    def end(self) -> None:
        """Nothing more is sent; call it in the desk's turn, when nothing is on its way."""
        for job in self._jobs:
            job.is_over = True
        for task in self._tasks:
            task.cancel()
        self._jobs, self._tasks = [], []

    def take(self) -> tuple[Order, ...]:
        """What was sent since the last call."""
        sent, self.sent = self.sent, []
        return tuple(sent)

    async def _work(self, job: Job) -> None:
        try:
            while await self._wait(job):
                await self._carry_on(job)
        except Exception:
            LOG.exception("a wish could not be carried on")
            self._x.note("alarm", "wish_dropped", contract=job.wish.contract, why="a mistake of ours")

    async def _wait(self, job: Job) -> bool:
        """Until the next order is due; False once there will be none."""
        x = self._x
        while not job.is_over and x.broker.now_ms() < job.wish.end_ms:
            if self._is_due(job):
                return True
            x.table.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(x.table.changed.wait(), x.timings.first_wait_s)
        return False

    def _is_due(self, job: Job) -> bool:
        last, is_time = self._x.table[job.client_ids[-1]], self._x.broker.now_ms() >= job.due_ms
        if job.wish.style != "iceberg":
            return is_time
        if last.state is OrderState.CANCELLED:
            # somebody does not want it
            job.is_over = True
        # a clip whose price the market had passed comes again
        return last.state is OrderState.FILLED or (last.state.is_final and is_time and not job.is_over)
