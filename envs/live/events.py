"""Fills and income of an account as rows for the kernel, and to which bar each belongs."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpgym.data.clock import MINUTE_MS
from perpgym.envs.account import QUANTITY, STOP_PRICE, TARGET_PRICE
from perpgym.envs.booking import (
    BY_FORCE,
    BY_ORDER,
    BY_OTHERS,
    BY_STOP,
    BY_TARGET,
    CLEARED,
    EVENT_AMOUNT,
    EVENT_ASSET,
    EVENT_COLUMNS,
    EVENT_IS_MAKER,
    EVENT_KIND,
    EVENT_PRICE,
    EVENT_QUANTITY,
    FUNDED,
    MOVED,
)
from perpgym.envs.live.broker import Fill, Income

Float64 = NDArray[np.float64]

# client ids of orders that the exchange sends itself
_FORCED = ("autoclose-", "adl_autoclose", "settlement_autoclose")
_INCOME_KINDS = {"funding": FUNDED, "clearance": CLEARED, "transfer": MOVED, "other": MOVED}


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """One fill or one income.

    Attributes:
        time_ms: when it happened.
        row: (EVENT_COLUMNS,) float64.
        client_id: of the order that filled; empty for income.
    """

    time_ms: int
    row: Float64
    client_id: str = ""

    def is_in(self, close_ms: int) -> bool:
        """Whether it belongs to a bar that closes then: settlements and liquidations do that fall on it."""
        is_order = self.row[EVENT_KIND] <= BY_OTHERS and self.row[EVENT_KIND] != BY_FORCE
        return self.time_ms < close_ms if is_order else self.time_ms <= close_ms

    @property
    def funded_asset(self) -> int:
        """Index of the contract that was settled; -1 where this is no settlement."""
        return int(self.row[EVENT_ASSET]) if self.row[EVENT_KIND] == FUNDED else -1


def fill_event(fill: Fill, asset: int, position: Float64, *, is_fee_ours: bool) -> Event:
    """A fill.

    Args:
        fill: as the exchange tells it.
        asset: index of its contract.
        position: (POSITION_COLUMNS,), before it.
        is_fee_ours: a fee in another currency is paid from another wallet.
    """
    row = np.zeros(EVENT_COLUMNS)
    row[EVENT_KIND], row[EVENT_ASSET] = _kind_of(fill, position), asset
    row[EVENT_QUANTITY], row[EVENT_PRICE] = fill.quantity, fill.price
    row[EVENT_AMOUNT], row[EVENT_IS_MAKER] = fill.fee if is_fee_ours else 0.0, float(fill.is_maker)
    return Event(time_ms=fill.time_ms, row=row, client_id=fill.client_id or "")


def income_event(income: Income, asset: int) -> Event | None:
    """An income; None of one that its trade has told. ``asset`` is -1 where it belongs to no contract."""
    if income.kind not in _INCOME_KINDS:
        return None
    row = np.zeros(EVENT_COLUMNS)
    row[EVENT_KIND], row[EVENT_AMOUNT], row[EVENT_ASSET] = _INCOME_KINDS[income.kind], income.amount, asset
    time_ms = income.time_ms
    if income.kind == "funding":
        # off by moments in the exchange's records, as the stamps of its rates are
        time_ms = (time_ms + MINUTE_MS // 2) // MINUTE_MS * MINUTE_MS
    return Event(time_ms=time_ms, row=row)


def _kind_of(fill: Fill, position: Float64) -> int:
    """Whose fill it was, as far as the moment tells."""
    if fill.client_id is not None and fill.client_id.startswith(_FORCED):
        return BY_FORCE
    stop, target = float(position[STOP_PRICE]), float(position[TARGET_PRICE])
    is_protected = not (math.isnan(stop) and math.isnan(target))
    if fill.quantity * position[QUANTITY] >= 0.0 or not is_protected:
        return BY_OTHERS
    side = math.copysign(1.0, position[QUANTITY])
    # comparisons with nan are false
    return BY_TARGET if side * (fill.price - target) >= 0.0 else BY_STOP


def rows_of(events: Sequence[Event], ordered: Set[str]) -> Float64:
    """(E, EVENT_COLUMNS) in the order of their times; client ids in ``ordered`` are the decision's."""
    rows = np.zeros((len(events), EVENT_COLUMNS))
    for number, event in enumerate(sorted(events, key=lambda event: event.time_ms)):
        rows[number] = event.row
        if event.client_id in ordered:
            rows[number, EVENT_KIND] = BY_ORDER
    return rows
