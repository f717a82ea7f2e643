"""Ends a desk's trading: cancels what rests, closes what is held if asked to, and says what stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from perpgym.envs.live.bookkeeping import Bookkeeper
from perpgym.envs.live.broker import AccountTruth, BrokerError
from perpgym.envs.live.context import LOG, Context
from perpgym.envs.live.exits import Exits
from perpgym.envs.live.protection import Protection
from perpgym.envs.live.sender import Sender
from perpgym.envs.live.wire import hurried


class Stopping:
    """The last acts of one desk; each has the desk's turn.

    Args:
        context, sender, keeper, exits, protection: of the desk.
    """

    def __init__(
        self, context: Context, sender: Sender, keeper: Bookkeeper, exits: Exits, protection: Protection
    ) -> None:
        self._x, self._sender, self._keeper = context, sender, keeper
        self._exits, self._protection = exits, protection

    async def cancel_all(self, seconds: float) -> bool:
        """Cancel what rests; whether it is gone in time."""
        x = self._x
        is_clear = await self._sender.cancel_all(x.table.open(), seconds)
        if not is_clear:
            x.note("alarm", "freeze_incomplete", orders=[o.client_id for o in x.table.open()])
        return is_clear

    async def close_all(self, *, is_started: bool = True) -> bool:
        """Cancel and close, round after round, for at most ``settle_s``; whether the account is flat.

        Args:
            is_started: the books follow the account; else they are not told anything.
        """
        x, loop = self._x, asyncio.get_running_loop()
        until, wait_s = loop.time() + x.timings.settle_s, x.timings.first_wait_s
        with hurried():
            while True:
                is_flat, why = await self._try_round(is_started)
                if not why:
                    return True
                if loop.time() >= until:
                    break
                # less and less often: an exchange that is asked too much takes no exit
                await asyncio.sleep(min(wait_s, max(until - loop.time(), 0.0)))
                wait_s = min(2.0 * wait_s, x.timings.longest_wait_s)
        x.note("warning" if is_flat else "alarm", "flatten_incomplete", why=why)
        return is_flat

    async def _try_round(self, is_started: bool) -> tuple[bool, str]:
        """(whether the account is known to be flat, what is still to be done)."""
        x, is_flat = self._x, False
        try:
            is_flat, why = await self._round()
            return is_flat, why or await self._tidy(is_started)
        except BrokerError as error:
            x.note("warning", "flatten_waits", why=str(error))
            return is_flat, str(error)
        except Exception as error:
            # whatever is wrong, it is no reason to stay in the market
            LOG.exception("a round of closing has failed")
            x.note("alarm", "flatten_waits", why=type(error).__name__)
            return is_flat, type(error).__name__

    async def _round(self) -> tuple[bool, str]:
        x = self._x
        await self._connect()
        await self._sender.cancel_all(x.table.open(), x.timings.first_wait_s)
        await self._sender.wait_resolved(x.timings.first_wait_s)
        held, why = await self._held()
        # an exit that may have been executed is not sent again
        unsure = {order.contract for order in x.table.unsure() if order.reduce_only}
        for name, quantity in held.items():
            if name in unsure:
                continue
            try:
                await self._exits.close(name, -quantity)
            except BrokerError as error:
                x.blame(error)
        return not (held or why), why or ("positions remain" if held else "")

    async def _connect(self) -> None:
        """Where the start did not come as far."""
        if not self._x.contracts:
            await self._x.broker.open()
            self._x.contracts = await self._x.broker.contracts()

    async def cancel_left(self) -> bool:
        """Cancel what an earlier program left resting, before anything was started; whether it is gone."""
        try:
            with hurried():
                await self._connect()
        except BrokerError as error:
            self._x.note("alarm", "freeze_incomplete", why=str(error))
            return False
        return await self.cancel_all(self._x.timings.first_wait_s)

    async def _held(self) -> tuple[Mapping[str, float], str]:
        """(base, signed, by contract; why that is only what was known last)."""
        x, why = self._x, ""
        try:
            x.truth = await x.broker.account()
            held = {name: position.quantity for name, position in x.truth.positions.items()}
        except BrokerError as error:
            x.note("warning", "flatten_waits", why=str(error))
            # an exit of what is not held any more is refused, and that is all
            held, why = self._keeper.believed(), f"the account cannot be read: {error}"
        return {name: quantity for name, quantity in held.items() if name in x.contracts and quantity}, why

    async def _tidy(self, is_started: bool) -> str:
        """Once flat: nothing rests, the books know it, and no stop is left; what is not so."""
        x = self._x
        if is_started:
            await self._keeper.reconcile()
            is_clear = await self._protection.hold()
        else:
            is_clear = await self._sender.cancel_all(x.table.open(stops=True), x.timings.first_wait_s)
            await self._keeper.collect(is_counted=False)
        return "" if is_clear and not x.table.open() else "orders rest"

    async def left(self) -> list[str]:
        """What stays open, in words, a line each; as it was known last where the account cannot be read."""
        x, lines = self._x, []
        try:
            with hurried():
                x.truth = await x.broker.account()
        except Exception as error:
            why = str(error) if isinstance(error, BrokerError) else type(error).__name__
            lines.append(f"the account cannot be read ({why}): what follows is what was known last")
            held = self._keeper.believed()
        else:
            held = {name: position.quantity for name, position in x.truth.positions.items()}
        stops = "it is not known whether a stop rests" if lines else ""
        lines += [
            f"{name}: {quantity:g} is held, {stops or _stop_of(name, quantity, x.truth)}"
            for name, quantity in held.items()
            if quantity
        ]
        if x.truth is not None and x.truth.orders and not stops:
            lines.append(f"{len(x.truth.orders)} orders rest")
        return lines


def _stop_of(name: str, quantity: float, truth: AccountTruth | None) -> str:
    """Which stop at the exchange protects a position, in words."""
    found = [
        f"{order.trigger_price:g} ({order.watches} price)"
        for order in (truth.stops if truth else ())
        if order.contract == name and order.style == "stop" and order.quantity * quantity <= 0.0
    ]
    return f"its stop rests at {' and '.join(found)}" if found else "and NO stop rests at the exchange"
