"""Orders: what one costs, what of it the exchange would accept, and what an account remembers of it."""

from __future__ import annotations

import math

from perpgym.data.bars import OPEN
from perpgym.envs.account import (
    CROSS,
    ENTRY_PRICE,
    ISOLATED_WALLET,
    QUANTITY,
    margin_balance,
    notional,
    unrealised_profit,
)
from perpgym.envs.arrays import contract_rules
from perpgym.envs.compile import kernel
from perpgym.envs.execution import quote, square_root_impact, to_lots, to_tick
from perpgym.envs.impact import fill_shift
from perpgym.envs.margin import worth

# why an order was cut or dropped: bits of the ``reason`` column
MAX_QUANTITY, PARTICIPATION, MARGIN, BRACKET, TOO_SMALL, NO_MARKET = 1, 2, 4, 8, 16, 32
WOULD_CROSS, NOT_REACHED = 64, 128

# how an order reaches the book, in the order of envs.config.EXECUTION_STYLES
MARKET, TWAP, VWAP, LIMIT, ICEBERG = range(5)
# of a sliced order, mean over peak of the square-root law: the integral of sqrt(x) from 0 to 1
SLICED_IMPACT = 2.0 / 3.0


@kernel
def market_fill_price(account, asset, reference, quantity, bar, contract, rules):  # type: ignore[no-untyped-def]
    """Touch and fill price of a taker order against ``reference``, the last price at that moment."""
    side = 1.0 if quantity > 0.0 else -1.0
    touch = quote(reference, rules.half_spread, contract, side)
    move = side * reference * own_impact(quantity, bar, rules)
    if rules.leaves_trace > 0.0:
        move += trace_shift(account, asset, quantity, reference, bar, contract, rules)
    return touch, to_tick(touch + move, contract, side)


@kernel
def trace_shift(account, asset, quantity, reference, bar, contract, rules):  # type: ignore[no-untyped-def]
    """Quote by which the account's earlier fills, and half of this one's own push, move its price."""
    value = quantity * abs(worth(reference, contract.is_inverse))
    shift = fill_shift(account.orders[asset], value, bar.root_illiquidity, rules)
    # a share of the worth: of the price itself, or of one over it
    return reference * (shift / (1.0 - shift) if contract.is_inverse > 0.0 else shift)


@kernel
def own_impact(quantity, bar, rules):  # type: ignore[no-untyped-def]
    """Fraction of the price by which an order moves it: the square-root law, at most a half."""
    return min(square_root_impact(quantity, bar.volume, bar.sigma_per_bar, rules.impact_coefficient), 0.5)


@kernel
def free_margin(account, world, marks, row, column, asset):  # type: ignore[no-untyped-def]
    """Settle currency that can carry new initial margin at ``marks[row, :, column]``, ``asset`` left out.

    Isolated wallets are taken out, cross positions stand at the mark and tie up their initial margin.
    """
    free = margin_balance(account, CROSS)
    for other in range(account.positions.shape[0]):
        if other != asset and account.positions[other, QUANTITY] != 0.0:
            rules = contract_rules(world.contracts[other])
            if rules.is_isolated == 0.0:
                mark = marks[row, other, column]
                free += unrealised_profit(account.positions[other], mark, rules.is_inverse)
                free -= notional(account.positions[other, QUANTITY], mark, rules.is_inverse) / rules.leverage
    return free


@kernel
def affordable_quantity(position, free, quantity, price, mark_price, fee_rate, contract):  # type: ignore[no-untyped-def]
    """Cut the opening part of an order to what the account can pay when the order reaches the book.

    Each unit opened needs its initial margin, its fee, and its loss from the fill to the mark. Cross pays
    from the equity at this mark less the initial margin of what is kept; isolated from the free wallet and
    what closing releases. No position may exceed the notional that its brackets admit at this leverage. The
    closing part always goes through.

    Args:
        position: (POSITION_COLUMNS,), of this contract.
        free: settle currency, :func:`free_margin` without this contract.
        quantity: signed.
        price: quote, the fill price of the whole order.
        mark_price: quote, at the same instant.
        fee_rate: fraction of notional.

    Returns:
        (quantity, reason): signed, in whole lots, and the bit of the rule that cut it, or 0.
    """
    held = position[QUANTITY]
    side = 1.0 if quantity > 0.0 else -1.0
    closed = min(abs(held), abs(quantity)) if held * quantity < 0.0 else 0.0
    kept = abs(held) - closed
    value, mark = worth(price, contract.is_inverse), worth(mark_price, contract.is_inverse)
    unit_notional = abs(value)
    fee = unit_notional * max(fee_rate, 0.0)
    if contract.is_isolated > 0.0:
        if held != 0.0:
            free += position[ISOLATED_WALLET] * closed / abs(held)
            free -= side * closed * (value - worth(position[ENTRY_PRICE], contract.is_inverse))
    else:
        free += unrealised_profit(position, mark_price, contract.is_inverse)
        free -= kept * unit_notional / contract.leverage + side * closed * (value - mark)
    unit = unit_notional / contract.leverage + fee + max(side * (value - mark), 0.0)
    most = max(free - closed * fee, 0.0) / unit
    reason = MARGIN
    admitted = max(contract.max_position_notional / unit_notional - kept, 0.0)
    if admitted < most:
        most, reason = admitted, BRACKET
    if abs(quantity) - closed <= most:
        return quantity, 0
    return to_lots(math.copysign(closed + most, quantity), contract), reason


@kernel
def is_reduce_only(held, quantity):  # type: ignore[no-untyped-def]
    """Whether an order only closes."""
    return held * quantity < 0.0 and abs(quantity) <= abs(held)


@kernel
def sliced_fill_price(account, asset, quantity, bar, contract, rules):  # type: ignore[no-untyped-def]
    """Reference, touch and mean fill price of an order in slices along a bar that nothing finer resolves.

    The price is taken to go straight from open to close; impact builds up along the order, two thirds of a
    single order's on average (the square-root law, integrated).
    """
    side = 1.0 if quantity > 0.0 else -1.0
    reference = 0.5 * (bar.last_open + bar.last_close)
    touch = quote(reference, rules.half_spread, contract, side)
    move = side * reference * SLICED_IMPACT * own_impact(quantity, bar, rules)
    if rules.leaves_trace > 0.0:
        move += trace_shift(account, asset, quantity, reference, bar, contract, rules)
    return (
        reference,
        touch,
        to_tick(touch + move, contract, side),
    )


@kernel
def volume_beyond(quantity, limit, bar, contract):  # type: ignore[no-untyped-def]
    """Volume that traded through a resting order, if the bar went at least a tick beyond it; else 0.

    The bar's volume is taken to lie evenly between its low and its high.
    """
    depth = limit - bar.last_low if quantity > 0.0 else bar.last_high - limit
    width = bar.last_high - bar.last_low
    if depth < contract.tick_size * (1.0 - 1e-6) or depth <= 0.0:
        return 0.0
    # a bar without range traded at one price, all of it beyond
    return bar.volume * min(depth / width, 1.0) if width > 0.0 else bar.volume


@kernel
def admitted_by_volume(quantity, volume, bar, contract, rules):  # type: ignore[no-untyped-def]
    """What of a wanted order the largest order and a share of ``volume`` admit.

    Returns:
        (quantity, reason): signed, in whole lots; bits of the rules that cut it.
    """
    reason = 0
    if abs(quantity) > contract.max_quantity:
        quantity, reason = math.copysign(contract.max_quantity, quantity), MAX_QUANTITY
    most = to_lots(rules.max_participation * volume, contract)
    if rules.is_unlimited > 0.0 and bar.volume > 0.0:
        most = abs(quantity)
    if abs(quantity) > most:
        quantity = math.copysign(most, quantity)
        reason |= PARTICIPATION if bar.volume > 0.0 else NO_MARKET
    return quantity, reason


@kernel
def admitted_by_margin(  # type: ignore[no-untyped-def]
    account, world, fine, asset, quantity, ordered, price, fee_rate, bar, contract
):
    """What of it margin, brackets and the smallest order admit at a fill price; closing always goes through.

    Args:
        quantity: signed, what would fill.
        ordered: signed, the order that the exchange holds to its smallest: an order in the book was admitted
            as it came, however little of it fills at once.
        price: quote, of the fill.
        fee_rate: fraction of notional.

    Returns:
        (quantity, reason): signed, in whole lots, 0 if nothing is left; bits of the rules that cut it.
    """
    held = account.positions[asset, QUANTITY]
    if quantity == 0.0 or is_reduce_only(held, quantity) or world.rules.is_unlimited > 0.0:
        return quantity, 0
    free = free_margin(account, world, world.market.fine_mark, fine, OPEN, asset)
    return admitted_by_free(account, free, asset, quantity, ordered, price, fee_rate, bar, contract)


@kernel
def admitted_by_free(account, free, asset, quantity, ordered, price, fee_rate, bar, contract):  # type: ignore[no-untyped-def]
    """What of an order that opens the ``free`` margin, brackets and the smallest order admit.

    Args and returns are those of :func:`admitted_by_margin`; ``free`` is that of :func:`free_margin`.
    """
    held = account.positions[asset, QUANTITY]
    quantity, reason = affordable_quantity(
        account.positions[asset],
        free,
        quantity,
        price,
        bar.mark_open,
        fee_rate,
        contract,
    )
    # what margin cut is a smaller order
    size = min(abs(ordered), abs(quantity)) if reason != 0 else abs(ordered)
    in_quote = size if contract.is_inverse > 0.0 else size * bar.last_open
    is_small = size < contract.min_quantity or in_quote < contract.min_notional
    if is_small and not is_reduce_only(held, quantity):
        return 0.0, reason | TOO_SMALL
    return quantity, reason
