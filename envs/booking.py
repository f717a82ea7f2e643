"""Real fills and income through the kernel: the account of an exchange, booked as the env books its own.

What the env decides about a bar (where an order fills, what a stop costs, what a settlement moves) the
exchange has decided here; what follows from it for wallet, positions, ledger and reward is the same code.
"""

from __future__ import annotations

import math

from perpgym.data.bars import CLOSE
from perpgym.envs.account import (
    CROSS,
    DAY_EQUITY,
    DAY_LOW_EQUITY,
    EQUITY,
    INITIAL_WALLET,
    ISOLATED_WALLET,
    ORDER_ASKED,
    ORDER_DONE,
    ORDER_FRESH,
    ORDER_HELD,
    ORDER_QUANTITY,
    ORDER_REASON,
    ORDER_STYLE,
    ORDER_WORKING,
    PEAK_EQUITY,
    QUANTITY,
    STOP_PRICE,
    WALLET,
    apply_fill,
    give_stop_distance,
    open_account,
)
from perpgym.envs.arrays import contract_rules, read_bar
from perpgym.envs.compile import cold_kernel, kernel
from perpgym.envs.execution import quote
from perpgym.envs.fills import LIQUIDATION, ORDER, STOP, TARGET, credit_funding, take_at, take_at_fee
from perpgym.envs.impact import decay_push
from perpgym.envs.inside import withdraw
from perpgym.envs.kernel import close_books, hold_through
from perpgym.envs.liquidation import side_of
from perpgym.envs.margin import worth
from perpgym.envs.matching import carry_orders, keep_left, note_price, prepare_stop
from perpgym.envs.orders import LIMIT, NOT_REACHED, PARTICIPATION, TWAP, VWAP
from perpgym.envs.path import opens_beyond_stop, stop_reference, trail_stops
from perpgym.envs.payoff import open_moments
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER

_CLEARANCE, _INSURANCE = LEDGER["clearance"], LEDGER["insurance"]
_LIQUIDATED, _STOPPED = LEDGER["liquidated"], LEDGER["stopped"]
_PROFIT, _COSTS = CONTRACT_LEDGER["profit"], CONTRACT_LEDGER["costs"]

# columns of an event, one row each in the order of their times: what it is; the contract's index, -1 for
# none; of a fill its signed quantity, its price (quote), its fee (settle currency, paid > 0) and whether it
# was a maker's; of income the amount (settle currency, received > 0)
EVENT_KIND, EVENT_ASSET, EVENT_QUANTITY, EVENT_PRICE, EVENT_AMOUNT, EVENT_IS_MAKER = range(6)
EVENT_COLUMNS = 6
# fills: of the account's own order, its stop, its target, a liquidation, somebody else's order; income: a
# settlement, what a liquidation cost or the insurance fund bore, money moved in or out
BY_ORDER, BY_STOP, BY_TARGET, BY_FORCE, BY_OTHERS, FUNDED, CLEARED, MOVED = range(8)


@cold_kernel
def open_books(account, world, now, wallet, held):  # type: ignore[no-untyped-def]
    """Begin with what an account has: as the env begins an episode, but with positions of any entry.

    Args:
        account: ``Account``, in place.
        world: ``World``.
        now: the newest closed bar.
        wallet: settle currency, isolated wallets included.
        held: (A, 3) float64, signed quantity, entry price (quote), isolated wallet (settle currency).
    """
    equity, largest = wallet, 0.0
    for asset in range(held.shape[0]):
        inverse, mark = world.contracts[asset, 0], world.market.mark[now, asset, CLOSE]
        if held[asset, 0] != 0.0:
            equity += held[asset, 0] * (worth(mark, inverse) - worth(held[asset, 1], inverse))
        largest = max(largest, world.market.sigma_per_bar[now, asset])
    open_account(account.wallet, account.positions, equity)
    account.wallet[WALLET] = wallet
    open_moments(account.wallet, largest, world.rules)
    account.orders[:] = 0.0
    account.ledger[:] = 0.0
    account.holdings[:] = 0.0
    for asset in range(held.shape[0]):
        contract, position = contract_rules(world.contracts[asset]), account.positions[asset]
        if held[asset, 0] != 0.0:
            give_stop_distance(position, world.market.sigma_per_bar[now, asset], 0.0, world.rules)
            apply_fill(
                account.wallet, account.positions, asset, held[asset, 0], held[asset, 1], 0.0, contract,
                world.rules,
            )  # fmt: skip
            position[ISOLATED_WALLET] = held[asset, 2]
            account.orders[asset, ORDER_ASKED] = math.nan
        account.orders[asset, ORDER_HELD] = held[asset, 0]


@cold_kernel
def book_events(account, world, now, events, is_closed):  # type: ignore[no-untyped-def]
    """Book fills and income of bar ``now``, in place.

    Args:
        account: ``Account``.
        world: ``World``.
        now: the bar in which it happened; its row of the market is read only if ``is_closed``.
        events: (E, EVENT_COLUMNS) float64.
        is_closed: 1 if the bar is known: then spread and impact are told apart, as the env does; 0 books
            wallet, position and stops, which is what the exchange has to be compared with meanwhile.
    """
    for row in range(events.shape[0]):
        event = events[row]
        kind = int(event[EVENT_KIND])
        if kind == MOVED:
            _move_money(account.wallet, event[EVENT_AMOUNT])
        elif kind == FUNDED:
            asset = int(event[EVENT_ASSET])
            credit_funding(account, asset, event[EVENT_AMOUNT], contract_rules(world.contracts[asset]))
        elif kind == CLEARED:
            _clear(account, world, event)
        else:
            _fill(account, world, now, event, is_closed)


@cold_kernel
def book_bar(account, world, now, events):  # type: ignore[no-untyped-def]
    """Everything that happened to the account in bar ``now``, then the close of its books.

    Args:
        account: ``Account`` as ``decision.decide`` or :func:`keep_still` left it at the close before.
        world: ``World`` that knows the bar.
        now: the bar.
        events: (E, EVENT_COLUMNS) float64.

    Returns:
        (reward, is_terminated), as ``kernel.step_account``.
    """
    hold_through(account, world, now)
    for asset in range(account.positions.shape[0]):
        if world.rules.leaves_trace > 0.0:
            decay_push(account.orders[asset], world.rules)
        account.orders[asset, ORDER_FRESH] = 0.0
    book_events(account, world, now, events, 1.0)
    is_over = account.ledger[_LIQUIDATED] > 0.0
    for asset in range(account.positions.shape[0]):
        _note_unfilled(account.orders[asset], account.positions[asset])
        is_cross = contract_rules(world.contracts[asset]).is_isolated == 0.0
        is_over = is_over and not (is_cross and account.positions[asset, QUANTITY] != 0.0)
    if world.rules.is_trailing > 0.0:
        trail_stops(account, world, now)
    carry_orders(account, world)
    # money that came in or went out is no profit
    return close_books(account, world, account.wallet[EQUITY], now, is_over)


@kernel
def keep_still(account):  # type: ignore[no-untyped-def]
    """Begin a step without a decision: nothing is ordered and what was asked for stands."""
    account.ledger[:] = 0.0
    for asset in range(account.orders.shape[0]):
        order = account.orders[asset]
        order[ORDER_QUANTITY] = order[ORDER_WORKING] = order[ORDER_DONE] = order[ORDER_REASON] = 0.0
        order[ORDER_HELD] = account.positions[asset, QUANTITY]


@kernel
def _move_money(wallet, amount):  # type: ignore[no-untyped-def]
    """A deposit is neither profit nor the end of a drawdown."""
    wallet[WALLET] += amount
    wallet[EQUITY] += amount
    wallet[PEAK_EQUITY] += amount
    wallet[DAY_EQUITY] += amount
    wallet[DAY_LOW_EQUITY] += amount
    wallet[INITIAL_WALLET] += amount


@kernel
def _clear(account, world, event):  # type: ignore[no-untyped-def]
    """What a liquidation cost beside its fills (< 0), or the insurance fund bore (> 0)."""
    asset, amount = int(event[EVENT_ASSET]), event[EVENT_AMOUNT]
    account.wallet[WALLET] += amount
    account.ledger[_CLEARANCE] += max(-amount, 0.0)
    account.ledger[_INSURANCE] += max(amount, 0.0)
    if amount < 0.0:
        account.ledger[_LIQUIDATED] = 1.0
    if asset < 0:
        return
    account.holdings[asset, _PROFIT] += amount
    account.holdings[asset, _COSTS] -= amount
    is_isolated = contract_rules(world.contracts[asset]).is_isolated > 0.0
    if is_isolated and account.positions[asset, QUANTITY] != 0.0:
        account.positions[asset, ISOLATED_WALLET] += amount


@kernel
def _fill(account, world, now, event, is_closed):  # type: ignore[no-untyped-def]
    """One fill at the price and fee that it had."""
    kind, asset = int(event[EVENT_KIND]), int(event[EVENT_ASSET])
    quantity, price = event[EVENT_QUANTITY], event[EVENT_PRICE]
    contract = contract_rules(world.contracts[asset])
    order = account.orders[asset]
    fee_rate = event[EVENT_AMOUNT] / abs(quantity * worth(price, contract.is_inverse))
    prepare_stop(account, world, asset, now, quantity)
    reason = _reason_of(kind)
    is_taken = (kind == BY_ORDER and event[EVENT_IS_MAKER] == 0.0) or kind == BY_STOP
    if is_closed > 0.0 and is_taken:
        bar = read_bar(world.market, now, now, asset, contract.is_inverse)
        reference = bar.last_open
        if kind == BY_STOP:
            reference = _stop_reference(account.positions[asset], bar, world.rules)
        elif order[ORDER_STYLE] == TWAP or order[ORDER_STYLE] == VWAP:
            # along the bar
            reference = 0.5 * (bar.last_open + bar.last_close)
        touch = quote(reference, world.rules.half_spread, contract, math.copysign(1.0, quantity))
        take_at_fee(
            account, asset, quantity, reference, touch, price, fee_rate, bar.root_illiquidity,
            bar.mark_close, reason, contract, world.rules,
        )  # fmt: skip
    else:
        mark_close = world.market.mark[now if is_closed > 0.0 else now - 1, asset, CLOSE]
        take_at(account, asset, quantity, price, fee_rate, mark_close, reason, contract, world.rules)
    if kind == BY_ORDER:
        order[ORDER_FRESH] = event[EVENT_IS_MAKER]
        note_price(account, asset, quantity, price)
        keep_left(order, quantity, PARTICIPATION, False, contract)
        order[ORDER_HELD] = account.positions[asset, QUANTITY]
    elif kind == BY_FORCE:
        account.ledger[_LIQUIDATED] = 1.0
        withdraw(account, world, asset if contract.is_isolated > 0.0 else CROSS)
    elif kind in (BY_STOP, BY_TARGET):
        account.ledger[_STOPPED] = 1.0


@kernel
def _reason_of(kind):  # type: ignore[no-untyped-def]
    if kind == BY_STOP:
        return STOP
    if kind == BY_TARGET:
        return TARGET
    return LIQUIDATION if kind == BY_FORCE else ORDER


@kernel
def _stop_reference(position, bar, rules):  # type: ignore[no-untyped-def]
    """Last price (quote) when the position's stop was triggered, as the env takes it to have been."""
    stop = position[STOP_PRICE]
    if math.isnan(stop) or opens_beyond_stop(position, bar, rules):
        return bar.last_open
    return stop_reference(stop, side_of(position), bar, rules)


@kernel
def _note_unfilled(order, position):  # type: ignore[no-untyped-def]
    """An order of which nothing filled says so, and its ladder level does not stand.

    Where a stop changed the position, slices that closed some of it went with it.
    """
    is_resting, held = order[ORDER_STYLE] >= LIMIT, order[ORDER_HELD]
    is_standing = is_resting or position[QUANTITY] == held or held * order[ORDER_QUANTITY] >= 0.0
    if is_standing and order[ORDER_QUANTITY] != 0.0 and order[ORDER_REASON] == 0.0:
        order[ORDER_REASON] = NOT_REACHED if is_resting else PARTICIPATION
