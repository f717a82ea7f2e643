"""From an action to an order that the exchange would accept: overlay, sizing, rounding, caps and margin."""

from __future__ import annotations

import math

from perpgym.envs.account import (
    DAY_EQUITY,
    DAY_LOW_EQUITY,
    ENTRY_PRICE,
    EQUITY,
    ISOLATED_WALLET,
    PEAK_EQUITY,
    QUANTITY,
    WALLET,
)
from perpgym.envs.compile import kernel
from perpgym.envs.execution import round_to_tick, round_toward_zero, square_root_impact, touch_price
from perpgym.envs.risk.overlay import admitted_exposure, apply_overlay
from perpgym.envs.spaces import LEDGER

_OVERLAY = LEDGER["overlay"]


@kernel
def market_fill_price(reference, quantity, bar, rules):  # type: ignore[no-untyped-def]
    """Touch and fill price of a taker order against ``reference``, the last price at that moment."""
    side = 1.0 if quantity > 0.0 else -1.0
    touch = touch_price(reference, rules.half_spread, rules.tick_size, side)
    share = square_root_impact(quantity, bar.volume, bar.sigma_per_bar, rules.impact_coefficient)
    return touch, round_to_tick(touch + side * reference * min(share, 0.5), rules.tick_size, side)


@kernel
def affordable_quantity(wallet, position, quantity, price, mark_price, rules):  # type: ignore[no-untyped-def]
    """Cut the opening part of an order to what the account can pay when the order reaches the book.

    Each unit opened needs its initial margin, its fee, and its loss from the fill to the mark. Cross pays
    from the equity at this mark less the initial margin of what is kept; isolated from the wallet less the
    isolated margin of what is kept. No position may exceed the notional that its brackets admit at this
    leverage. The closing part always goes through.

    Args:
        quantity: base, signed.
        price: quote, the fill price of the whole order.
        mark_price: quote, at the same instant.
    """
    held, entry = position[QUANTITY], position[ENTRY_PRICE]
    side = 1.0 if quantity > 0.0 else -1.0
    closed = min(abs(held), abs(quantity)) if held * quantity < 0.0 else 0.0
    kept = abs(held) - closed
    fee = price * max(rules.taker_rate, 0.0)
    if rules.is_isolated > 0.0:
        kept_margin = 0.0 if kept == 0.0 else position[ISOLATED_WALLET] * kept / abs(held)
        free = wallet[WALLET] - kept_margin - side * closed * (price - entry)
    else:
        equity = wallet[WALLET] + held * (mark_price - entry)
        free = equity - kept * price / rules.leverage - side * closed * (price - mark_price)
    unit = price / rules.leverage + fee + max(side * (price - mark_price), 0.0)
    most = max(free - closed * fee, 0.0) / unit
    most = max(min(most, rules.max_position_notional / price - kept), 0.0)
    if abs(quantity) - closed <= most:
        return quantity
    return round_toward_zero(math.copysign(closed + most, quantity), rules.lot_size)


@kernel
def order_quantity(wallet, position, exposure, mark_close, bar, rules):  # type: ignore[no-untyped-def]
    """The order that moves the account to ``exposure``, as the exchange would accept it; 0 for none.

    Args:
        exposure: signed notional over equity, after the overlay.
        mark_close: quote, of the bar that has just closed: sizing never sees the next open.
        bar: the bar in which the order fills.

    Returns:
        base, signed, in whole lots.
    """
    held = position[QUANTITY]
    equity = wallet[EQUITY]
    wanted = exposure * equity / mark_close - held
    if exposure == 0.0:
        wanted = -held
    quantity = wanted if exposure == 0.0 else round_toward_zero(wanted, rules.lot_size)
    quantity = math.copysign(min(abs(quantity), rules.max_quantity), quantity)
    most = round_toward_zero(rules.max_participation * bar.volume, rules.lot_size)
    quantity = math.copysign(min(abs(quantity), most), quantity)
    if quantity != 0.0 and not _is_reduce_only(held, quantity):
        _touch, price = market_fill_price(bar.last_open, quantity, bar, rules)
        quantity = affordable_quantity(wallet, position, quantity, price, bar.mark_open, rules)
    is_small = abs(quantity) < rules.min_quantity or abs(quantity) * bar.last_open < rules.min_notional
    return 0.0 if is_small and not _is_reduce_only(held, quantity) else quantity


@kernel
def _is_reduce_only(held, quantity):  # type: ignore[no-untyped-def]
    return held * quantity < 0.0 and abs(quantity) <= abs(held)


@kernel
def wanted_exposure(action, exposure, rules):  # type: ignore[no-untyped-def]
    """The exposure that an action asks for, given the present one.

    ``target``: a * max_exposure. ``band``: x' = clip(x, c - w, c + w), so holding inside the band is free.
    """
    centre = min(1.0, max(-1.0, action[0])) * rules.max_exposure
    if rules.is_band == 0.0:
        return centre
    width = 0.5 * (min(1.0, max(-1.0, action[1])) + 1.0) * rules.max_exposure
    return min(centre + width, max(centre - width, exposure))


@kernel
def decide(wallet, position, ledger, action, mark_close, bar, rules):  # type: ignore[no-untyped-def]
    """From action to order quantity, at the close before ``bar``."""
    equity = wallet[EQUITY]
    exposure = position[QUANTITY] * mark_close / equity if equity > 0.0 else 0.0
    cap, bit = admitted_exposure(
        equity,
        wallet[PEAK_EQUITY],
        wallet[DAY_EQUITY],
        wallet[DAY_LOW_EQUITY],
        rules.max_leverage,
        rules.max_notional,
        rules.max_daily_loss,
        rules.drawdown_start,
        rules.max_drawdown,
    )
    target, changed = apply_overlay(wanted_exposure(action, exposure, rules), cap, bit)
    ledger[_OVERLAY] = changed
    if abs(target - exposure) <= rules.rebalance_threshold:
        if abs(exposure) <= cap:
            return 0.0
        # a limit is obeyed however small the excess
        ledger[_OVERLAY] = bit
    return order_quantity(wallet, position, target, mark_close, bar, rules)
