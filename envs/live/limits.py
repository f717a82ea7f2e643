"""Limits that hold whatever the agent wishes, and a wish as orders within them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from perpgym.data.contract import Contract
from perpgym.envs.live.broker import AccountTruth
from perpgym.envs.live.order_table import OrderTable
from perpgym.envs.live.rounding import order_sizes
from perpgym.envs.live.wishes import Wish

MINUTE_MS = 60_000


@dataclass(frozen=True, kw_only=True)
class DeskLimits:
    """What no decision may exceed.

    Attributes:
        max_exposure: gross notional over equity, of positions and of everything that open and unsure orders
            could still add.
        max_order_notional: quote, of one order.
        max_orders_per_minute: that open or add.

    Raises:
        ValueError: a limit is not positive.
    """

    max_exposure: float = 3.0
    max_order_notional: float = 1e6
    max_orders_per_minute: int = 60

    def __post_init__(self) -> None:
        for name in ("max_exposure", "max_order_notional", "max_orders_per_minute"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, was {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One order to be: ``quantity`` base, signed."""

    wish: Wish
    quantity: float
    reduce_only: bool


def pieces(wish: Wish, held: float, contract: Contract, *, may_increase: bool) -> list[Piece]:
    """A wish as orders on the exchange's grid.

    What only makes the position smaller is sent as reduce-only, so that it can never turn it. A wish that may
    not increase is cut to that part.

    Args:
        held: base, signed, the position.
    """
    quantity, closes = wish.quantity, 0.0
    if held * quantity < 0.0:
        closes = max(quantity, -held) if quantity < 0.0 else min(quantity, -held)
    is_exit = closes == quantity
    if not is_exit and (wish.reduce_only or not may_increase):
        quantity, is_exit = closes, True
    if quantity == 0.0:
        return []
    sizes = order_sizes(contract, quantity)
    return [Piece(wish=wish, quantity=size, reduce_only=is_exit) for size in sizes]


class Watchman:
    """Says no to what exceeds the limits.

    Args:
        limits: see there.
    """

    def __init__(self, limits: DeskLimits) -> None:
        self.limits = limits
        self._sent_ms: deque[int] = deque()

    def count(self, now_ms: int) -> None:
        """An order that opens or adds is sent."""
        self._sent_ms.append(now_ms)

    def refusal(
        self,
        planned: list[Piece],
        truth: AccountTruth,
        table: OrderTable,
        marks: Mapping[str, float],
        contracts: Mapping[str, Contract],
        now_ms: int,
    ) -> str:
        """Why the pieces of a wish may not be sent, in words; empty where they may. Exits always may."""
        opening = [piece for piece in planned if not piece.reduce_only]
        if not opening:
            return ""
        while self._sent_ms and self._sent_ms[0] <= now_ms - MINUTE_MS:
            self._sent_ms.popleft()
        limits = self.limits
        if len(self._sent_ms) + len(opening) > limits.max_orders_per_minute:
            return f"more than {limits.max_orders_per_minute} orders in a minute"
        for piece in opening:
            name = piece.wish.contract
            notional = abs(piece.quantity) * (piece.wish.limit_price or marks[name])
            if notional > limits.max_order_notional:
                return f"an order of {notional:.2f}, above max_order_notional {limits.max_order_notional:g}"
            if notional < contracts[name].min_notional:
                return f"an order of {notional:.2f}, below the exchange's {contracts[name].min_notional:g}"
        exposure = reserved_notional(truth, table, marks, opening) / max(_equity(truth, marks), 1e-9)
        # what is no number admits nothing
        if not exposure <= limits.max_exposure:
            return f"exposure could reach {exposure:.3f}, above max_exposure {limits.max_exposure:g}"
        return ""


def _equity(truth: AccountTruth, marks: Mapping[str, float]) -> float:
    """quote: what the exchange says, but never more than wallet and positions can be worth at the marks."""
    profits = [
        abs(position.quantity) * abs(marks[name] - position.entry_price)
        for name, position in truth.positions.items()
        if name in marks
    ]
    return min(truth.equity, truth.wallet + sum(profits))


def reserved_notional(
    truth: AccountTruth, table: OrderTable, marks: Mapping[str, float], opening: list[Piece] | None = None
) -> float:
    """quote: the most that positions can become if every open, unsure and planned order fills as it hurts."""
    total = 0.0
    for name, mark in marks.items():
        bought, sold = table.reserved(name)
        planned = [piece.quantity for piece in opening or [] if piece.wish.contract == name]
        # somebody else's orders rest on the same account
        others = [o.left for o in truth.orders if o.contract == name and o.client_id not in table]
        both = [*planned, *others]
        held = truth.quantity(name)
        up = held + bought + sum(q for q in both if q > 0.0)
        down = held + sold + sum(q for q in both if q < 0.0)
        total += max(abs(up), abs(down)) * mark
    return total
