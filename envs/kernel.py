"""The order of events that moves money: one account through one bar. Every env calls this and nothing else.

``envs/orders.py`` holds the way from an action to orders, ``envs/fills.py`` what a fill moves,
``envs/path.py`` and ``envs/liquidation.py`` the way of prices through a bar, ``envs/account.py`` the account,
``envs/margin.py`` and ``envs/execution.py`` the formulas. ``docs/mechanics.md`` has the rules and sources.
"""

from __future__ import annotations

import math

from perpgym.data.bars import CLOSE, OPEN
from perpgym.envs.account import (
    ACCRUED_FUNDING,
    BARS_HELD,
    DAY_EQUITY,
    DAY_LOW_EQUITY,
    EQUITY,
    LIQUIDATED,
    ORDER_ASKED,
    ORDER_REASON,
    PEAK_EQUITY,
    QUANTITY,
    RECENT_COSTS,
    WALLET,
    sizing_base,
    unrealised_profit,
)
from perpgym.envs.arrays import contract_rules, read_bar
from perpgym.envs.compile import cold_kernel, kernel
from perpgym.envs.decision import LADDER, decide, exposure_of
from perpgym.envs.fees import roll_day
from perpgym.envs.fills import ORDER, STOP, settle_funding, take
from perpgym.envs.impact import decay_push
from perpgym.envs.insolvency import forgive_debt
from perpgym.envs.liquidation import STRAIGHT, is_short_at, liquidate_if_short, mark_on_way
from perpgym.envs.margin import worth
from perpgym.envs.matching import (
    AFTER_THE_WAY,
    begin_fine_bar,
    carry_orders,
    fill_inside,
    has_orders,
    may_rest,
    send_orders,
)
from perpgym.envs.path import live_through, nothing_happens, opens_beyond_stop, trail_stops
from perpgym.envs.payoff import pay
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER

_EQUITY, _EQUITY_BEFORE = LEDGER["equity"], LEDGER["equity_before"]
_PRICE_PNL, _FEES, _SPREAD, _IMPACT = LEDGER["price_pnl"], LEDGER["fees"], LEDGER["spread"], LEDGER["impact"]
_EXPOSURE, _GROSS = LEDGER["exposure"], LEDGER["gross_exposure"]
_STOPPED, _LIQUIDATED, _DRAWDOWN = LEDGER["stopped"], LEDGER["liquidated"], LEDGER["drawdown"]
_OVERLAY = LEDGER["overlay"]
_POSITION, _FIRST_FILL_PRICE = LEDGER["position"], LEDGER["fill_price"]
_ROW_POSITION, _ROW_EXPOSURE = CONTRACT_LEDGER["position"], CONTRACT_LEDGER["exposure"]
_FILL_PRICE, _REASON, _PROFIT = (
    CONTRACT_LEDGER["fill_price"],
    CONTRACT_LEDGER["reason"],
    CONTRACT_LEDGER["profit"],
)

DAY_MS = 86_400_000
# recent costs halve in a day of hourly bars
COST_DECAY = 0.5 ** (1.0 / 24.0)


@kernel
def step_account(account, world, action, now, is_last, scratch):  # type: ignore[no-untyped-def]
    """One account through bar ``now``, in the order of ``docs/mechanics.md``.

    Args:
        account: ``Account``; ledger, holdings and orders are overwritten.
        world: ``World``.
        action: (A * action_dim,) float32, decided at the close before ``now``.
        now: the bar in which the orders fill.
        is_last: whether the episode ends with it.
        scratch: ``Account``, for a second way through the bar.

    Returns:
        (reward, is_terminated): see ``payoff.pay``; cross liquidation or ruin.
    """
    account.ledger[:] = 0.0
    equity_before = account.wallet[EQUITY]
    if account.traded.shape[0] > 0:
        # the tier of a day is fixed at its midnight
        roll_day(
            account.traded,
            world.market.open_time_ms[now] // DAY_MS,
            world.fee_tiers,
            world.rules.discount_factor,
        )
    account.ledger[_OVERLAY] = decide(account, world, action, now)
    hold_through(account, world, now)
    is_over = False
    first = world.market.fine_first + now * world.market.fine_per_bar
    open_ms = world.market.open_time_ms[now]
    for number in range(world.market.fine_per_bar):
        is_over = _fine_bar(account, world, now, first + number, open_ms, number, scratch)
        open_ms += world.market.fine_ms
        if is_over:
            break
    carry_orders(account, world)
    if is_last and world.rules.is_sold_at_end > 0.0:
        _sell_all(account, world, now, first + world.market.fine_per_bar - 1)
    return close_books(account, world, equity_before, now, is_over)


@kernel
def hold_through(account, world, now):  # type: ignore[no-untyped-def]
    """Begin the contracts' own ledger rows: what the positions held earn from mark close to mark close."""
    for asset in range(account.positions.shape[0]):
        row = account.holdings[asset]
        row[:] = 0.0
        quantity = account.positions[asset, QUANTITY]
        if quantity != 0.0:
            inverse = world.contracts[asset, 0]
            profit = quantity * (
                worth(world.market.mark[now, asset, CLOSE], inverse)
                - worth(world.market.mark[now - 1, asset, CLOSE], inverse)
            )
            account.ledger[_PRICE_PNL] += profit
            row[_PROFIT] = profit


@kernel
def _fine_bar(account, world, now, fine, open_ms, number, scratch):  # type: ignore[no-untyped-def]
    """Liquidation at the open, orders, the way of prices, settlements at the close, the last margin check.

    Returns:
        Whether the cross positions were liquidated whole.
    """
    if world.rules.leaves_trace > 0.0:
        for asset in range(account.positions.shape[0]):
            decay_push(account.orders[asset], world.rules)
    if may_rest(world):
        begin_fine_bar(account)
    if has_orders(account):
        if is_short_at(account, world, fine, OPEN) and liquidate_if_short(
            account, world, now, fine, STRAIGHT, 0, 0.0
        ):
            return True
        send_orders(account, world, now, fine, number)
        # what an order lost beyond bankruptcy stands in the way of no later one
        forgive_debt(account, world)
    is_eventful = _settles_inside(world, now, open_ms, account.positions.shape[0])
    # margin that suffices at every adverse extreme suffices at the open and at the close
    is_eventful = is_eventful or not nothing_happens(account, world, fine)
    if is_eventful and inside_bar(account, world, now, fine, open_ms, scratch):
        return True
    if (
        may_rest(world)
        and fill_inside(account, world, now, fine, number, AFTER_THE_WAY)
        and live_through(account, world, now, fine, scratch)
    ):
        return True
    if world.rules.is_trailing > 0.0:
        trail_stops(account, world, fine)
    is_settled = settle_at_close(account, world, now, fine, open_ms)
    is_changed = is_eventful or is_settled or may_rest(world)
    return (
        is_changed
        and is_short_at(account, world, fine, CLOSE)
        and liquidate_if_short(account, world, now, fine, STRAIGHT, 0, 1.0)
    )


@kernel
def _settles_inside(world, now, open_ms, n_contracts):  # type: ignore[no-untyped-def]
    """Whether a settlement lies strictly inside the finer bar that opens at ``open_ms``."""
    for asset in range(n_contracts):
        for stamp in range(world.market.stamp_start[asset, now], world.market.stamp_start[asset, now + 1]):
            if open_ms < world.market.stamp_time_ms[stamp] < open_ms + world.market.fine_ms:
                return True
    return False


@kernel
def settle_at_close(account, world, now, fine, open_ms):  # type: ignore[no-untyped-def]
    """Settlements of the closing instant, on what is held then; returns whether there were any."""
    is_any = False
    for asset in range(account.positions.shape[0]):
        for stamp in range(world.market.stamp_start[asset, now], world.market.stamp_start[asset, now + 1]):
            if (
                account.positions[asset, QUANTITY] != 0.0
                and world.market.stamp_time_ms[stamp] == open_ms + world.market.fine_ms
            ):
                is_any = True
                settle_funding(
                    account,
                    asset,
                    world.market.fine_mark[fine, asset, CLOSE],
                    world.market.stamp_rate[stamp] * world.rules.funding_multiplier,
                    contract_rules(world.contracts[asset]),
                )
    return is_any


@cold_kernel
def _settle_inside(account, world, now, fine, open_ms, is_cost):  # type: ignore[no-untyped-def]
    """Settlements strictly inside the bar: those that cost with a margin check after each, or those that pay.

    Returns:
        Whether the cross positions were liquidated whole.
    """
    elapsed = _next_stamp(world, now, account.positions.shape[0], open_ms)
    while elapsed < world.market.fine_ms:
        share = elapsed / world.market.fine_ms
        is_any = False
        for asset in range(account.positions.shape[0]):
            contract = contract_rules(world.contracts[asset])
            for stamp in range(
                world.market.stamp_start[asset, now], world.market.stamp_start[asset, now + 1]
            ):
                rate = world.market.stamp_rate[stamp] * world.rules.funding_multiplier
                flow = account.positions[asset, QUANTITY] * rate
                is_now = world.market.stamp_time_ms[stamp] == open_ms + elapsed
                if is_now and flow != 0.0 and (flow > 0.0) == is_cost:
                    mark = mark_on_way(world, fine, asset, STRAIGHT, 0, share, 1.0, contract.is_inverse)
                    settle_funding(account, asset, mark, rate, contract)
                    is_any = True
        if is_any and is_cost and liquidate_if_short(account, world, now, fine, STRAIGHT, 0, share):
            return True
        elapsed += _next_stamp(world, now, account.positions.shape[0], open_ms + elapsed)
    return False


@kernel
def _next_stamp(world, now, n_contracts, after_ms):  # type: ignore[no-untyped-def]
    """Milliseconds from an instant to the bar's next settlement of any contract; beyond the bar if none."""
    soonest = world.market.bar_ms + 1
    for asset in range(n_contracts):
        for stamp in range(world.market.stamp_start[asset, now], world.market.stamp_start[asset, now + 1]):
            wait = world.market.stamp_time_ms[stamp] - after_ms
            if 0 < wait < soonest:
                soonest = wait
    return soonest


@cold_kernel
def inside_bar(account, world, now, fine, open_ms, scratch):  # type: ignore[no-untyped-def]
    """Everything between the open and the close, adverse side first.

    Settlements strictly inside the bar that cost are charged before the adverse extreme, those that pay are
    credited after it and only on a position that survived: the path inside the bar is unknown, so the order
    that hurts is taken.

    Returns:
        Whether the cross positions were liquidated whole.
    """
    if liquidate_if_short(account, world, now, fine, STRAIGHT, 0, 0.0):
        return True
    is_stopped = False
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
        if opens_beyond_stop(account.positions[asset], bar, world.rules):
            take(
                account,
                asset,
                -account.positions[asset, QUANTITY],
                bar.last_open,
                bar,
                world.market.mark[now, asset, CLOSE],
                STOP,
                contract,
                world.rules,
            )
            account.ledger[_STOPPED] = 1.0
            is_stopped = True
    if is_stopped and liquidate_if_short(account, world, now, fine, STRAIGHT, 0, 0.0):
        return True
    if _settle_inside(account, world, now, fine, open_ms, True):
        return True
    if live_through(account, world, now, fine, scratch):
        return True
    return _settle_inside(account, world, now, fine, open_ms, False)


@cold_kernel
def _sell_all(account, world, now, fine):  # type: ignore[no-untyped-def]
    """Close every position at the last price of the bar, as a taker."""
    for asset in range(account.positions.shape[0]):
        quantity = account.positions[asset, QUANTITY]
        # what does not trade cannot be sold
        if quantity != 0.0 and world.market.fine_volume[fine, asset] > 0.0:
            contract = contract_rules(world.contracts[asset])
            bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
            mark_close = world.market.mark[now, asset, CLOSE]
            take(account, asset, -quantity, bar.last_close, bar, mark_close, ORDER, contract, world.rules)


@kernel
def _keep_level(order, quantity):  # type: ignore[no-untyped-def]
    """A ladder level that was not reached does not stand; a position that something closed stands at 0."""
    if order[ORDER_REASON] != 0.0:
        order[ORDER_ASKED] = math.nan
    elif quantity == 0.0:
        order[ORDER_ASKED] = 0.0


@kernel
def close_books(account, world, equity_before, now, is_over):  # type: ignore[no-untyped-def]
    """Mark to the mark close, fill the ledgers' closing columns, reward and end.

    A bar that reaches midnight (UTC) closes the day, so the next decision already sees the new day.

    Args:
        equity_before: settle currency, at the close before.
        is_over: whether the cross positions were liquidated whole.

    Returns:
        As :func:`step_account`.
    """
    open_ms = world.market.open_time_ms[now]
    is_midnight = open_ms // DAY_MS != (open_ms + world.market.bar_ms) // DAY_MS
    # an order or a stop filled beyond bankruptcy: nobody owes the exchange more than the margin posted
    forgive_debt(account, world)
    equity = account.wallet[WALLET]
    for asset in range(account.positions.shape[0]):
        if account.positions[asset, QUANTITY] != 0.0:
            mark = world.market.mark[now, asset, CLOSE]
            equity += unrealised_profit(account.positions[asset], mark, world.contracts[asset, 0])
            account.positions[asset, BARS_HELD] += 1.0
    peak_before = account.wallet[PEAK_EQUITY]
    account.wallet[EQUITY] = equity
    account.wallet[PEAK_EQUITY] = max(account.wallet[PEAK_EQUITY], equity)
    account.wallet[DAY_LOW_EQUITY] = min(account.wallet[DAY_LOW_EQUITY], equity)
    if is_midnight:
        account.wallet[DAY_EQUITY] = equity
        account.wallet[DAY_LOW_EQUITY] = equity
        account.wallet[ACCRUED_FUNDING] = 0.0
    account.wallet[LIQUIDATED] = account.ledger[_LIQUIDATED]
    costs = account.ledger[_FEES] + account.ledger[_SPREAD] + account.ledger[_IMPACT]
    account.wallet[RECENT_COSTS] = COST_DECAY * account.wallet[RECENT_COSTS] + costs / max(
        equity_before, 1e-9
    )
    base = sizing_base(account.wallet, world.rules)
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        exposure = exposure_of(account.positions[asset], world.market.mark[now, asset, CLOSE], base, contract)
        account.holdings[asset, _ROW_POSITION] = account.positions[asset, QUANTITY]
        account.holdings[asset, _ROW_EXPOSURE] = exposure
        account.holdings[asset, _REASON] = account.orders[asset, ORDER_REASON]
        if world.rules.action == LADDER:
            _keep_level(account.orders[asset], account.positions[asset, QUANTITY])
        account.ledger[_EXPOSURE] += exposure
        account.ledger[_GROSS] += abs(exposure)
    account.ledger[_POSITION] = account.positions[0, QUANTITY]
    account.ledger[_FIRST_FILL_PRICE] = account.holdings[0, _FILL_PRICE]
    drawdown = 1.0 - equity / account.wallet[PEAK_EQUITY]
    account.ledger[_EQUITY] = equity
    account.ledger[_EQUITY_BEFORE] = equity_before
    account.ledger[_DRAWDOWN] = drawdown
    is_terminated = is_over or drawdown >= world.rules.max_drawdown
    if world.rules.is_unlimited == 0.0 or world.rules.is_fixed_size == 0.0:
        # an account of a fixed size without limits may owe and go on
        is_terminated = is_terminated or equity <= 0.0
    return pay(account, world, equity_before, peak_before, now), is_terminated
