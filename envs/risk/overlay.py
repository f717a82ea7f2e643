"""The risk overlay: turns the exposure an agent wants into the exposure the limits admit."""

from __future__ import annotations

import math

from perpgym.envs.compile import kernel

# bits of the ledger's ``overlay`` column
LEVERAGE, NOTIONAL, DAILY_LOSS, DRAWDOWN = 1, 2, 4, 8


@kernel
def admitted_exposure(  # type: ignore[no-untyped-def]
    equity, peak_equity, day_equity, day_low_equity, max_leverage, max_notional, max_daily_loss,
    drawdown_start, max_drawdown,
):  # fmt: skip
    """Largest |exposure| that the limits admit now, and the bit of the limit that sets it.

    Args:
        equity, peak_equity, day_equity: quote; now, the highest so far, at the last UTC midnight.
        day_low_equity: quote, the lowest since then; a day that was lost stays lost.
        max_leverage: notional over equity.
        max_notional: quote; inf for none.
        max_daily_loss: fraction of ``day_equity``; inf for none.
        drawdown_start, max_drawdown: fractions of ``peak_equity``; inf start for none.

    Returns:
        (cap, bit): exposure >= 0, and which limit binds.
    """
    if equity <= 0.0:
        return 0.0, LEVERAGE
    if min(equity, day_low_equity) <= day_equity * (1.0 - max_daily_loss):
        return 0.0, DAILY_LOSS
    cap, bit = max_leverage, LEVERAGE
    if max_notional / equity < cap:
        cap, bit = max_notional / equity, NOTIONAL
    drawdown = 1.0 - equity / peak_equity
    if drawdown > drawdown_start:
        shrunk = max_leverage * max(0.0, (max_drawdown - drawdown) / (max_drawdown - drawdown_start))
        if shrunk < cap:
            cap, bit = shrunk, DRAWDOWN
    return cap, bit


@kernel
def apply_overlay(exposure, cap, bit):  # type: ignore[no-untyped-def]
    """Clip a wanted exposure to ±cap; returns it and the bit if it was changed, else 0."""
    if abs(exposure) <= cap:
        return exposure, 0
    return math.copysign(cap, exposure), bit
