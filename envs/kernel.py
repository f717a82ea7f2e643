"""The arithmetic that moves money: one account through one bar. Every env calls this and nothing else.

``envs/account.py`` holds the account and its fills, ``envs/orders.py`` the way from an action to an order,
``envs/margin.py`` and ``envs/execution.py`` the formulas. The rules and their sources are in
``docs/mechanics.md``; the order of events is its first section.
"""

from __future__ import annotations

import math

from perpgym.envs.account import (
    ACCRUED_FUNDING,
    BARS_HELD,
    DAY_EQUITY,
    DAY_LOW_EQUITY,
    ENTRY_PRICE,
    EQUITY,
    ISOLATED_WALLET,
    PEAK_EQUITY,
    QUANTITY,
    RECENT_COSTS,
    STOP_PRICE,
    TARGET_PRICE,
    WALLET,
    apply_fill,
    flatten,
    is_liquidated_at,
    margin_balance,
)
from perpgym.envs.compile import kernel
from perpgym.envs.execution import square_root_impact
from perpgym.envs.margin import bankruptcy_price, liquidation_price
from perpgym.envs.orders import decide, market_fill_price
from perpgym.envs.spaces import LEDGER

_EQUITY, _EQUITY_BEFORE = LEDGER["equity"], LEDGER["equity_before"]
_PRICE_PNL, _FUNDING, _FEES = LEDGER["price_pnl"], LEDGER["funding"], LEDGER["fees"]
_CLEARANCE, _SPREAD, _IMPACT = LEDGER["clearance"], LEDGER["spread"], LEDGER["impact"]
_INSURANCE, _TRADED, _EXPOSURE = LEDGER["insurance"], LEDGER["traded_notional"], LEDGER["exposure"]
_POSITION, _FILL_PRICE, _FILLS = LEDGER["position"], LEDGER["fill_price"], LEDGER["fills"]
_LIQUIDATED, _STOPPED, _FLOORED = LEDGER["liquidated"], LEDGER["stopped"], LEDGER["reward_floored"]
_DRAWDOWN = LEDGER["drawdown"]

DAY_MS = 86_400_000
# recent costs halve in a day of hourly bars
COST_DECAY = 0.5 ** (1.0 / 24.0)


@kernel
def take(wallet, position, ledger, quantity, reference, bar, rules):  # type: ignore[no-untyped-def]
    """A taker fill at half spread and impact from ``reference``; returns the fill price."""
    touch, price = market_fill_price(reference, quantity, bar, rules)
    ledger[_FEES] += apply_fill(wallet, position, quantity, price, rules.taker_rate, rules)
    ledger[_SPREAD] += abs(quantity) * abs(touch - reference)
    ledger[_IMPACT] += abs(quantity) * abs(price - touch)
    _record_fill(ledger, quantity, price, reference, bar)
    return price


@kernel
def _record_fill(ledger, quantity, price, reference, bar):  # type: ignore[no-untyped-def]
    ledger[_PRICE_PNL] += quantity * (bar.mark_close - reference)
    ledger[_TRADED] += abs(quantity) * price
    ledger[_FILLS] += 1.0


@kernel
def settle_funding(wallet, position, ledger, mark_price, rate, rules):  # type: ignore[no-untyped-def]
    """Move one settlement: a long pays when the rate is positive.

    Args:
        mark_price: quote, at the settlement.
        rate: fraction of notional, the funding multiplier included.
    """
    received = -position[QUANTITY] * mark_price * rate
    wallet[WALLET] += received
    wallet[ACCRUED_FUNDING] += received
    if rules.is_isolated > 0.0:
        position[ISOLATED_WALLET] += received
    ledger[_FUNDING] += received


@kernel
def liquidate(wallet, position, ledger, mark_price, bar, rules):  # type: ignore[no-untyped-def]
    """Close the whole position at ``mark_price`` less half spread and impact, never beyond bankruptcy.

    The clearance fee comes out of what remains of the margin balance; the insurance fund bears the rest of
    a fill beyond the bankruptcy price.
    """
    quantity, entry = position[QUANTITY], position[ENTRY_PRICE]
    size = abs(quantity)
    side = 1.0 if quantity > 0.0 else -1.0
    balance = margin_balance(wallet, position, rules)
    share = square_root_impact(quantity, bar.volume, bar.sigma_per_bar, rules.impact_coefficient)
    share = min(share, 0.5)
    market = mark_price * (1.0 - side * (rules.half_spread + share))
    bankruptcy = bankruptcy_price(balance, quantity, entry)
    price = max(market, bankruptcy) if side > 0.0 else min(market, bankruptcy)
    realised = quantity * (price - entry)
    clearance = min(rules.clearance_rate * size * price, max(balance + realised, 0.0))
    wallet[WALLET] += realised - clearance
    ledger[_SPREAD] += size * mark_price * rules.half_spread
    ledger[_IMPACT] += size * mark_price * share
    ledger[_INSURANCE] += size * abs(price - market)
    ledger[_CLEARANCE] += clearance
    ledger[_LIQUIDATED] = 1.0
    _record_fill(ledger, -quantity, price, mark_price, bar)
    flatten(position)


@kernel
def inside_bar(  # type: ignore[no-untyped-def]
    wallet,
    position,
    ledger,
    bar,
    brackets,
    rules,
    first_stamp,
    last_stamp,
    stamp_time_ms,
    stamp_rate,
    open_ms,
    bar_ms,
):
    """Everything between the open and the close, adverse side first.

    Settlements strictly inside the bar that cost are charged before the adverse extreme, those that pay are
    credited after it and only on a position that survived: the path inside the bar is unknown, so the order
    that hurts is taken.
    """
    if position[QUANTITY] == 0.0:
        return
    if is_liquidated_at(wallet, position, bar.mark_open, brackets, rules):
        liquidate(wallet, position, ledger, bar.mark_open, bar, rules)
        return
    if opens_beyond_stop(position, bar, rules):
        take(wallet, position, ledger, -position[QUANTITY], bar.last_open, bar, rules)
        ledger[_STOPPED] = 1.0
        return
    for stamp in range(first_stamp, last_stamp):
        rate = stamp_rate[stamp] * rules.funding_multiplier
        if position[QUANTITY] * rate > 0.0:
            mark = _mark_at(bar, stamp_time_ms[stamp] - open_ms, bar_ms)
            settle_funding(wallet, position, ledger, mark, rate, rules)
            if is_liquidated_at(wallet, position, mark, brackets, rules):
                liquidate(wallet, position, ledger, mark, bar, rules)
                return
    price_path(wallet, position, ledger, bar, brackets, rules)
    for stamp in range(first_stamp, last_stamp):
        rate = stamp_rate[stamp] * rules.funding_multiplier
        if position[QUANTITY] * rate < 0.0:
            mark = _mark_at(bar, stamp_time_ms[stamp] - open_ms, bar_ms)
            settle_funding(wallet, position, ledger, mark, rate, rules)


@kernel
def _mark_at(bar, elapsed_ms, bar_ms):  # type: ignore[no-untyped-def]
    """Mark price at an instant inside the bar: linear between its open and close."""
    return bar.mark_open + (bar.mark_close - bar.mark_open) * elapsed_ms / bar_ms


@kernel
def opens_beyond_stop(position, bar, rules):  # type: ignore[no-untyped-def]
    """Whether the bar opens at or beyond the stop-loss, in a market that trades."""
    side = 1.0 if position[QUANTITY] > 0.0 else -1.0
    trigger_open = bar.mark_open if rules.stop_on_mark > 0.0 else bar.last_open
    # a comparison with nan is false: no stop
    return bar.volume > 0.0 and side * (trigger_open - position[STOP_PRICE]) <= 0.0


@kernel
def stop_reference(stop, side, bar, rules):  # type: ignore[no-untyped-def]
    """Last price at the moment a stop-loss triggers inside the bar.

    A stop on the mark meets a last price that stands off by the basis; the basis of the open is assumed where
    it hurts, ignored where it would help, and the price is one that the bar traded.
    """
    if rules.stop_on_mark == 0.0:
        return stop
    at_basis = stop * bar.last_open / bar.mark_open
    worse = min(stop, at_basis) if side > 0.0 else max(stop, at_basis)
    return min(max(worse, bar.last_low), bar.last_high)


@kernel
def price_path(wallet, position, ledger, bar, brackets, rules):  # type: ignore[no-untyped-def]
    """Stop, liquidation and take-profit after the open: the adverse extreme, then the favourable one."""
    quantity = position[QUANTITY]
    is_long = quantity > 0.0
    side = 1.0 if is_long else -1.0
    mark_worst, mark_best = (bar.mark_low, bar.mark_high) if is_long else (bar.mark_high, bar.mark_low)
    last_worst, last_best = (bar.last_low, bar.last_high) if is_long else (bar.last_high, bar.last_low)
    on_mark = rules.stop_on_mark > 0.0
    trigger_worst, trigger_best = (mark_worst, mark_best) if on_mark else (last_worst, last_best)
    stop, target = position[STOP_PRICE], position[TARGET_PRICE]
    is_trading = bar.volume > 0.0
    # comparisons with nan are false: no stop, no target, no liquidation price
    liquidation = math.nan
    if is_liquidated_at(wallet, position, mark_worst, brackets, rules):
        balance = margin_balance(wallet, position, rules)
        liquidation = liquidation_price(balance, quantity, position[ENTRY_PRICE], brackets)
    is_stopped = is_trading and side * (trigger_worst - stop) <= 0.0
    if is_stopped and not side * (liquidation - stop) > 0.0:
        take(wallet, position, ledger, -quantity, stop_reference(stop, side, bar, rules), bar, rules)
        ledger[_STOPPED] = 1.0
    elif not math.isnan(liquidation):
        liquidate(wallet, position, ledger, liquidation, bar, rules)
    elif is_trading and side * (trigger_best - target) >= 0.0 and side * (last_best - target) >= 0.0:
        # the last price must trade there too: a mark that runs ahead of it pays nobody
        ledger[_FEES] += apply_fill(wallet, position, -quantity, target, rules.taker_rate, rules)
        _record_fill(ledger, -quantity, target, target, bar)
        ledger[_STOPPED] = 1.0


@kernel
def step_account(  # type: ignore[no-untyped-def]
    wallet, position, ledger, action, mark_before, bar, open_ms, bar_ms, brackets, rules,
    first_stamp, last_stamp, stamp_time_ms, stamp_rate,
):  # fmt: skip
    """One account through one bar, in the order of ``docs/mechanics.md``.

    Args:
        wallet: (WALLET_COLUMNS,) float64, in place.
        position: (POSITION_COLUMNS,) float64, in place.
        ledger: (len(LEDGER_COLUMNS),) float64, overwritten with what this step booked.
        action: (action_dim,) float32, decided at the close before ``bar``.
        mark_before: quote, mark close of the bar before.
        bar: the bar in which the order fills.
        open_ms, bar_ms: int64, its opening time and length.
        brackets: (B, 5) float64.
        rules: ``Rules``.
        first_stamp, last_stamp: the half-open range of settlements that the bar owns, in the two arrays.

    Returns:
        (reward, is_terminated): scaled log return floored as configured; cross liquidation or ruin.
    """
    ledger[:] = 0.0
    ledger[_FILL_PRICE] = math.nan
    equity_before = wallet[EQUITY]
    quantity = decide(wallet, position, ledger, action, mark_before, bar, rules)
    ledger[_PRICE_PNL] = position[QUANTITY] * (bar.mark_close - mark_before)
    if is_liquidated_at(wallet, position, bar.mark_open, brackets, rules):
        # the position is gone before the order could reach the book
        liquidate(wallet, position, ledger, bar.mark_open, bar, rules)
    else:
        if quantity != 0.0:
            ledger[_FILL_PRICE] = take(wallet, position, ledger, quantity, bar.last_open, bar, rules)
        close_stamp = last_stamp
        while close_stamp > first_stamp and stamp_time_ms[close_stamp - 1] >= open_ms + bar_ms:
            close_stamp -= 1
        inside_bar(
            wallet, position, ledger, bar, brackets, rules,
            first_stamp, close_stamp, stamp_time_ms, stamp_rate, open_ms, bar_ms,
        )  # fmt: skip
        for stamp in range(close_stamp, last_stamp):
            rate = stamp_rate[stamp] * rules.funding_multiplier
            settle_funding(wallet, position, ledger, bar.mark_close, rate, rules)
        if is_liquidated_at(wallet, position, bar.mark_close, brackets, rules):
            liquidate(wallet, position, ledger, bar.mark_close, bar, rules)
    is_midnight = open_ms // DAY_MS != (open_ms + bar_ms) // DAY_MS
    return close_books(wallet, position, ledger, equity_before, bar, is_midnight, rules)


@kernel
def close_books(wallet, position, ledger, equity_before, bar, is_midnight, rules):  # type: ignore[no-untyped-def]
    """Mark to the mark close, fill the ledger's closing columns, reward and end.

    A bar that reaches midnight (UTC) closes the day, so the next decision already sees the new day.
    """
    quantity = position[QUANTITY]
    if quantity == 0.0 and wallet[WALLET] < 0.0:
        # an order or a stop filled beyond bankruptcy: nobody owes the exchange more than the wallet
        ledger[_INSURANCE] -= wallet[WALLET]
        wallet[WALLET] = 0.0
    equity = wallet[WALLET]
    if quantity != 0.0:
        equity += quantity * (bar.mark_close - position[ENTRY_PRICE])
        position[BARS_HELD] += 1.0
    wallet[EQUITY] = equity
    wallet[PEAK_EQUITY] = max(wallet[PEAK_EQUITY], equity)
    wallet[DAY_LOW_EQUITY] = min(wallet[DAY_LOW_EQUITY], equity)
    if is_midnight:
        wallet[DAY_EQUITY] = equity
        wallet[DAY_LOW_EQUITY] = equity
        wallet[ACCRUED_FUNDING] = 0.0
    costs = ledger[_FEES] + ledger[_SPREAD] + ledger[_IMPACT]
    wallet[RECENT_COSTS] = COST_DECAY * wallet[RECENT_COSTS] + costs / max(equity_before, 1e-9)
    drawdown = 1.0 - equity / wallet[PEAK_EQUITY]
    ledger[_EQUITY] = equity
    ledger[_EQUITY_BEFORE] = equity_before
    ledger[_POSITION] = quantity
    ledger[_EXPOSURE] = quantity * bar.mark_close / equity if equity > 0.0 else 0.0
    ledger[_DRAWDOWN] = drawdown
    growth = equity / equity_before
    if growth < rules.reward_equity_floor:
        growth = rules.reward_equity_floor
        ledger[_FLOORED] = 1.0
    is_terminated = drawdown >= rules.max_drawdown or equity <= 0.0
    if ledger[_LIQUIDATED] > 0.0 and rules.is_isolated == 0.0:
        is_terminated = True
    log_return = math.log(growth)
    # second-order expansion of power utility over the bar: E g - (gamma - 1) / 2 E g^2
    penalty = 0.5 * (rules.reward_risk_aversion - 1.0) * log_return * log_return
    return rules.reward_scale * (log_return - penalty), is_terminated
