"""One account's wallet and positions: their columns, opening, fills, margin balance.

Money is the settle currency (quote, or base for inverse contracts), rates are fractions, all float64.
"""

from __future__ import annotations

import math

from perpgym.envs.compile import cold_kernel, kernel
from perpgym.envs.execution import to_lots, to_tick
from perpgym.envs.margin import maintenance_margin, price_of, worth

# columns of a wallet row, one row an account
WALLET, EQUITY, PEAK_EQUITY, DAY_EQUITY, DAY_LOW_EQUITY, INITIAL_WALLET, ACCRUED_FUNDING, RECENT_COSTS = (
    range(8)
)
# log of equity over the initial wallet; running moments of the account's log return, and of its square
LOG_EQUITY, RETURN_MEAN, RETURN_SQUARE = 8, 9, 10
# 1 where the newest bar closed something against the account's will, to keep its margin
LIQUIDATED = 11
WALLET_COLUMNS = 12
# columns of a position row, one row a contract of an account; prices are nan where there is none
QUANTITY, ENTRY_PRICE, ISOLATED_WALLET, STOP_PRICE, TARGET_PRICE, BARS_HELD, STOP_DISTANCE = range(7)
POSITION_COLUMNS = 7

# columns of an order row, one row a contract: what is left to fill (signed), what was held when it was
# decided or last filled, why it was cut, the limit price (quote), what is carried on from bar to bar,
# whether it filled inside the bar, so that no target of this bar may count on it, how it reaches the book,
# its stop in volatilities of a bar (0: the account's), the ladder level that stands (nan: none), four
# columns of the push that earlier fills left in the book, milliseconds from its decision to the open of this
# bar, its size as decided, what of it filled in this bar, and what of the position was added inside the
# (finer) bar, signed; ``fresh`` is 1 where an order opened or added inside the bar, -1 where it has had its
# turn or has not arrived
ORDER_QUANTITY, ORDER_HELD, ORDER_REASON, ORDER_LIMIT, ORDER_WORKING, ORDER_FRESH = range(6)
ORDER_STYLE, ORDER_STOP, ORDER_ASKED, ORDER_PUSH = range(6, 10)
ORDER_AGE, ORDER_SIZE, ORDER_DONE, ORDER_ADDED = range(13, 17)
ORDER_COLUMNS = 17

# of the margin groups: every cross position together; an isolated position is a group named by its contract
CROSS = -1


@kernel
def is_in_group(asset, group, contract):  # type: ignore[no-untyped-def]
    """Whether a position stands on this group's margin: ``CROSS``, or its own index if isolated."""
    return asset == group if contract.is_isolated > 0.0 else group == CROSS


@kernel
def notional(quantity, price, is_inverse):  # type: ignore[no-untyped-def]
    """Settle currency, not negative."""
    return abs(quantity * worth(price, is_inverse))


@kernel
def unrealised_profit(position, price, is_inverse):  # type: ignore[no-untyped-def]
    """Settle currency: quantity * (worth now - worth at entry)."""
    quantity = position[QUANTITY]
    if quantity == 0.0:
        return 0.0
    return quantity * (worth(price, is_inverse) - worth(position[ENTRY_PRICE], is_inverse))


@kernel
def sizing_base(wallet, rules):  # type: ignore[no-untyped-def]
    """Settle currency of an exposure of 1: equity, or the initial wallet."""
    return wallet[INITIAL_WALLET] if rules.is_fixed_size > 0.0 else wallet[EQUITY]


@kernel
def margin_balance(account, group):  # type: ignore[no-untyped-def]
    """Settle currency behind a margin group before unrealised profit.

    The isolated wallets are a part of the wallet; the rest of it stands behind the cross positions.
    """
    if group != CROSS:
        return account.positions[group, ISOLATED_WALLET]
    return free_wallet(account.wallet, account.positions)


@kernel
def free_wallet(wallet, positions):  # type: ignore[no-untyped-def]
    """The wallet less the isolated wallets in it."""
    balance = wallet[WALLET]
    for asset in range(positions.shape[0]):
        balance -= positions[asset, ISOLATED_WALLET]
    return balance


@kernel
def position_excess(position, price, brackets, is_inverse):  # type: ignore[no-untyped-def]
    """Unrealised profit less maintenance margin of one position at a mark, settle currency."""
    quantity = position[QUANTITY]
    if quantity == 0.0:
        return 0.0
    value = worth(price, is_inverse)
    profit = quantity * (value - worth(position[ENTRY_PRICE], is_inverse))
    return profit - maintenance_margin(abs(quantity * value), brackets)


@kernel
def open_account(wallet, positions, initial_wallet):  # type: ignore[no-untyped-def]
    """A flat account with ``initial_wallet`` of the settle currency."""
    wallet[:] = 0.0
    wallet[WALLET] = initial_wallet
    wallet[EQUITY] = initial_wallet
    wallet[PEAK_EQUITY] = initial_wallet
    wallet[DAY_EQUITY] = initial_wallet
    wallet[DAY_LOW_EQUITY] = initial_wallet
    wallet[INITIAL_WALLET] = initial_wallet
    for asset in range(positions.shape[0]):
        flatten(positions[asset])


@kernel
def flatten(position):  # type: ignore[no-untyped-def]
    position[:] = 0.0
    position[STOP_PRICE] = math.nan
    position[TARGET_PRICE] = math.nan


@kernel
def give_position(wallet, positions, asset, exposure, mark_price, sigma, contract, rules):  # type: ignore[no-untyped-def]
    """Start a flat account with a position entered at the mark, at no cost."""
    if exposure == 0.0:
        return
    size = min(abs(exposure) * wallet[WALLET], contract.max_position_notional)
    size /= abs(worth(mark_price, contract.is_inverse))
    quantity = to_lots(math.copysign(min(size, contract.max_quantity), exposure), contract)
    if quantity != 0.0:
        give_stop_distance(positions[asset], sigma, 0.0, rules)
        apply_fill(wallet, positions, asset, quantity, mark_price, 0.0, contract, rules)


@kernel
def apply_fill(wallet, positions, asset, quantity, price, fee_rate, contract, rules):  # type: ignore[no-untyped-def]
    """Book one fill: realise what it closes, average what it opens, move isolated margin, pay the fee.

    Closing a share of an isolated position releases the same share of its isolated wallet, so its bankruptcy
    price does not move; opening posts notional / leverage, from the free wallet, which may fall below zero
    where a cross profit stands behind it (what an order may use of that is decided before it fills). What
    this fill loses beyond the margin that it releases and the free wallet stays in the position; what others
    owe is never taken from it.

    Args:
        wallet: (WALLET_COLUMNS,) float64, in place.
        positions: (A, POSITION_COLUMNS) float64, in place.
        asset: index of the contract.
        quantity: signed.
        price: quote.
        fee_rate: fraction of the fill's notional.

    Returns:
        settle currency, the fee; already taken from the wallet.
    """
    position = positions[asset]
    held, entry = position[QUANTITY], position[ENTRY_PRICE]
    value = worth(price, contract.is_inverse)
    fee = abs(quantity * value) * fee_rate
    opened = abs(quantity)
    wallet_before, margin_before, free = wallet[WALLET], position[ISOLATED_WALLET], 0.0
    if contract.is_isolated > 0.0:
        free = max(free_wallet(wallet, positions), 0.0)
    if held * quantity < 0.0:
        closed = min(abs(held), abs(quantity))
        wallet[WALLET] += math.copysign(closed, held) * (value - worth(entry, contract.is_inverse))
        position[ISOLATED_WALLET] *= 1.0 - closed / abs(held)
        opened = abs(quantity) - closed
    wallet[WALLET] -= fee
    released = margin_before - position[ISOLATED_WALLET]
    total = on_lot_grid(held + quantity, held, contract)
    if total == 0.0:
        flatten(position)
        return fee
    position[QUANTITY] = total
    if held * total <= 0.0:
        position[ENTRY_PRICE] = price
        position[BARS_HELD] = 0.0
        position[ISOLATED_WALLET] = 0.0
        # a stop of the other side has nothing left to protect
        position[STOP_PRICE] = math.nan
        position[TARGET_PRICE] = math.nan
    elif opened > 0.0:
        # worths average by size: the harmonic mean of an inverse contract's prices
        mean = (abs(held) * worth(entry, contract.is_inverse) + opened * value) / (abs(held) + opened)
        position[ENTRY_PRICE] = price_of(mean, contract.is_inverse)
    if contract.is_isolated > 0.0:
        left = free + released + wallet[WALLET] - wallet_before
        _post_margin(positions, asset, opened * abs(value) / contract.leverage, left)
    if opened > 0.0:
        _place_stops(position, contract, rules)
    return fee


@cold_kernel
def _post_margin(positions, asset, margin, left):  # type: ignore[no-untyped-def]
    """Move initial margin to an isolated position, and leave in it what neither margin nor wallet covered.

    Args:
        positions: (A, POSITION_COLUMNS) float64, in place.
        margin: settle currency, notional / leverage of what was opened.
        left: settle currency, free wallet and released margin less what the fill lost; below 0 uncovered.
    """
    has_cross = False
    for other in range(positions.shape[0]):
        is_cross = positions[other, QUANTITY] != 0.0 and positions[other, ISOLATED_WALLET] == 0.0
        # a position on the free wallet has no wallet of its own
        has_cross = has_cross or (is_cross and other != asset)
    if not has_cross:
        # an order that was cut fills a little better than what it was admitted at
        margin = min(margin, max(left, 0.0))
    positions[asset, ISOLATED_WALLET] += margin + min(left, 0.0)


@kernel
def on_lot_grid(quantity, held, contract):  # type: ignore[no-untyped-def]
    """The sum of two quantities without the rounding noise of their addition."""
    if abs(quantity) <= 1e-12 * abs(held):
        return 0.0
    if contract.lot_size == 0.0:
        return quantity
    return to_lots(quantity + math.copysign(0.5 * contract.lot_size, quantity), contract)


@kernel
def _place_stops(position, contract, rules):  # type: ignore[no-untyped-def]
    """Stop-loss and take-profit from the entry; a trailing stop never moves back."""
    side = 1.0 if position[QUANTITY] > 0.0 else -1.0
    entry = position[ENTRY_PRICE]
    distance = stop_distance(position, rules)
    if distance > 0.0:
        stop = to_tick(entry * (1.0 - side * distance), contract, -side)
        # a comparison with nan is false: there was none
        if not (rules.is_trailing > 0.0 and side * (position[STOP_PRICE] - stop) > 0.0):
            position[STOP_PRICE] = stop
    if rules.take_profit > 0.0:
        position[TARGET_PRICE] = to_tick(entry * (1.0 + side * rules.take_profit), contract, -side)


@kernel
def stop_distance(position, rules):  # type: ignore[no-untyped-def]
    """Fraction of the price: the position's own distance if it has one, else the account's; 0 for none."""
    own = position[STOP_DISTANCE]
    return own if own > 0.0 else rules.stop_loss


@kernel
def give_stop_distance(position, sigma_per_bar, multiple, rules):  # type: ignore[no-untyped-def]
    """Before a fill that opens or adds: the tighter of the fixed stop and the one by volatility.

    Args:
        position: (POSITION_COLUMNS,) float64, in place.
        sigma_per_bar: volatility of a bar's log return.
        multiple: of it, the order's own stop; 0 for the account's.
        rules: ``AccountRules``.
    """
    if multiple == 0.0:
        multiple = rules.stop_volatility
    if multiple > 0.0:
        distance = min(multiple * sigma_per_bar, 0.99)
        position[STOP_DISTANCE] = min(distance, rules.stop_loss) if rules.stop_loss > 0.0 else distance
    elif position[STOP_DISTANCE] > 0.0:
        # an earlier order's own stop gives way to the account's, which may be none
        position[STOP_DISTANCE] = 0.0
        if rules.stop_loss == 0.0:
            position[STOP_PRICE] = math.nan
