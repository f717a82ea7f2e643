"""The arithmetic that moves money: one account through one bar. Every env calls this and nothing else.

Money is quote, sizes are signed base units, rates are fractions, all float64. The rules and their sources are
in ``docs/mechanics.md``; the order of events is DESIGN's "One step, in order".
"""

from __future__ import annotations

import math
from typing import NamedTuple

from perpgym.data.bars import CLOSE, HIGH, LOW, OPEN
from perpgym.envs.compile import kernel
from perpgym.envs.execution import round_to_tick, round_toward_zero, square_root_impact, touch_price
from perpgym.envs.margin import bankruptcy_price, liquidation_price, maintenance_margin
from perpgym.envs.risk.overlay import admitted_exposure, apply_overlay
from perpgym.envs.spaces import LEDGER

# columns of a wallet row, one row an account
WALLET, EQUITY, PEAK_EQUITY, DAY_EQUITY, INITIAL_WALLET, ACCRUED_FUNDING, RECENT_COSTS = range(7)
WALLET_COLUMNS = 7
# columns of a position row, one row a contract of an account; prices are nan where there is none
QUANTITY, ENTRY_PRICE, ISOLATED_WALLET, STOP_PRICE, TARGET_PRICE, BARS_HELD = range(6)
POSITION_COLUMNS = 6

_EQUITY, _EQUITY_BEFORE = LEDGER["equity"], LEDGER["equity_before"]
_PRICE_PNL, _FUNDING, _FEES = LEDGER["price_pnl"], LEDGER["funding"], LEDGER["fees"]
_CLEARANCE, _SPREAD, _IMPACT = LEDGER["clearance"], LEDGER["spread"], LEDGER["impact"]
_INSURANCE, _TRADED, _EXPOSURE = LEDGER["insurance"], LEDGER["traded_notional"], LEDGER["exposure"]
_POSITION, _FILL_PRICE, _FILLS = LEDGER["position"], LEDGER["fill_price"], LEDGER["fills"]
_LIQUIDATED, _STOPPED, _FLOORED = LEDGER["liquidated"], LEDGER["stopped"], LEDGER["reward_floored"]
_OVERLAY, _DRAWDOWN = LEDGER["overlay"], LEDGER["drawdown"]

DAY_MS = 86_400_000
# recent costs halve in a day of hourly bars
COST_DECAY = 0.5 ** (1.0 / 24.0)


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
    max_leverage: float
    max_notional: float
    max_daily_loss: float
    drawdown_start: float


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
    wallet[INITIAL_WALLET] = initial_wallet
    _flatten(position)


@kernel
def _flatten(position):  # type: ignore[no-untyped-def]
    position[:] = 0.0
    position[STOP_PRICE] = math.nan
    position[TARGET_PRICE] = math.nan


@kernel
def give_position(wallet, position, exposure, mark_price, rules):  # type: ignore[no-untyped-def]
    """Start a flat account with a position entered at the mark, at no cost."""
    quantity = round_toward_zero(exposure * wallet[WALLET] / mark_price, rules.lot_size)
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
        _flatten(position)
        return fee
    position[QUANTITY] = total
    if held * total <= 0.0:
        position[ENTRY_PRICE] = price
        position[BARS_HELD] = 0.0
        position[ISOLATED_WALLET] = 0.0
    elif opened > 0.0:
        position[ENTRY_PRICE] = (abs(held) * entry + opened * price) / (abs(held) + opened)
    if rules.is_isolated > 0.0:
        position[ISOLATED_WALLET] += opened * price / rules.leverage
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


@kernel
def market_fill_price(reference, quantity, bar, rules):  # type: ignore[no-untyped-def]
    """Touch and fill price of a taker order against ``reference``, the last price at that moment."""
    side = 1.0 if quantity > 0.0 else -1.0
    touch = touch_price(reference, rules.half_spread, rules.tick_size, side)
    share = square_root_impact(quantity, bar.volume, bar.sigma_per_bar, rules.impact_coefficient)
    return touch, round_to_tick(touch + side * reference * min(share, 0.5), rules.tick_size, side)


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
    _flatten(position)


@kernel
def affordable_quantity(wallet, position, quantity, price, equity, rules):  # type: ignore[no-untyped-def]
    """Cut the opening part of an order to the initial margin and the fee that the account can pay.

    Cross: the whole position's initial margin must fit equity. Isolated: the opened part's must fit the free
    wallet, with what a closing part releases.
    """
    held = position[QUANTITY]
    total = held + quantity
    unit = price / rules.leverage + price * max(rules.taker_rate, 0.0)
    if rules.is_isolated > 0.0:
        is_flip = held * total < 0.0
        free = wallet[WALLET] - (0.0 if is_flip else position[ISOLATED_WALLET])
        if is_flip:
            free += held * (price - position[ENTRY_PRICE]) - abs(held) * price * max(rules.taker_rate, 0.0)
        base = 0.0 if is_flip else held
    else:
        free, base = equity, 0.0
    limit = abs(base) + max(free, 0.0) / unit
    if abs(total) <= limit or (held * quantity < 0.0 and abs(total) <= abs(held) and held * total >= 0.0):
        return quantity
    # never cut below flat: the closing part always goes through
    allowed = math.copysign(limit, total)
    if held * total >= 0.0 and abs(allowed) < abs(held):
        return 0.0
    return round_toward_zero(allowed - held, rules.lot_size)


@kernel
def order_quantity(wallet, position, exposure, mark_close, bar, rules):  # type: ignore[no-untyped-def]
    """The order that moves the account to ``exposure``, as the exchange would accept it; 0 for none.

    Args:
        exposure: signed notional over equity, after the overlay.
        mark_close: quote, of the bar that has just closed: sizing never sees the next open.
        bar: the bar in which the order fills.

    Returns:
        base, signed, in whole lots.
    """
    held = position[QUANTITY]
    equity = wallet[EQUITY]
    wanted = exposure * equity / mark_close - held
    if exposure == 0.0:
        wanted = -held
    quantity = wanted if exposure == 0.0 else round_toward_zero(wanted, rules.lot_size)
    quantity = math.copysign(min(abs(quantity), rules.max_quantity), quantity)
    most = round_toward_zero(rules.max_participation * bar.volume, rules.lot_size)
    quantity = math.copysign(min(abs(quantity), most), quantity)
    if not _is_reduce_only(held, quantity):
        price = bar.last_open * (1.0 + rules.half_spread)
        quantity = affordable_quantity(wallet, position, quantity, price, equity, rules)
    is_small = abs(quantity) < rules.min_quantity or abs(quantity) * bar.last_open < rules.min_notional
    return 0.0 if is_small and not _is_reduce_only(held, quantity) else quantity


@kernel
def _is_reduce_only(held, quantity):  # type: ignore[no-untyped-def]
    return held * quantity < 0.0 and abs(quantity) <= abs(held)


@kernel
def wanted_exposure(action, exposure, rules):  # type: ignore[no-untyped-def]
    """The exposure that an action asks for, given the present one.

    ``target``: a * max_exposure. ``band``: x' = clip(x, c - w, c + w), so holding inside the band is free.
    """
    centre = min(1.0, max(-1.0, action[0])) * rules.max_exposure
    if rules.is_band == 0.0:
        return centre
    width = 0.5 * (min(1.0, max(-1.0, action[1])) + 1.0) * rules.max_exposure
    return min(centre + width, max(centre - width, exposure))


@kernel
def decide(wallet, position, ledger, action, mark_close, bar, rules):  # type: ignore[no-untyped-def]
    """From action to order quantity, at the close before ``bar``."""
    equity = wallet[EQUITY]
    exposure = position[QUANTITY] * mark_close / equity if equity > 0.0 else 0.0
    cap, bit = admitted_exposure(
        equity,
        wallet[PEAK_EQUITY],
        wallet[DAY_EQUITY],
        rules.max_leverage,
        rules.max_notional,
        rules.max_daily_loss,
        rules.drawdown_start,
        rules.max_drawdown,
    )
    target, changed = apply_overlay(wanted_exposure(action, exposure, rules), cap, bit)
    ledger[_OVERLAY] = changed
    # a limit that flattens is obeyed however small the position
    is_forced = changed != 0 and target == 0.0 and exposure != 0.0
    if abs(target - exposure) <= rules.rebalance_threshold and not is_forced:
        return 0.0
    return order_quantity(wallet, position, target, mark_close, bar, rules)


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
def price_path(wallet, position, ledger, bar, brackets, rules):  # type: ignore[no-untyped-def]
    """Stop, liquidation and take-profit: the adverse extreme, then the favourable one."""
    quantity = position[QUANTITY]
    is_long = quantity > 0.0
    side = 1.0 if is_long else -1.0
    on_mark = rules.stop_on_mark > 0.0
    trigger_open = bar.mark_open if on_mark else bar.last_open
    trigger_low, trigger_high = (bar.mark_low, bar.mark_high) if on_mark else (bar.last_low, bar.last_high)
    trigger_worst, trigger_best = (trigger_low, trigger_high) if is_long else (trigger_high, trigger_low)
    mark_worst = bar.mark_low if is_long else bar.mark_high
    stop, target = position[STOP_PRICE], position[TARGET_PRICE]
    # comparisons with nan are false: no stop, no target, no liquidation price
    if side * (trigger_open - stop) <= 0.0:
        take(wallet, position, ledger, -quantity, bar.last_open, bar, rules)
        ledger[_STOPPED] = 1.0
        return
    liquidation = math.nan
    if is_liquidated_at(wallet, position, mark_worst, brackets, rules):
        balance = margin_balance(wallet, position, rules)
        liquidation = liquidation_price(balance, quantity, position[ENTRY_PRICE], brackets)
    if side * (trigger_worst - stop) <= 0.0 and not side * (liquidation - stop) > 0.0:
        take(wallet, position, ledger, -quantity, stop, bar, rules)
        ledger[_STOPPED] = 1.0
    elif not math.isnan(liquidation):
        liquidate(wallet, position, ledger, liquidation, bar, rules)
    elif side * (trigger_best - target) >= 0.0:
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
    equity = wallet[WALLET]
    if quantity != 0.0:
        equity += quantity * (bar.mark_close - position[ENTRY_PRICE])
        position[BARS_HELD] += 1.0
    wallet[EQUITY] = equity
    wallet[PEAK_EQUITY] = max(wallet[PEAK_EQUITY], equity)
    if is_midnight:
        wallet[DAY_EQUITY] = equity
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
    return rules.reward_scale * math.log(growth), is_terminated
