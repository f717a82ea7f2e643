"""One account's wallet and position: their columns, opening, fills and margin balance.

Money is quote, sizes are signed base units, rates are fractions, all float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from perpgym.data.bars import CLOSE, HIGH, LOW, OPEN
from perpgym.envs.compile import kernel
from perpgym.envs.execution import round_to_tick, round_toward_zero
from perpgym.envs.margin import maintenance_margin

# columns of a wallet row, one row an account
WALLET, EQUITY, PEAK_EQUITY, DAY_EQUITY, DAY_LOW_EQUITY, INITIAL_WALLET, ACCRUED_FUNDING, RECENT_COSTS = (
    range(8)
)
WALLET_COLUMNS = 8
# columns of a position row, one row a contract of an account; prices are nan where there is none
QUANTITY, ENTRY_PRICE, ISOLATED_WALLET, STOP_PRICE, TARGET_PRICE, BARS_HELD = range(6)
POSITION_COLUMNS = 6


class Rules(NamedTuple):
    """Contract rules, account settings and limits as the kernel wants them; floats, inf for no limit."""

    tick_size: float
    lot_size: float
    min_quantity: float
    max_quantity: float
    min_notional: float
    taker_rate: float
    clearance_rate: float
    leverage: float
    is_isolated: float
    is_band: float
    max_exposure: float
    rebalance_threshold: float
    half_spread: float
    impact_coefficient: float
    max_participation: float
    stop_loss: float
    take_profit: float
    stop_on_mark: float
    funding_multiplier: float
    max_drawdown: float
    reward_equity_floor: float
    reward_scale: float
    reward_risk_aversion: float
    max_leverage: float
    max_notional: float
    max_daily_loss: float
    drawdown_start: float
    max_position_notional: float


class Bar(NamedTuple):
    """What the market does to an order and a position in one bar; prices quote, volume base."""

    last_open: float
    last_high: float
    last_low: float
    last_close: float
    mark_open: float
    mark_high: float
    mark_low: float
    mark_close: float
    volume: float
    sigma_per_bar: float


@kernel
def read_bar(last, mark, volume, sigma_per_bar, bar, asset):  # type: ignore[no-untyped-def]
    """Gather bar ``bar``; its volatility is the one known at the close before it."""
    return Bar(
        last[bar, asset, OPEN],
        last[bar, asset, HIGH],
        last[bar, asset, LOW],
        last[bar, asset, CLOSE],
        mark[bar, asset, OPEN],
        mark[bar, asset, HIGH],
        mark[bar, asset, LOW],
        mark[bar, asset, CLOSE],
        volume[bar, asset],
        sigma_per_bar[bar - 1, asset],
    )


@kernel
def margin_balance(wallet, position, rules):  # type: ignore[no-untyped-def]
    """Quote that stands behind the position before its unrealised profit."""
    return position[ISOLATED_WALLET] if rules.is_isolated > 0.0 else wallet[WALLET]


@kernel
def is_liquidated_at(wallet, position, mark_price, brackets, rules):  # type: ignore[no-untyped-def]
    """Whether margin balance at this mark does not exceed maintenance margin."""
    quantity = position[QUANTITY]
    if quantity == 0.0:
        return False
    balance = margin_balance(wallet, position, rules) + quantity * (mark_price - position[ENTRY_PRICE])
    return balance <= maintenance_margin(abs(quantity) * mark_price, brackets)


@kernel
def open_account(wallet, position, initial_wallet):  # type: ignore[no-untyped-def]
    """A flat account with ``initial_wallet`` quote."""
    wallet[:] = 0.0
    wallet[WALLET] = initial_wallet
    wallet[EQUITY] = initial_wallet
    wallet[PEAK_EQUITY] = initial_wallet
    wallet[DAY_EQUITY] = initial_wallet
    wallet[DAY_LOW_EQUITY] = initial_wallet
    wallet[INITIAL_WALLET] = initial_wallet
    flatten(position)


@kernel
def flatten(position):  # type: ignore[no-untyped-def]
    position[:] = 0.0
    position[STOP_PRICE] = math.nan
    position[TARGET_PRICE] = math.nan


@kernel
def give_position(wallet, position, exposure, mark_price, rules):  # type: ignore[no-untyped-def]
    """Start a flat account with a position entered at the mark, at no cost."""
    notional = min(abs(exposure) * wallet[WALLET], rules.max_position_notional)
    quantity = round_toward_zero(math.copysign(notional, exposure) / mark_price, rules.lot_size)
    if quantity != 0.0:
        apply_fill(wallet, position, quantity, mark_price, 0.0, rules)


@kernel
def apply_fill(wallet, position, quantity, price, fee_rate, rules):  # type: ignore[no-untyped-def]
    """Book one fill: realise what it closes, average what it opens, move isolated margin, pay the fee.

    Closing a share of an isolated position releases the same share of its isolated wallet; the realised
    profit passes through it to the wallet, so the bankruptcy price of what remains does not move.

    Args:
        wallet: (WALLET_COLUMNS,) float64, in place.
        position: (POSITION_COLUMNS,) float64, in place.
        quantity: base, signed.
        price: quote.
        fee_rate: fraction of the fill's notional.

    Returns:
        quote, the fee; already taken from the wallet.
    """
    held, entry = position[QUANTITY], position[ENTRY_PRICE]
    fee = abs(quantity) * price * fee_rate
    opened = abs(quantity)
    if held * quantity < 0.0:
        closed = min(abs(held), abs(quantity))
        wallet[WALLET] += math.copysign(closed, held) * (price - entry)
        position[ISOLATED_WALLET] *= 1.0 - closed / abs(held)
        opened = abs(quantity) - closed
    wallet[WALLET] -= fee
    total = _on_lot_grid(held + quantity, held, rules.lot_size)
    if total == 0.0:
        flatten(position)
        return fee
    position[QUANTITY] = total
    if held * total <= 0.0:
        position[ENTRY_PRICE] = price
        position[BARS_HELD] = 0.0
        position[ISOLATED_WALLET] = 0.0
    elif opened > 0.0:
        position[ENTRY_PRICE] = (abs(held) * entry + opened * price) / (abs(held) + opened)
    if rules.is_isolated > 0.0:
        # a loss beyond the released margin and the free wallet stays in the position
        position[ISOLATED_WALLET] = min(
            position[ISOLATED_WALLET] + opened * price / rules.leverage, wallet[WALLET]
        )
    _place_stops(position, rules)
    return fee


@kernel
def _on_lot_grid(quantity, held, lot_size):  # type: ignore[no-untyped-def]
    """The sum of two quantities without the rounding noise of their addition."""
    if abs(quantity) <= 1e-12 * abs(held):
        return 0.0
    if lot_size == 0.0:
        return quantity
    return round_toward_zero(quantity + math.copysign(0.5 * lot_size, quantity), lot_size)


@kernel
def _place_stops(position, rules):  # type: ignore[no-untyped-def]
    side = 1.0 if position[QUANTITY] > 0.0 else -1.0
    entry = position[ENTRY_PRICE]
    if rules.stop_loss > 0.0:
        position[STOP_PRICE] = round_to_tick(entry * (1.0 - side * rules.stop_loss), rules.tick_size, -side)
    if rules.take_profit > 0.0:
        position[TARGET_PRICE] = round_to_tick(
            entry * (1.0 + side * rules.take_profit), rules.tick_size, -side
        )
