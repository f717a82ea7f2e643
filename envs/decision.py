"""From an action to wanted orders: overlay and sizing, at the close and on nothing that comes later."""

from __future__ import annotations

import math

from perpgym.data.bars import CLOSE
from perpgym.envs.account import (
    BARS_HELD,
    DAY_EQUITY,
    DAY_LOW_EQUITY,
    EQUITY,
    ORDER_AGE,
    ORDER_ASKED,
    ORDER_DONE,
    ORDER_HELD,
    ORDER_LIMIT,
    ORDER_QUANTITY,
    ORDER_REASON,
    ORDER_SIZE,
    ORDER_STOP,
    ORDER_STYLE,
    ORDER_WORKING,
    PEAK_EQUITY,
    QUANTITY,
    sizing_base,
)
from perpgym.envs.arrays import contract_rules
from perpgym.envs.compile import kernel
from perpgym.envs.execution import to_lots, to_tick
from perpgym.envs.margin import worth
from perpgym.envs.orders import LIMIT, MARKET
from perpgym.envs.risk.overlay import NOTIONAL, TIME_STOP, admitted_exposure

# kinds of action, in the order of envs.actions.ACTION_KINDS
TARGET, BAND, LADDER, HEADS = range(4)
# the first number of a contract's ``heads``, in the order of envs.actions.DECISIONS; size, stop, style follow
HOLD, LONG, SHORT, FLAT = range(4)


@kernel
def wanted_exposure(account, world, action, asset, exposure):  # type: ignore[no-untyped-def]
    """The exposure that an action asks for on one contract, given the present one.

    ``target``: a * max_exposure. ``band``: x' = clip(x, c - w, c + w), so holding inside the band is free.
    ``ladder``: the level, or what there is where the level is the one that stands. ``heads``: the size, long
    or short; nothing; or what there is.
    """
    rules, levels = world.rules, world.choices.levels
    if rules.action == TARGET:
        return min(1.0, max(-1.0, float(action[asset]))) * rules.max_exposure
    if rules.action == BAND:
        centre = min(1.0, max(-1.0, float(action[2 * asset]))) * rules.max_exposure
        width = 0.5 * (min(1.0, max(-1.0, float(action[2 * asset + 1]))) + 1.0) * rules.max_exposure
        return min(centre + width, max(centre - width, exposure))
    if rules.action == LADDER:
        level = levels[int(action[asset])]
        return exposure if level == account.orders[asset, ORDER_ASKED] else level
    decision = int(action[4 * asset])
    size = levels[int(action[4 * asset + 1])]
    if decision == HOLD:
        return exposure
    if decision == FLAT:
        return 0.0
    return size if decision == LONG else -size


@kernel
def _remember_level(order, level, target):  # type: ignore[no-untyped-def]
    """A level stands once it is asked for whole; one that a limit shrank does not."""
    if level != order[ORDER_ASKED]:
        order[ORDER_ASKED] = level if target == level else math.nan


@kernel
def _describe_order(order, world, action, asset, quantity, is_forced, now, contract):  # type: ignore[no-untyped-def]
    """How a new order reaches the book, its stop, where it rests; what a limit forces goes at the market."""
    rules = world.rules
    order[ORDER_QUANTITY] = order[ORDER_SIZE] = quantity
    order[ORDER_AGE] = 0.0
    order[ORDER_STYLE], order[ORDER_STOP] = rules.style, 0.0
    if rules.action == HEADS:
        order[ORDER_STOP] = world.choices.stops[int(action[4 * asset + 2])]
        order[ORDER_STYLE] = world.choices.styles[int(action[4 * asset + 3])]
    if is_forced:
        order[ORDER_STYLE] = MARKET
    if quantity != 0.0 and order[ORDER_STYLE] >= LIMIT:
        order[ORDER_LIMIT] = limit_price(quantity, world.market.last[now - 1, asset, CLOSE], contract, rules)


@kernel
def wanted_quantity(position, exposure, base, mark_close, contract):  # type: ignore[no-untyped-def]
    """The order that moves the position to ``exposure``, in whole lots towards zero.

    Args:
        exposure: signed notional over ``base``, after the overlay.
        base: settle currency, of an exposure of 1.
        mark_close: quote, of the bar that has just closed: sizing never sees the next open.
    """
    held = position[QUANTITY]
    if exposure == 0.0:
        return -held
    unit = abs(worth(mark_close, contract.is_inverse))
    return to_lots(exposure * base / unit - held, contract)


@kernel
def limit_price(quantity, last_close, contract, rules):  # type: ignore[no-untyped-def]
    """Where a resting order is placed: ``limit_offset`` behind the last close, on the tick away from it."""
    side = 1.0 if quantity > 0.0 else -1.0
    return to_tick(last_close * (1.0 - side * rules.limit_offset), contract, -side)


@kernel
def exposure_of(position, mark_close, base, contract):  # type: ignore[no-untyped-def]
    """Signed notional over equity, or what else is its base."""
    return exposure_of_quantity(position[QUANTITY], mark_close, base, contract)


@kernel
def exposure_of_quantity(quantity, mark_close, base, contract):  # type: ignore[no-untyped-def]
    """Signed notional over equity, or what else is its base."""
    if base <= 0.0 or quantity == 0.0:
        return 0.0
    return quantity * abs(worth(mark_close, contract.is_inverse)) / base


@kernel
def exposure_caps(wallet, rules):  # type: ignore[no-untyped-def]
    """Largest gross exposure, and the bit of the limit that sets it."""
    if rules.is_unlimited > 0.0:
        return math.inf, 0
    equity, base = wallet[EQUITY], sizing_base(wallet, rules)
    cap, bit = admitted_exposure(
        equity, wallet[PEAK_EQUITY], wallet[DAY_EQUITY], wallet[DAY_LOW_EQUITY], rules.max_leverage,
        rules.max_daily_loss, rules.drawdown_start, rules.max_drawdown,
    )  # fmt: skip
    return cap * equity / base if base != equity else cap, bit


@kernel
def single_exposure_cap(wallet, mark_close, contract, rules):  # type: ignore[no-untyped-def]
    """Largest exposure of one contract: ``max_notional`` is quote, whatever the contract settles in."""
    if rules.is_unlimited > 0.0:
        return math.inf
    if wallet[EQUITY] <= 0.0:
        return 0.0
    in_settle = rules.max_notional / mark_close if contract.is_inverse > 0.0 else rules.max_notional
    return in_settle / sizing_base(wallet, rules)


@kernel
def is_overdue(position, rules):  # type: ignore[no-untyped-def]
    """Whether the time stop closes a position now, whatever the agent wants."""
    return position[QUANTITY] != 0.0 and position[BARS_HELD] >= rules.max_bars_held


@kernel
def has_arrived(order, world, number):  # type: ignore[no-untyped-def]
    """Whether an order is with the exchange when the finer bar ``number`` of its bar opens."""
    return order[ORDER_AGE] + number * world.market.fine_ms >= world.rules.latency_ms


@kernel
def is_on_its_way(order, world):  # type: ignore[no-untyped-def]
    """Whether an order that was sent before has not met the book: it can be neither replaced nor recalled.

    At the close before a bar; one that arrives at the open of that bar has not met the book.
    """
    return order[ORDER_WORKING] != 0.0 and not has_arrived(order, world, -1)


@kernel
def decide(account, world, action, now):  # type: ignore[no-untyped-def]
    """From action to wanted orders, at the close before bar ``now``; nothing of that bar is read.

    The limits on leverage, daily loss and drawdown hold for gross exposure, and shrink every wish alike; the
    limit on notional holds by contract. While an order is on its way nothing else is sent for its contract,
    whoever decides it.

    Returns:
        Bits of the limits that changed the action.
    """
    base = sizing_base(account.wallet, world.rules)
    cap, bit = exposure_caps(account.wallet, world.rules)
    wanted_gross, held_gross = 0.0, 0.0
    changed = 0
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        mark = world.market.mark[now - 1, asset, CLOSE]
        # what is still being worked counts as held, so that repeating a target stacks nothing
        coming = account.positions[asset, QUANTITY] + account.orders[asset, ORDER_WORKING]
        exposure = exposure_of_quantity(coming, mark, base, contract)
        wish, is_open = exposure, not is_on_its_way(account.orders[asset], world)
        # what does not trade, or is not listed yet, is kept: its action must not shrink the others'
        if is_open and world.market.volume[now - 1, asset] > 0.0:
            wish = wanted_exposure(account, world, action, asset, exposure)
        if is_open and is_overdue(account.positions[asset], world.rules):
            changed |= TIME_STOP
            wish = 0.0
        single_cap = single_exposure_cap(account.wallet, mark, contract, world.rules)
        if is_open and abs(wish) > single_cap:
            wish = math.copysign(single_cap, wish)
            if single_cap < cap:
                changed |= NOTIONAL
        account.orders[asset, ORDER_QUANTITY] = wish
        account.orders[asset, ORDER_REASON] = exposure  # kept for the second pass
        wanted_gross += abs(wish)
        held_gross += abs(exposure)
    scale = 1.0
    if wanted_gross > cap:
        scale = cap / wanted_gross
        changed |= bit
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        order = account.orders[asset]
        mark = world.market.mark[now - 1, asset, CLOSE]
        held = account.positions[asset, QUANTITY]
        exposure = order[ORDER_REASON]
        target = order[ORDER_QUANTITY] * scale
        is_bound = is_on_its_way(order, world)
        # a decision that keeps what there is keeps what is being worked too
        order[ORDER_QUANTITY] = order[ORDER_WORKING]
        order[ORDER_WORKING] = order[ORDER_DONE] = order[ORDER_REASON] = 0.0
        order[ORDER_HELD] = held
        if is_bound:
            continue
        if world.rules.action == LADDER:
            _remember_level(order, world.choices.levels[int(action[asset])], target)
        single_cap = single_exposure_cap(account.wallet, mark, contract, world.rules)
        is_beyond = abs(exposure) > single_cap or held_gross > cap
        is_timed_out = is_overdue(account.positions[asset], world.rules)
        if abs(target - exposure) <= world.rules.rebalance_threshold and not is_timed_out:
            if not is_beyond:
                continue
            # a limit is obeyed however small the excess
            order[ORDER_ASKED] = math.nan
            changed |= NOTIONAL if single_cap < cap else bit
        quantity = wanted_quantity(account.positions[asset], target, base, mark, contract)
        if world.rules.is_reduce_only > 0.0:
            quantity = closing_part(held, quantity)
        is_forced = is_timed_out or (is_beyond and abs(target) < abs(exposure))
        _describe_order(order, world, action, asset, quantity, is_forced, now, contract)
    return changed


@kernel
def closing_part(held, quantity):  # type: ignore[no-untyped-def]
    """What of an order closes; 0 of one that opens or adds."""
    if held * quantity >= 0.0:
        return 0.0
    return math.copysign(min(abs(held), abs(quantity)), quantity)
