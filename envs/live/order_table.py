"""Orders of ours: how reports, late, doubled or out of order, become one state that never goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from perpgym.envs.live.broker import Order, OrderState

_RANK = {
    OrderState.PREPARED: 0,
    OrderState.SENT: 1,
    OrderState.UNKNOWN: 1,
    OrderState.OPEN: 2,
    OrderState.PARTIAL: 3,
    OrderState.PENDING_CANCEL: 4,
}
_FINAL_RANK = 5
# what we concluded ourselves; the exchange's word overrules it
_CONCLUDED = frozenset({OrderState.ABSENT, OrderState.REJECTED})
# nobody knows whether the exchange has it
UNSURE_STATES = frozenset({OrderState.SENT, OrderState.UNKNOWN})


def merged(known: Order, report: Order) -> Order:
    """``known`` with what ``report`` adds: fills never fall, states never go back.

    A report of an order that was concluded to be absent or refused is believed: the exchange knows best.
    """
    is_newer = abs(report.filled) >= abs(known.filled)
    return replace(
        known,
        exchange_id=known.exchange_id or report.exchange_id,
        filled=report.filled if is_newer else known.filled,
        average=report.average if is_newer and report.average is not None else known.average,
        state=_later(known.state, report.state),
        updated_ms=max(known.updated_ms, report.updated_ms),
    )


def _later(known: OrderState, report: OrderState) -> OrderState:
    if report in UNSURE_STATES or report is OrderState.PREPARED:
        return known
    if known in _CONCLUDED and report not in _CONCLUDED:
        return report
    if _RANK.get(known, _FINAL_RANK) >= _RANK.get(report, _FINAL_RANK):
        return known
    return report


class OrderTable:
    """Orders by client id.

    Attributes:
        changed: set with every change; who waits clears it.
    """

    def __init__(self, orders: Iterable[Order] = ()) -> None:
        self._orders = {order.client_id: order for order in orders}
        # those that have not ended: few, of many
        self._open = {name: order for name, order in self._orders.items() if not order.state.is_final}
        self.changed = asyncio.Event()

    def __getitem__(self, client_id: str) -> Order:
        return self._orders[client_id]

    def __contains__(self, client_id: object) -> bool:
        return client_id in self._orders

    def put(self, order: Order) -> Order:
        """Enter an order, or its new state."""
        self._orders[order.client_id] = self._open[order.client_id] = order
        if order.state.is_final:
            del self._open[order.client_id]
        self.changed.set()
        return order

    def merge(self, report: Order) -> tuple[Order, bool]:
        """(the order after a report of it, whether that changed anything)."""
        known = self._orders[report.client_id]
        after = merged(known, report)
        is_new = (after.state, after.filled, after.exchange_id) != (
            known.state,
            known.filled,
            known.exchange_id,
        )
        if is_new:
            self.put(after)
        return after, is_new

    def open(self, *, stops: bool = False) -> list[Order]:
        """Plain orders, or stops, that have not ended."""
        return [o for o in self._open.values() if o.is_stop == stops]

    def unsure(self) -> list[Order]:
        """Orders of which nobody knows whether they exist."""
        return [o for o in self._open.values() if o.state in UNSURE_STATES]

    def reserved(self, contract: str) -> tuple[float, float]:
        """(base bought, base sold < 0) that open and unsure orders may still add to the position."""
        left = [o.left for o in self.open() if o.contract == contract and not o.reduce_only]
        return sum(q for q in left if q > 0.0), sum(q for q in left if q < 0.0)
