"""Margin of a position: worth, brackets, maintenance, liquidation price and bankruptcy price.

One arithmetic serves both kinds of contract. A unit of quantity is *worth* its price on a linear contract and
-1 / price on an inverse one, whose money is the base coin: profit = quantity * (worth now - worth at entry),
notional = size * |worth|. Worth rises with the price, so highs stay highs.

Sources: Binance, "Leverage and Margin of USDⓈ-M Futures", "How to Calculate Liquidation Price of USDⓈ-M
Futures Contracts" and the same pages on COIN-M. Quantities are signed (long > 0); money is
the settle currency.
"""

from __future__ import annotations

import math

from perpgym.envs.compile import kernel

# columns of Contract.bracket_table()
_FLOOR, _CAP, _MMR, _CUM = range(4)


@kernel
def worth(price, is_inverse):  # type: ignore[no-untyped-def]
    """Settle currency for a unit of quantity: price (linear), or -1 / price (inverse)."""
    return -1.0 / price if is_inverse > 0.0 else price


@kernel
def price_of(value, is_inverse):  # type: ignore[no-untyped-def]
    """The price at which a unit is worth ``value``; the inverse of :func:`worth`."""
    return -1.0 / value if is_inverse > 0.0 else value


@kernel
def bracket_row(notional, brackets):  # type: ignore[no-untyped-def]
    """The row that holds ``notional``; a floor belongs to its row."""
    last = brackets.shape[0] - 1
    row = 0
    while row < last and notional >= brackets[row, _CAP]:
        row += 1
    return row


@kernel
def maintenance_margin(notional, brackets):  # type: ignore[no-untyped-def]
    """Maintenance margin of a position.

    Args:
        notional: settle currency, at the mark.
        brackets: (B, 5) float64, ``Contract.bracket_table()``.

    Returns:
        settle currency: notional * mmr - cum of the bracket that holds ``notional``.
    """
    row = bracket_row(notional, brackets)
    return notional * brackets[row, _MMR] - brackets[row, _CUM]


@kernel
def liquidation_price(balance, quantity, entry_price, brackets, is_inverse):  # type: ignore[no-untyped-def]
    """Mark price at which margin balance equals maintenance margin.

    In worth, for both kinds: LW = (WB + cum - q * EW) / (|q| * sign * MMR - q), sign -1 on inverse contracts,
    with the bracket that holds the notional at LW itself. Margin balance minus maintenance margin is concave
    in the worth; the bracket whose root its own notional fits is the right one.

    Args:
        balance: settle currency behind the position: the wallet (cross; plus unrealised profit and less
            maintenance margin of the other positions) or the isolated wallet.
        quantity: signed.
        entry_price: quote.
        brackets: (B, 5) float64.
        is_inverse: 1 or 0.

    Returns:
        quote, or nan where no positive price liquidates.
    """
    if quantity == 0.0:
        return math.nan
    size = abs(quantity)
    sign = -1.0 if is_inverse > 0.0 else 1.0
    entry = worth(entry_price, is_inverse)
    last = brackets.shape[0] - 1
    # the bracket of the entry is near; each line lies above the concave excess, so a root beyond its bracket
    # says on which side the true one lies
    row = bracket_row(abs(quantity * entry), brackets)
    value = math.nan
    for _step in range(last + 1):
        slope = size * sign * brackets[row, _MMR] - quantity
        value = (balance + brackets[row, _CUM] - quantity * entry) / slope
        at_value = size * sign * value
        if at_value > brackets[row, _CAP] and row < last:
            row += 1
        elif at_value < brackets[row, _FLOOR] and row > 0:
            row -= 1
        else:
            break
    if sign * value > 0.0:
        return price_of(value, is_inverse)
    # worth beyond zero: a fall no price reaches; or already liquidated whatever the price
    if quantity > 0.0:
        return math.nan if sign > 0.0 else math.inf
    return 0.0 if sign > 0.0 else math.nan


@kernel
def bankruptcy_worth(balance, quantity, entry_price, is_inverse):  # type: ignore[no-untyped-def]
    """Worth at which the balance behind a position is gone: EW - balance / q, that of a positive price.

    The price is EP - s * balance / Q on a linear contract.

    Args:
        balance: settle currency; what stands behind the position before its own unrealised profit.
        quantity: signed, not 0.
        entry_price: quote.
        is_inverse: 1 or 0.
    """
    value = worth(entry_price, is_inverse) - balance / quantity
    return min(value, -1e-12) if is_inverse > 0.0 else max(value, 0.0)
