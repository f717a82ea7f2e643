"""How working orders meet a bar: at its open, in slices, or resting until the bar trades through them."""

from __future__ import annotations

import math

from perpgym.data.bars import CLOSE, OPEN
from perpgym.envs.account import (
    ORDER_AGE,
    ORDER_DONE,
    ORDER_FRESH,
    ORDER_HELD,
    ORDER_LIMIT,
    ORDER_QUANTITY,
    ORDER_REASON,
    ORDER_SIZE,
    ORDER_STOP,
    ORDER_STYLE,
    ORDER_WORKING,
    QUANTITY,
    STOP_DISTANCE,
    give_stop_distance,
    on_lot_grid,
)
from perpgym.envs.arrays import contract_rules, read_bar
from perpgym.envs.compile import cold_kernel, kernel
from perpgym.envs.decision import HEADS
from perpgym.envs.execution import quote, to_lots
from perpgym.envs.fills import ORDER, maker_cost_rate, take_at, take_priced, taker_cost_rate
from perpgym.envs.orders import (
    BRACKET,
    ICEBERG,
    LIMIT,
    MARGIN,
    MARKET,
    NOT_REACHED,
    TOO_SMALL,
    TWAP,
    VWAP,
    WOULD_CROSS,
    admitted_by_margin,
    admitted_by_volume,
    is_reduce_only,
    market_fill_price,
    sliced_fill_price,
    volume_beyond,
)
from perpgym.envs.spaces import CONTRACT_LEDGER

_FILL_PRICE = CONTRACT_LEDGER["fill_price"]

# fills inside a bar that enlarge a position come before the way of prices, those that reduce or turn it
# after: the way is walked with the larger of the positions before and after
BEFORE_THE_WAY, AFTER_THE_WAY = range(2)


@kernel
def has_orders(account):  # type: ignore[no-untyped-def]
    """Whether anything is left to fill."""
    is_any = False
    for asset in range(account.orders.shape[0]):
        is_any = is_any or account.orders[asset, ORDER_QUANTITY] != 0.0
    return is_any


@kernel
def may_rest(world):  # type: ignore[no-untyped-def]
    """Whether orders of this account can fill inside a bar, not only at its open."""
    return world.rules.style != MARKET or world.rules.action == HEADS


@kernel
def is_at_open(order, market):  # type: ignore[no-untyped-def]
    """Whether an order meets the book at the open of a (finer) bar: at the market, or one slice of it."""
    style = order[ORDER_STYLE]
    return style == MARKET or (style <= VWAP and market.fine_per_bar > 1)


@kernel
def has_arrived(order, world, number):  # type: ignore[no-untyped-def]
    """Whether an order is with the exchange when the finer bar ``number`` of its bar opens."""
    return order[ORDER_AGE] + number * world.market.fine_ms >= world.rules.latency_ms


@kernel
def begin_fine_bar(account):  # type: ignore[no-untyped-def]
    """What filled inside the bar before is fresh no more: stops and targets may count on it from here on."""
    for asset in range(account.positions.shape[0]):
        account.orders[asset, ORDER_FRESH] = 0.0


# in which turn an order fills at an open: what only closes frees margin for the rest, then what turns
_CLOSES, _TURNS, _OPENS = range(3)


@kernel
def _turn_of(held, quantity):  # type: ignore[no-untyped-def]
    if held * quantity >= 0.0:
        return _OPENS
    return _CLOSES if is_reduce_only(held, quantity) else _TURNS


@kernel
def send_orders(account, world, now, fine, number):  # type: ignore[no-untyped-def]
    """Orders at the open of the finer bar ``number`` of its bar; what closes goes first and frees margin."""
    market = world.market
    for asset in range(account.positions.shape[0]):
        order = account.orders[asset]
        # a position that a stop or a liquidation changed takes its order with it
        if account.positions[asset, QUANTITY] != order[ORDER_HELD]:
            order[ORDER_QUANTITY] = 0.0
    if may_rest(world):
        fill_inside(account, world, now, fine, number, BEFORE_THE_WAY)
    for turn in range(3):
        for asset in range(account.positions.shape[0]):
            quantity = account.orders[asset, ORDER_QUANTITY]
            if (
                quantity != 0.0
                and _turn_of(account.positions[asset, QUANTITY], quantity) == turn
                and account.orders[asset, ORDER_FRESH] == 0.0
                and has_arrived(account.orders[asset], world, number)
                and is_at_open(account.orders[asset], market)
            ):
                # once an open, also if the fill left the position flat
                account.orders[asset, ORDER_FRESH] = 1.0
                _take_at_open(account, world, asset, now, fine, number)
    for asset in range(account.positions.shape[0]):
        if is_at_open(account.orders[asset], market):
            account.orders[asset, ORDER_FRESH] = 0.0


@kernel
def prepare_stop(account, world, asset, now, quantity):  # type: ignore[no-untyped-def]
    """Before a fill that opens or adds: how far its stop will be."""
    position = account.positions[asset]
    if not is_reduce_only(position[QUANTITY], quantity):
        if position[QUANTITY] * quantity <= 0.0:
            # a stop of the other side has nothing left to protect
            position[STOP_DISTANCE] = 0.0
        sigma = world.market.sigma_per_bar[now - 1, asset]
        give_stop_distance(position, sigma, account.orders[asset, ORDER_STOP], world.rules)


@kernel
def _take_at_open(account, world, asset, now, fine, number):  # type: ignore[no-untyped-def]
    """Take what is due of one order at the open of bar ``fine``."""
    market, order = world.market, account.orders[asset]
    due = order[ORDER_QUANTITY]
    if order[ORDER_STYLE] != MARKET and number + 1 < market.fine_per_bar:
        share = market.fine_share[fine, asset]
        if order[ORDER_STYLE] == TWAP:
            share = 1.0 / (market.fine_per_bar - number)
        due = to_lots(due * share, contract_rules(world.contracts[asset]))
    take_due(account, world, asset, now, fine, due, market.fine_last[fine, asset, OPEN])


@kernel
def take_due(account, world, asset, now, fine, due, reference):  # type: ignore[no-untyped-def]
    """Take ``due`` of the order in its row from ``reference``, as far as volume and margin admit.

    Args:
        due: signed, at most what is left of the order.
        reference: quote, the last price at that moment.
    """
    contract = contract_rules(world.contracts[asset])
    market, rules, order = world.market, world.rules, account.orders[asset]
    bar = read_bar(market, now, fine, asset, contract.is_inverse)
    most, reason = admitted_by_volume(due, bar.volume, bar, contract, rules)
    touch, price = market_fill_price(account, asset, reference, most, bar, contract, rules)
    fee_rate = taker_cost_rate(account, most, reference, contract, rules)
    quantity, cut = admitted_by_margin(
        account, world, fine, asset, most, most, price, fee_rate, bar, contract
    )
    if quantity != most:
        touch, price = market_fill_price(account, asset, reference, quantity, bar, contract, rules)
    is_refused = (cut & (MARGIN | BRACKET)) != 0
    is_market = order[ORDER_STYLE] == MARKET
    is_last_try = is_market and (rules.carries_remainder == 0.0 or (cut & TOO_SMALL) != 0)
    keep_left(order, quantity, reason | cut, is_refused or is_last_try, contract)
    if quantity != 0.0:
        prepare_stop(account, world, asset, now, quantity)
        mark_close = market.mark[now, asset, CLOSE]
        take_priced(
            account, asset, quantity, reference, touch, price, bar, mark_close, ORDER, contract, rules
        )
        note_price(account, asset, quantity, price)
        order[ORDER_HELD] = account.positions[asset, QUANTITY]


@kernel
def keep_left(order, quantity, reason, is_dropped, contract):  # type: ignore[no-untyped-def]
    """After a part of an order filled, or none of it: what is left of it, and why it is not whole."""
    left = on_lot_grid(order[ORDER_QUANTITY] - quantity, order[ORDER_QUANTITY], contract)
    # an order that filled whole in the end was cut by nothing
    order[ORDER_REASON] = 0.0 if left == 0.0 else int(order[ORDER_REASON]) | reason
    order[ORDER_QUANTITY] = 0.0 if is_dropped else left


@kernel
def note_price(account, asset, quantity, price):  # type: ignore[no-untyped-def]
    """Mean price of what an order filled in this bar."""
    order, row = account.orders[asset], account.holdings[asset]
    done = order[ORDER_DONE]
    order[ORDER_DONE] = done + abs(quantity)
    row[_FILL_PRICE] = (
        (row[_FILL_PRICE] * done + price * abs(quantity)) / order[ORDER_DONE] if done > 0.0 else price
    )


@cold_kernel
def fill_inside(account, world, now, fine, number, phase):  # type: ignore[no-untyped-def]
    """Fill sliced or resting orders inside a bar.

    Returns:
        Whether a position turned to the other side, so that the way has to be walked for the new one too.
    """
    has_turned = False
    for asset in range(account.positions.shape[0]):
        order, held = account.orders[asset], account.positions[asset, QUANTITY]
        if order[ORDER_QUANTITY] == 0.0 or order[ORDER_FRESH] > 0.0 or is_at_open(order, world.market):
            continue
        if not has_arrived(order, world, number):
            continue
        if held != order[ORDER_HELD]:
            order[ORDER_QUANTITY] = 0.0
        elif (held * order[ORDER_QUANTITY] >= 0.0) == (phase == BEFORE_THE_WAY):
            if order[ORDER_STYLE] >= LIMIT:
                fill_resting(account, world, asset, now, fine, number)
            else:
                _fill_slices(account, world, asset, now, fine)
            order[ORDER_HELD] = account.positions[asset, QUANTITY]
            has_turned = has_turned or account.positions[asset, QUANTITY] * held < 0.0
    return has_turned


@kernel
def _fill_slices(account, world, asset, now, fine):  # type: ignore[no-untyped-def]
    """Slices along a bar that nothing finer resolves."""
    contract, order = contract_rules(world.contracts[asset]), account.orders[asset]
    bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
    wanted = order[ORDER_QUANTITY]
    most, reason = admitted_by_volume(wanted, bar.volume, bar, contract, world.rules)
    reference, touch, price = sliced_fill_price(account, asset, most, bar, contract, world.rules)
    fee_rate = taker_cost_rate(account, most, reference, contract, world.rules)
    quantity, cut = admitted_by_margin(
        account, world, fine, asset, most, most, price, fee_rate, bar, contract
    )
    if quantity != most:
        reference, touch, price = sliced_fill_price(account, asset, quantity, bar, contract, world.rules)
    keep_left(order, quantity, reason | cut, cut != 0, contract)
    if quantity != 0.0:
        prepare_stop(account, world, asset, now, quantity)
        order[ORDER_FRESH] = 1.0
        mark_close = world.market.mark[now, asset, CLOSE]
        take_priced(
            account, asset, quantity, reference, touch, price, bar, mark_close, ORDER, contract, world.rules
        )
        note_price(account, asset, quantity, price)


@kernel
def fill_resting(account, world, asset, now, fine, number):  # type: ignore[no-untyped-def]
    """A post-only order: refused if it would take on arrival, filled as a maker by what trades through it."""
    contract, order = contract_rules(world.contracts[asset]), account.orders[asset]
    bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
    wanted, limit = order[ORDER_QUANTITY], order[ORDER_LIMIT]
    side = 1.0 if wanted > 0.0 else -1.0
    is_arrival = not has_arrived(order, world, number - 1)
    touch = quote(bar.last_open, world.rules.half_spread, contract, side)
    if is_arrival and side * (limit - touch) >= 0.0:
        order[ORDER_REASON] = int(order[ORDER_REASON]) | WOULD_CROSS
        order[ORDER_QUANTITY] = 0.0
        return
    volume = volume_beyond(wanted, limit, bar, contract)
    if volume == 0.0:
        order[ORDER_REASON] = int(order[ORDER_REASON]) | NOT_REACHED
        return
    most, reason = admitted_by_volume(wanted, volume, bar, contract, world.rules)
    fee_rate = maker_cost_rate(account, most, limit, contract, world.rules)
    ordered = order[ORDER_SIZE]
    quantity, cut = admitted_by_margin(
        account, world, fine, asset, most, ordered, limit, fee_rate, bar, contract
    )
    if order[ORDER_STYLE] == ICEBERG and quantity != wanted:
        # a clip that is not used up still shows: only whole clips have been refilled
        clip = max(abs(ordered) * world.rules.iceberg_clip, contract.lot_size)
        clips = math.floor(abs(quantity) / clip + 1e-9)
        quantity = to_lots(side * clips * clip, contract)
    # what margin, a bracket or the smallest order refused is not tried again
    keep_left(order, quantity, reason | cut, cut != 0, contract)
    if quantity != 0.0:
        prepare_stop(account, world, asset, now, quantity)
        order[ORDER_FRESH] = 1.0
        mark_close = world.market.mark[now, asset, CLOSE]
        take_at(
            account,
            asset,
            quantity,
            limit,
            maker_cost_rate(account, quantity, limit, contract, world.rules),
            mark_close,
            ORDER,
            contract,
            world.rules,
        )
        note_price(account, asset, quantity, limit)


@kernel
def carry_orders(account, world):  # type: ignore[no-untyped-def]
    """At the end of a bar: keep what is left of the orders, or drop it; what is on its way stays there."""
    if world.rules.carries_remainder == 0.0 and world.rules.latency_ms == 0.0:
        return
    for asset in range(account.positions.shape[0]):
        order = account.orders[asset]
        is_on_its_way = not has_arrived(order, world, world.market.fine_per_bar - 1)
        is_kept = account.positions[asset, QUANTITY] == order[ORDER_HELD] and (
            is_on_its_way or world.rules.carries_remainder > 0.0
        )
        order[ORDER_WORKING] = order[ORDER_QUANTITY] if is_kept else 0.0
        order[ORDER_AGE] += world.market.bar_ms
