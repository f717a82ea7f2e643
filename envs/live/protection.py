"""Keeps the stops that the books want at the exchange: each there once, moved with it, gone when flat."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from perpgym.data.contract import Contract
from perpgym.envs.live.broker import BrokerError, Order, OrderState, StopWish
from perpgym.envs.live.context import Context
from perpgym.envs.live.exits import Exits
from perpgym.envs.live.rounding import nearest_on_grid
from perpgym.envs.live.sender import Sender


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

    async def hold(self) -> bool:
        """Make the exchange hold what the books want; whether it does.

        A stop whose outcome is not known counts as there: a second one could be refused, or be one too many.
        """
        async with self._turn:
            return await self._hold()

    async def _hold(self) -> bool:
        x = self._x
        wanted = list(x.books.wanted_stops())
        kept: list[StopWish] = []
        surplus: list[Order] = []
        for order in x.table.open(stops=True):
            met = [w for w in wanted if w not in kept and protects(order, w, x.contracts)]
            if met and order.state is not OrderState.PENDING_CANCEL:
                kept.append(met[0])
            elif order.state is not OrderState.PARTIAL:
                surplus.append(order)
        # the exchange takes one closing stop to a side: the old one goes first
        is_clear = await self._sender.cancel_all(surplus, x.timings.first_wait_s) if surplus else True
        missing = [w for w in wanted if w not in kept]
        placed = [await self._place(wish) for wish in missing]
        return is_clear and all(placed)

    async def _place(self, wish: StopWish) -> bool:
        x = self._x
        order = Order(
            client_id=x.next_id(), contract=wish.contract, quantity=wish.quantity, style=wish.kind,
            trigger_price=wish.trigger_price, watches=wish.watches, closes_position=True,
        )  # fmt: skip
        (order,) = self._sender.prepare([order])
        after = await self._sender.send(order)
        if after.state is not OrderState.REJECTED:
            return True
        reason = await self._sender.learn(order.client_id)
        if reason == "would_trigger":
            # the price has passed the stop: what it protects is closed at the market
            x.note("warning", "stop_passed", contract=wish.contract, trigger=wish.trigger_price)
            return await self._exits.close(wish.contract, wish.quantity)
        # its lists lag: the one that they do not show stands
        return reason == "stop_exists"

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
