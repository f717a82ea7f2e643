"""The one way out of a position: reduce-only, and once more when what was in its way has gone."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

from perpgym.envs.live.broker import Order, OrderState, Rejected
from perpgym.envs.live.context import Context
from perpgym.envs.live.rounding import order_sizes
from perpgym.envs.live.sender import Sender


class Exits:
    """Sends what makes positions smaller.

    Args:
        context, sender: of the desk.
    """

    def __init__(self, context: Context, sender: Sender) -> None:
        self._x, self._sender = context, sender

    async def close(self, contract: str, quantity: float) -> bool:
        """Close at the market; whether the exchange took all of it.

        Args:
            contract: of the position.
            quantity: base, signed as the order. More than is held is cut by the exchange.
        """
        sent: list[Order] = []
        for order in self._sender.prepare(self._orders(contract, quantity)):
            sent += (await self.send(order))[-1:]
        failed = (OrderState.REJECTED, OrderState.EXPIRED)
        return bool(sent) and all(order.state not in failed for order in sent)

    async def send(self, order: Order) -> list[Order]:
        """Send a prepared exit and, where it was refused, its successors; returns them all."""
        after = await self._sender.send(order)
        if await self._sender.learn(order.client_id) not in ("nothing_to_reduce", "filter"):
            return [after]
        return [after, *await self._again(after)]

    async def send_patiently(self, order: Order) -> list[Order]:
        """The same, and once more whenever the exchange is too busy, for at most ``settle_s``.

        A decision's exit does not wait for the next decision.
        """
        x, loop = self._x, asyncio.get_running_loop()
        until, wait_s = loop.time() + x.timings.settle_s, x.timings.first_wait_s
        sent = await self.send(order)
        while self._is_busy(sent[-1]) and not x.is_urgent and loop.time() + wait_s < until:
            await asyncio.sleep(wait_s)
            wait_s = min(2.0 * wait_s, x.timings.longest_wait_s)
            (again,) = self._sender.prepare([replace(order, client_id=x.next_id())])
            sent += await self.send(again)
        return sent

    def _is_busy(self, order: Order) -> bool:
        error = self._sender.refusals.get(order.client_id)
        return isinstance(error, Rejected) and error.reason == "busy"

    async def _again(self, order: Order) -> list[Order]:
        """Others may be in its way, the rules may have changed, or it is flat. Once more, with the rest."""
        truth = await self._x.broker.account()
        held = truth.quantity(order.contract)
        for other in truth.orders:
            # an exit of somebody else's is in the way as well as one of ours
            if other.reduce_only and other.contract == order.contract:
                await self._sender.cancel_other(other)
        if held * order.quantity >= 0.0:
            return []
        size = math.copysign(min(abs(held), abs(order.quantity)), order.quantity)
        again = self._sender.prepare(self._orders(order.contract, size))
        return [await self._sender.send(piece) for piece in again]

    def _orders(self, contract: str, quantity: float) -> list[Order]:
        x = self._x
        return [
            Order(client_id=x.next_id(), contract=contract, quantity=size, reduce_only=True)
            for size in order_sizes(x.contracts[contract], quantity)
        ]
