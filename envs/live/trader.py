"""From wishes to orders at the exchange: planned within holds and limits, exits first, refusals met."""

from __future__ import annotations

from collections.abc import Sequence

from perpgym.envs.live.bookkeeping import Bookkeeper
from perpgym.envs.live.broker import BrokerError, Order, Position, Rejected
from perpgym.envs.live.context import Context
from perpgym.envs.live.limits import DeskLimits, Piece, Watchman, pieces
from perpgym.envs.live.sender import Sender
from perpgym.envs.live.wishes import Wish


class Trader:
    """Carries wishes out.

    Args:
        context, sender, keeper: of the desk.
        limits: see there.
    """

    def __init__(self, context: Context, sender: Sender, keeper: Bookkeeper, limits: DeskLimits) -> None:
        self._x, self._sender, self._keeper = context, sender, keeper
        self._watchman = Watchman(limits)

    async def carry_out(self, wishes: Sequence[Wish], decision_id: int) -> list[Order]:
        """Exits first, then what opens, judged by the account after them; returns the orders that were sent.

        Of each part every order is on the disk before the first is sent.
        """
        x = self._x
        # a position that is not the one decided upon is not made larger
        moved = {fill.contract for fill in self._keeper.fills}
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

    async def close(self, position: Position) -> list[Order]:
        """Close a position at the market."""
        wish = Wish(contract=position.contract, quantity=-position.quantity, reduce_only=True)
        rules = self._x.contracts[position.contract]
        orders = [self._order(p) for p in pieces(wish, position.quantity, rules, may_increase=False)]
        return await self._send_all(orders, None)

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
        reason = error.reason if isinstance(error, Rejected) else "other"
        if reason == "only_exits":
            x.hold("rules", "reduce_only", str(error))
        elif reason in ("filter", "bracket"):
            # they changed under us
            x.contracts = await x.broker.contracts()
        if order.reduce_only and reason in ("nothing_to_reduce", "filter"):
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
