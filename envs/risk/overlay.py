"""The risk overlay: turns the exposure an agent wants into the exposure the limits admit."""

from __future__ import annotations

from perpgym.envs.compile import kernel

# bits of the ledger's ``overlay`` column
LEVERAGE, NOTIONAL, DAILY_LOSS, DRAWDOWN, TIME_STOP = 1, 2, 4, 8, 16


@kernel
def admitted_exposure(  # type: ignore[no-untyped-def]
    equity, peak_equity, day_equity, day_low_equity, max_leverage, max_daily_loss, drawdown_start,
    max_drawdown,
):  # fmt: skip
    """Largest gross exposure that the account's limits admit now, and the bit of the limit that sets it.

    Args:
        equity, peak_equity, day_equity: settle currency; now, the highest so far, at the last UTC midnight.
        day_low_equity: settle currency, the lowest since then; a day that was lost stays lost.
        max_leverage: gross notional over equity.
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
    drawdown = 1.0 - equity / peak_equity
    if drawdown > drawdown_start:
        shrunk = max_leverage * max(0.0, (max_drawdown - drawdown) / (max_drawdown - drawdown_start))
        if shrunk < cap:
            cap, bit = shrunk, DRAWDOWN
    return cap, bit
