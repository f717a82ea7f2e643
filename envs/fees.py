"""What the exchange takes of a fill: maker and taker rates by traded volume, discount and rebate.

The rule is Binance's for VIP levels by volume: each midnight (UTC) an account's tier is set by what it traded
in the 30 complete days before, so a day's own fills move the tier of the days after it. The exchange's other
conditions (a balance of its own coin, volume on other markets) and the hours that its update takes are left
out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.checks import check_number
from perpgym.envs.compile import kernel

# columns of a tier table
_FLOOR, _MAKER, _TAKER = range(3)

WINDOW_DAYS = 30
# an account's traded notional: a ring of 30 complete days and today, by day number modulo their count; the
# sum over the complete ones; the day number (UTC, since 1970); what a maker and a taker pay today
_RING = WINDOW_DAYS + 1
TRADED_30D, TRADED_DAY, MAKER_RATE, TAKER_RATE = range(_RING, _RING + 4)
TRADED_COLUMNS = _RING + 4


@dataclass(frozen=True, kw_only=True)
class FeeTier:
    """The rates of an account that traded enough.

    Attributes:
        floor: settle currency, notional traded in 30 days from which the tier applies (inclusive).
        maker_rate, taker_rate: fraction of a fill's notional; negative is a rebate.
    """

    floor: float
    maker_rate: float
    taker_rate: float

    def __post_init__(self) -> None:
        for name in ("floor", "maker_rate", "taker_rate"):
            check_number(name, getattr(self, name))
        if not (self.floor >= 0.0 and math.isfinite(self.floor)):
            raise ValueError(
                f"floor must be a finite amount >= 0 (settle currency in 30 days), was {self.floor}"
            )
        for name in ("maker_rate", "taker_rate"):
            value = getattr(self, name)
            if not -0.01 <= value <= 0.01:
                raise ValueError(
                    f"{name} must lie between -0.01 and 0.01 (a fraction of notional), was {value}; "
                    f"if you meant {value:g} bp, write {value / 1e4:g}"
                )


@dataclass(frozen=True, kw_only=True)
class FeeSchedule:
    """An exchange's fees for one account.

    Attributes:
        tiers: by ascending floor, the first 0.
        discount_factor: multiplies what is charged, such as 0.9 for fees paid in the exchange's own coin; a
            rebate is paid in full.
        traded_before: settle currency, traded in the 30 days before an episode, the same each day.
    """

    tiers: tuple[FeeTier, ...]
    discount_factor: float = 1.0
    traded_before: float = 0.0

    def __post_init__(self) -> None:
        for name in ("discount_factor", "traded_before"):
            check_number(name, getattr(self, name))
        if not self.tiers or self.tiers[0].floor != 0.0:
            raise ValueError("tiers must start at a traded notional of 0; add a FeeTier with floor=0.0")
        if not 0.0 <= self.discount_factor <= 1.0:
            raise ValueError(
                "discount_factor must lie between 0 and 1 (what remains to be paid), was "
                f"{self.discount_factor}; for 10 % off write 0.9"
            )
        if not (self.traded_before >= 0.0 and math.isfinite(self.traded_before)):
            raise ValueError(
                f"traded_before must be a finite amount >= 0 (settle currency), was {self.traded_before}"
            )
        for below, above in zip(self.tiers, self.tiers[1:], strict=False):
            if not below.floor < above.floor:
                raise ValueError(
                    f"tiers must have ascending floors, but {above.floor:g} follows {below.floor:g}"
                )
        for tier in self.tiers:
            if min(tier.maker_rate, 0.0) + tier.taker_rate * self.discount_factor < 0.0:
                raise ValueError(
                    f"tier from {tier.floor:g}: a maker rebate of {-tier.maker_rate:g} and a taker fee of "
                    f"{tier.taker_rate * self.discount_factor:g} pay for trading in circles; the fee after "
                    "its discount must be at least the rebate"
                )

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> FeeSchedule:
        """From plain types, as a file gives them; a tier is (floor, maker rate, taker rate) or a mapping.

        Raises:
            ValueError: an unknown key, or an impossible schedule.
        """
        values = dict(raw)
        tiers = values.pop("tiers", ())
        try:
            made = tuple(
                FeeTier(**tier)
                if isinstance(tier, Mapping)
                else FeeTier(**dict(zip(("floor", "maker_rate", "taker_rate"), tier, strict=True)))
                for tier in tiers
            )
            return cls(tiers=made, **values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"fees: {error}") from error

    def tier_table(self) -> NDArray[np.float64]:
        """(N, 3) float64: floor, maker rate, taker rate."""
        return np.array([[t.floor, t.maker_rate, t.taker_rate] for t in self.tiers], np.float64)


@kernel
def fee_rate(traded_30d, is_maker, tier_table, discount_factor):  # type: ignore[no-untyped-def]
    """Fraction of a fill's notional that the exchange takes; negative is a rebate.

    Args:
        traded_30d: settle currency, as of the last midnight; ``traded[TRADED_30D]``.
        is_maker: whether the order rested.
        tier_table: (N, 3) float64, ``FeeSchedule.tier_table()``.
        discount_factor: see ``FeeSchedule``.
    """
    row = tier_table.shape[0] - 1
    while row > 0 and traded_30d < tier_table[row, _FLOOR]:
        row -= 1
    rate = tier_table[row, _MAKER] if is_maker else tier_table[row, _TAKER]
    return rate * discount_factor if rate > 0.0 else rate


@kernel
def taker_rate(traded, contract):  # type: ignore[no-untyped-def]
    """Fraction of a taker fill's notional; the contract's where the account has no tiers."""
    return traded[TAKER_RATE] if traded.shape[0] > 0 else contract.taker_rate


@kernel
def maker_rate(traded, contract):  # type: ignore[no-untyped-def]
    """Fraction of a maker fill's notional; the contract's where the account has no tiers."""
    return traded[MAKER_RATE] if traded.shape[0] > 0 else contract.maker_rate


@kernel
def _set_rates(traded, tier_table, discount_factor):  # type: ignore[no-untyped-def]
    traded[MAKER_RATE] = fee_rate(traded[TRADED_30D], True, tier_table, discount_factor)
    traded[TAKER_RATE] = fee_rate(traded[TRADED_30D], False, tier_table, discount_factor)


@kernel
def open_traded(traded, day, traded_before, tier_table, discount_factor):  # type: ignore[no-untyped-def]
    """Start an account on ``day`` with ``traded_before`` spread over the 30 days before it, in place."""
    traded[:] = 0.0
    for back in range(1, WINDOW_DAYS + 1):
        traded[(day - back) % _RING] = traded_before / WINDOW_DAYS
    traded[TRADED_30D] = traded_before
    traded[TRADED_DAY] = day
    _set_rates(traded, tier_table, discount_factor)


@kernel
def roll_day(traded, day, tier_table, discount_factor):  # type: ignore[no-untyped-def]
    """Let the days pass up to ``day``, in place, and set its rates; within one day it does nothing.

    Args:
        traded: (TRADED_COLUMNS,) float64.
        day: int, UTC day since 1970, never before the last one; a restart calls :func:`open_traded`.
        tier_table, discount_factor: see :func:`fee_rate`.
    """
    last = int(traded[TRADED_DAY])
    if day <= last:
        return
    for passed in range(last + 1, min(day, last + _RING) + 1):
        traded[passed % _RING] = 0.0
    total = 0.0
    for back in range(1, WINDOW_DAYS + 1):
        total += traded[(day - back) % _RING]
    traded[TRADED_30D] = total
    traded[TRADED_DAY] = day
    _set_rates(traded, tier_table, discount_factor)


@kernel
def add_traded(traded, notional):  # type: ignore[no-untyped-def]
    """Count a fill towards today's volume, in place; notional in settle currency, >= 0."""
    traded[int(traded[TRADED_DAY]) % _RING] += notional
