"""Quantities and prices on the exchange's grid, in exact decimals, and orders cut to its largest size."""

from __future__ import annotations

import math
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal

from perpgym.data.contract import Contract

# what counts as a whole step: fraction of one that arithmetic in floats may have lost
_NOISE = Decimal("1e-6")


def on_grid(value: float, step: float) -> Decimal:
    """``value`` in whole steps, towards zero; a millionth of a step short of the next one is that one."""
    grid = Decimal(repr(step))
    steps = Decimal(repr(value)) / grid
    nearest = steps.quantize(Decimal(1), ROUND_HALF_EVEN)
    whole = nearest if abs(steps - nearest) <= _NOISE else steps.quantize(Decimal(1), ROUND_DOWN)
    return whole * grid


def nearest_on_grid(value: float, step: float) -> Decimal:
    """``value`` at the nearest step."""
    grid = Decimal(repr(step))
    return (Decimal(repr(value)) / grid).quantize(Decimal(1), ROUND_HALF_EVEN) * grid


def digits(value: Decimal) -> str:
    """As the exchange reads it: no exponent, no needless zeros."""
    return format(value.normalize(), "f")


def order_sizes(contract: Contract, quantity: float) -> list[float]:
    """A signed quantity as orders that the exchange takes: on the grid, none above its largest.

    Returns:
        Signed, all of one sign, as equal as the grid allows; empty where nothing is left after rounding.
    """
    total = abs(on_grid(quantity, contract.lot_size))
    if total < Decimal(repr(contract.min_quantity)):
        return []
    most = on_grid(contract.max_quantity, contract.lot_size)
    count = math.ceil(total / most)
    grid = Decimal(repr(contract.lot_size))
    each = (total / count / grid).quantize(Decimal(1), ROUND_DOWN) * grid
    sizes = [each] * count
    rest = int((total - each * count) / grid)
    sizes[:rest] = [size + grid for size in sizes[:rest]]
    return [math.copysign(float(size), quantity) for size in sizes]
