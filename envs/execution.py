"""How a market order meets the book: rounding, the touch, the square-root impact.

Assumptions: the book is a constant half spread around the last price; impact follows the square-root law
(Tóth et al. 2011, "Anomalous price impact and the critical nature of liquidity", eq. 1), is paid by the
order that causes it and leaves no trace on later prices (``envs/impact.py`` has what does). When an
order meets the book, latency included, is said in ``envs/matching.py``; queues and other participants'
reactions are not modelled.
"""

from __future__ import annotations

import math

import numpy as np

from perpgym.envs.compile import kernel

# a quantity that is a whole number of lots up to rounding noise is not cut by one lot
_STEP_NOISE = 1e-6


@kernel
def whole_inverse(step):  # type: ignore[no-untyped-def]
    """1 / step if that is a whole number, as of 0.001, else 0: dividing by it keeps to whole decimals."""
    if step == 0.0:
        return 0.0
    inverse = 1.0 / step
    whole = np.rint(inverse)
    return whole if abs(inverse - whole) < 1e-9 * inverse else 0.0


@kernel
def round_toward_zero(quantity, step):  # type: ignore[no-untyped-def]
    """The largest multiple of ``step`` that is not larger in size than ``quantity``; step 0 leaves it."""
    return _to_step(quantity, step, whole_inverse(step))


@kernel
def _to_step(quantity, step, inverse):  # type: ignore[no-untyped-def]
    """The same with ``whole_inverse(step)`` at hand."""
    if step == 0.0:
        return quantity
    # numpy's floor stays a float; math's becomes an integer and back, 8 % of a trading step
    if inverse > 0.0:
        return math.copysign(np.floor(abs(quantity) * inverse + _STEP_NOISE) / inverse, quantity)
    return math.copysign(np.floor(abs(quantity) / step + _STEP_NOISE) * step, quantity)


@kernel
def round_to_tick(price, tick, side):  # type: ignore[no-untyped-def]
    """``price`` on the tick grid, moved against an order of ``side`` (+1 buys: up, -1 sells: down)."""
    return _to_tick(price, tick, whole_inverse(tick), side)


@kernel
def _to_tick(price, tick, inverse, side):  # type: ignore[no-untyped-def]
    """The same with ``whole_inverse(tick)`` at hand."""
    if tick == 0.0:
        return price
    ticks = price * inverse if inverse > 0.0 else price / tick
    ticks = np.ceil(ticks - _STEP_NOISE) if side > 0 else np.floor(ticks + _STEP_NOISE)
    return max(ticks / inverse if inverse > 0.0 else ticks * tick, tick)


@kernel
def to_lots(quantity, contract):  # type: ignore[no-untyped-def]
    """``round_toward_zero`` to a contract's lots."""
    return _to_step(quantity, contract.lot_size, contract.lot_inverse)


@kernel
def to_tick(price, contract, side):  # type: ignore[no-untyped-def]
    """``round_to_tick`` of a contract."""
    return _to_tick(price, contract.tick_size, contract.tick_inverse, side)


@kernel
def touch_price(last_price, half_spread, tick, side):  # type: ignore[no-untyped-def]
    """Best opposite quote: last * (1 ± half_spread), rounded outwards to the tick."""
    return round_to_tick(last_price * (1.0 + side * half_spread), tick, side)


@kernel
def quote(last_price, half_spread, contract, side):  # type: ignore[no-untyped-def]
    """``touch_price`` of a contract."""
    return to_tick(last_price * (1.0 + side * half_spread), contract, side)


@kernel
def square_root_impact(quantity, bar_volume, sigma_per_bar, coefficient):  # type: ignore[no-untyped-def]
    """Temporary impact as a fraction of the price: Y * sigma * sqrt(quantity / volume).

    Args:
        quantity: base, size of the order.
        bar_volume: base, traded in the bar; 0 gives 0 (no order fills there).
        sigma_per_bar: volatility of a bar's log return.
        coefficient: Y, dimensionless.
    """
    if bar_volume <= 0.0 or coefficient == 0.0:
        return 0.0
    return coefficient * sigma_per_bar * math.sqrt(abs(quantity) / bar_volume)
