"""Keeps the stops that the books want at the exchange: each there once, moved with it, gone when flat."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from perpgym.data.contract import Contract
from perpgym.envs.live.broker import BrokerError, Order, OrderState, StopWish
from perpgym.envs.live.context import Context
from perpgym.envs.live.exits import Exits
from perpgym.envs.live.order_table import UNSURE_STATES
from perpgym.envs.live.rounding import nearest_on_grid
from perpgym.envs.live.sender import Sender
from perpgym.envs.live.wire import hurried

# a wish by what makes it another one: contract, kind, sign, trigger price
_Key = tuple[str, str, float, float]


def protects(order: Order, wish: StopWish, contracts: Mapping[str, Contract]) -> bool:
    """Whether a stop is the one that is wished for, to the tick."""
    tick = contracts[wish.contract].tick_size
    trigger = float(nearest_on_grid(wish.trigger_price, tick))
    return (
        (order.contract, order.style, order.watches) == (wish.contract, wish.kind, wish.watches)
        # zero carries the sign too
        and math.copysign(1.0, order.quantity) == math.copysign(1.0, wish.quantity)
        and abs((order.trigger_price or 0.0) - trigger) < 0.5 * tick
    )


class Protection:
    """The stops of one desk.

    Args:
        context, sender, exits: of the desk.
    """

    def __init__(self, context: Context, sender: Sender, exits: Exits) -> None:
        self._x, self._sender, self._exits = context, sender, exits
        # whoever finds one missing places it alone
        self._turn = asyncio.Lock()
        # when what was refused is tried again, and how long is waited after that
        self._again: dict[_Key, tuple[float, float]] = {}

    async def hold(self) -> bool:
        """Make the exchange hold what the books want; whether it does.

        Asks nothing before it sends: what is held is bare meanwhile. While a wanted stop is not known to be
        there, nothing is opened.
        """
        x, is_placed = self._x, False
        async with self._turn:
            try:
                with hurried():
                    is_clear, is_placed = await self._hold()
            finally:
                if is_placed:
                    x.lift("stops")
                else:
                    x.hold("stops", "recovering", "a stop that must be at the exchange is not known to be")
        return is_clear and is_placed

    async def _hold(self) -> tuple[bool, bool]:
        """(whether nothing else rests, whether all that is wanted does)."""
        x = self._x
        wanted = list(x.books.wanted_stops())
        self._again = {key: again for key, again in self._again.items() if key in map(_key, wanted)}
        kept: list[StopWish] = []
        surplus: list[Order] = []
        for order in x.table.open(stops=True):
            met = [w for w in wanted if protects(order, w, x.contracts)]
            if met and order.state in UNSURE_STATES:
                # nobody knows: a second one is refused where the first is there, and wanted where it is not
                continue
            met = [w for w in met if w not in kept]
            if met and order.state is not OrderState.PENDING_CANCEL:
                kept.append(met[0])
            elif order.state is not OrderState.PARTIAL:
                surplus.append(order)
        # the exchange takes one closing stop to a side: the old one goes first
        is_clear = await self._sender.cancel_all(surplus, x.timings.first_wait_s) if surplus else True
        placed = [await self._place_if_due(wish) for wish in wanted if wish not in kept]
        return is_clear, all(placed)

    @property
    def wait_s(self) -> float | None:
        """How long until a stop that was refused is tried again; None where none was."""
        now = asyncio.get_running_loop().time()
        return max(min(at for at, _wait in self._again.values()) - now, 0.0) if self._again else None

    async def _place_if_due(self, wish: StopWish) -> bool:
        """Place it, unless it was refused a moment ago: the same order is not refused at every look."""
        t, now = self._x.timings, asyncio.get_running_loop().time()
        at, wait_s = self._again.get(_key(wish), (now, t.first_wait_s))
        if now < at:
            return False
        self._again[_key(wish)] = now + wait_s, min(2.0 * wait_s, t.reconcile_s)
        if await self._place(wish):
            del self._again[_key(wish)]
            return True
        return False

    async def _place(self, wish: StopWish, *, is_first: bool = True) -> bool:
        x = self._x
        order = Order(
            client_id=x.next_id(), contract=wish.contract, quantity=wish.quantity, style=wish.kind,
            trigger_price=wish.trigger_price, watches=wish.watches, closes_position=True,
        )  # fmt: skip
        (order,) = self._sender.prepare([order])
        after = await self._sender.send(order)
        if after.state is not OrderState.REJECTED:
            return after.state not in UNSURE_STATES
        reason = await self._sender.learn(order.client_id)
        if reason == "would_trigger":
            # the price has passed the stop: what it protects is closed at the market
            x.note("warning", "stop_passed", contract=wish.contract, trigger=wish.trigger_price)
            return await self._exits.close(wish.contract, wish.quantity)
        return reason == "stop_exists" and await self._meet_another(wish, is_first=is_first)

    async def _meet_another(self, wish: StopWish, *, is_first: bool) -> bool:
        """A closing stop of that side is there: whether it is the one that is wished for.

        Somebody else's protects at another price, and keeps ours away: it goes. One that the exchange's
        lists do not show counts for nothing until they do.
        """
        x = self._x
        x.truth = truth = await x.broker.account()
        there = [order for order in truth.stops if _stands_in_the_way(order, wish)]
        for order in there:
            if order.client_id in x.table:
                x.report(order, "account")
        leaving = [o.client_id for o in x.table.open(stops=True) if o.state is OrderState.PENDING_CANCEL]
        if any(protects(o, wish, x.contracts) and o.client_id not in leaving for o in there):
            return True
        strangers = [order for order in there if order.client_id not in x.table]
        for order in strangers:
            x.note(
                "alarm", "foreign_stop", client_id=order.client_id, contract=order.contract,
                trigger=order.trigger_price, wanted=wish.trigger_price,
            )  # fmt: skip
            await self._sender.cancel_other(order)
        return bool(strangers) and is_first and await self._place(wish, is_first=False)

    async def check(self) -> None:
        """A stop that the table believes in and the account does not show is lost; ``hold`` replaces it."""
        x = self._x
        shown = {order.client_id for order in x.truth.stops} if x.truth else set()
        for order in x.table.open(stops=True):
            is_settled = order.state in (OrderState.OPEN, OrderState.PENDING_CANCEL)
            if order.client_id in shown or not is_settled:
                continue
            try:
                found = await x.broker.find(order.client_id, order.contract, True)
            except BrokerError:
                continue
            if found is not None:
                x.report(found, "found")
                continue
            x.note("alarm", "stop_lost", client_id=order.client_id, contract=order.contract)
            self._sender.lose(order)


def _key(wish: StopWish) -> _Key:
    return wish.contract, wish.kind, math.copysign(1.0, wish.quantity), wish.trigger_price


def _stands_in_the_way(order: Order, wish: StopWish) -> bool:
    return (
        order.closes_position
        and (order.contract, order.style) == (wish.contract, wish.kind)
        and math.copysign(1.0, order.quantity) == math.copysign(1.0, wish.quantity)
    )
