"""Margin of a linear position: brackets, maintenance, liquidation price and bankruptcy price.

Sources: Binance USD-M futures, "Leverage and Margin of USDⓈ-M Futures" and "How to Calculate Liquidation
Price of USDⓈ-M Futures Contracts". Positions are signed base units (long > 0); money is quote.
"""

from __future__ import annotations

import math

from perpgym.envs.compile import kernel

# columns of Contract.bracket_table()
_CAP, _MMR, _CUM = 1, 2, 3


@kernel
def maintenance_margin(notional, brackets):  # type: ignore[no-untyped-def]
    """Maintenance margin of a position.

    Args:
        notional: quote, |position| * mark price.
        brackets: (B, 5) float64, ``Contract.bracket_table()``.

    Returns:
        quote: notional * mmr - cum of the bracket that holds ``notional``.
    """
    last = brackets.shape[0] - 1
    row = 0
    while row < last and notional >= brackets[row, _CAP]:
        row += 1
    return notional * brackets[row, _MMR] - brackets[row, _CUM]


@kernel
def liquidation_price(balance, position, entry_price, brackets):  # type: ignore[no-untyped-def]
    """Mark price at which margin balance equals maintenance margin.

    LP = (WB + cum - s*Q*EP) / (Q*MMR - s*Q), with the bracket that holds Q*LP itself. Margin balance minus
    maintenance margin is monotone in the price and convex in the bracket, so the first bracket whose root
    does not exceed its cap is the right one.

    Args:
        balance: quote; the wallet (cross) or the isolated wallet.
        position: base, signed.
        entry_price: quote.
        brackets: (B, 5) float64.

    Returns:
        quote, or nan where no positive price liquidates.
    """
    if position == 0.0:
        return math.nan
    size = abs(position)
    side = 1.0 if position > 0.0 else -1.0
    last = brackets.shape[0] - 1
    price = math.nan
    for row in range(last + 1):
        price = (balance + brackets[row, _CUM] - position * entry_price) / (
            size * brackets[row, _MMR] - position
        )
        if size * price <= brackets[row, _CAP]:
            break
    if side > 0.0 and price <= 0.0:
        return math.nan
    # a short whose balance is already below any positive requirement is liquidated at every price
    return max(price, 0.0)


@kernel
def bankruptcy_price(balance, position, entry_price):  # type: ignore[no-untyped-def]
    """Price at which the balance behind a position is gone: EP - s*balance/Q, at least 0.

    Args:
        balance: quote; the wallet (cross) or the isolated wallet.
        position: base, signed, not 0.
        entry_price: quote.
    """
    return max(entry_price - balance / position, 0.0)
