"""From wishes to orders at the exchange: planned within holds and limits, exits first, refusals met."""

from __future__ import annotations

from collections.abc import Sequence

from perpgym.envs.live.bookkeeping import Bookkeeper
from perpgym.envs.live.broker import BrokerError, Order
from perpgym.envs.live.context import Context
from perpgym.envs.live.exits import Exits
from perpgym.envs.live.limits import DeskLimits, Piece, Watchman, pieces
from perpgym.envs.live.sender import Sender
from perpgym.envs.live.wishes import Wish


class Trader:
    """Carries wishes out.

    Args:
        context, sender, exits, keeper: of the desk.
        limits: see there.
    """

    def __init__(
        self, context: Context, sender: Sender, exits: Exits, keeper: Bookkeeper, limits: DeskLimits
    ) -> None:
        self._x, self._sender, self._exits, self._keeper = context, sender, exits, keeper
        self._watchman = Watchman(limits)

    async def carry_out(
        self, wishes: Sequence[Wish], decision_id: int | None, before: Sequence[str] = ()
    ) -> list[Order]:
        """Exits first, then what opens, judged by the account after them; returns the orders that were sent.

        Of each part every order is on the disk before the first is sent.

        Args:
            wishes: as far as one order each can carry them out.
            decision_id: whose they are; None for what is tried again.
            before: client ids of what was sent for them already.
        """
        x = self._x
        # a position that is not the one decided upon is not made larger
        moved = {fill.contract for fill in self._keeper.fills if fill.client_id not in before}
        planned = [piece for wish in wishes for piece in self._cut(wish, wish.contract in moved)]
        exits = [piece for piece in planned if piece.reduce_only]
        sent = await self._send_all([self._order(piece) for piece in exits], decision_id)
        if sent and len(exits) < len(planned):
            try:
                x.truth = await x.broker.account()
            except BrokerError as error:
                x.blame(error)
        return sent + await self._send_all(self._open(wishes, planned), decision_id)

    def _cut(self, wish: Wish, is_moved: bool) -> list[Piece]:
        x = self._x
        assert x.truth is not None
        may_increase = not x.holds and not is_moved
        held, rules = x.truth.quantity(wish.contract), x.contracts[wish.contract]
        found = pieces(wish, held, rules, may_increase=may_increase)
        if not may_increase and not (found and wish.reduce_only):
            why = x.holds.reasons or ("its fills moved the position since the decision",)
            self._say_refused(wish, "; ".join(why))
        return found

    def _say_refused(self, wish: Wish, why: str) -> None:
        self._x.note("warning", "wish_refused", contract=wish.contract, quantity=wish.quantity, why=why)

    def _open(self, wishes: Sequence[Wish], planned: list[Piece]) -> list[Order]:
        """What makes positions larger, wish by wish, as far as the limits admit."""
        x = self._x
        assert x.truth is not None
        admitted: list[Piece] = []
        for wish in wishes:
            found = [piece for piece in planned if piece.wish is wish and not piece.reduce_only]
            why = self._watchman.refusal(
                admitted + found, x.truth, x.table, x.marks, x.contracts, x.broker.now_ms()
            )
            if why:
                self._say_refused(wish, why)
            else:
                admitted += found
        return [self._order(piece) for piece in admitted]

    async def _send_all(self, orders: list[Order], decision_id: int | None) -> list[Order]:
        sent: list[Order] = []
        for order in self._sender.prepare(orders, decision_id) if orders else ():
            try:
                sent += await self._send(order)
            except BrokerError as error:
                self._x.blame(error)
        return sent

    async def clear_the_book(self) -> None:
        """What rests was another decision's."""
        x = self._x
        if await self._sender.cancel_all(x.table.open(), x.timings.settle_s):
            x.lift("orders")
        else:
            x.hold("orders", "recovering", "resting orders could not be cancelled")

    def _order(self, piece: Piece) -> Order:
        wish = piece.wish
        return Order(
            client_id=self._x.next_id(), contract=wish.contract, quantity=piece.quantity,
            style=wish.style if wish.style in ("limit", "post_only") else "market",
            price=None if wish.style == "market" else wish.limit_price, reduce_only=piece.reduce_only,
        )  # fmt: skip

    async def _send(self, order: Order) -> list[Order]:
        """One prepared order, unless something has come between; a refused exit is followed by another."""
        x = self._x
        if order.reduce_only:
            return await self._exits.send_patiently(order)
        if x.holds:
            return [self._sender.drop(order, "; ".join(x.holds.reasons))]
        self._watchman.count(x.broker.now_ms())
        after = await self._sender.send(order)
        await self._sender.learn(order.client_id)
        return [after]
