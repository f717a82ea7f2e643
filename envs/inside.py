"""Orders that fill inside a bar: resting until the way of prices comes to them, or in slices along it.

``envs/path.py`` walks the way and asks here what it meets; ``envs/matching.py`` has what meets the open.
"""

from __future__ import annotations

import math

from perpgym.data.bars import CLOSE
from perpgym.envs.account import (
    ORDER_ADDED,
    ORDER_FRESH,
    ORDER_HELD,
    ORDER_LIMIT,
    ORDER_QUANTITY,
    ORDER_REASON,
    ORDER_SIZE,
    ORDER_STYLE,
    QUANTITY,
    is_in_group,
)
from perpgym.envs.arrays import contract_rules, read_bar
from perpgym.envs.compile import cold_kernel, kernel
from perpgym.envs.execution import to_lots
from perpgym.envs.fills import ORDER, maker_cost_rate, take_at, take_priced, taker_cost_rate
from perpgym.envs.liquidation import NEVER, leg_prices, side_of
from perpgym.envs.matching import is_at_open, keep_left, note_price, prepare_stop, turn_of
from perpgym.envs.orders import (
    ICEBERG,
    LIMIT,
    NOT_REACHED,
    admitted_by_margin,
    admitted_by_volume,
    sliced_fill_price,
    volume_beyond,
)


@kernel
def may_fill(order, held, market):  # type: ignore[no-untyped-def]
    """Whether an order may still fill inside this bar, on what a stop or a liquidation left of its position.

    What opens or adds may, also on a position that is gone; what closes or turns one goes with it.
    """
    is_waiting = order[ORDER_QUANTITY] != 0.0 and order[ORDER_FRESH] == 0.0 and not is_at_open(order, market)
    return is_waiting and (held == order[ORDER_HELD] or order[ORDER_HELD] * order[ORDER_QUANTITY] >= 0.0)


@kernel
def is_reached(account, world, asset, now, fine):  # type: ignore[no-untyped-def]
    """Whether the bar trades through the price at which a contract's order rests."""
    order, contract = account.orders[asset], contract_rules(world.contracts[asset])
    if order[ORDER_STYLE] < LIMIT or not may_fill(order, account.positions[asset, QUANTITY], world.market):
        return False
    bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
    return volume_beyond(order[ORDER_QUANTITY], order[ORDER_LIMIT], bar, contract) > 0.0


@cold_kernel
def is_any_reached(account, world, now, fine):  # type: ignore[no-untyped-def]
    """Whether any order that rests meets its price in this bar."""
    is_any = False
    for asset in range(account.positions.shape[0]):
        is_any = is_any or is_reached(account, world, asset, now, fine)
    return is_any


@cold_kernel
def end_inside(account, world, now, fine):  # type: ignore[no-untyped-def]
    """After the way through a bar: slices along it that nothing finer resolves, and what was not reached.

    The position before has met the extremes of the bar by itself. Nobody knows what of the slices was there
    when they came, and what fills at the mean of open and close may not depend on it.
    """
    for turn in range(3):
        for asset in range(account.positions.shape[0]):
            order, held = account.orders[asset], account.positions[asset, QUANTITY]
            if (
                may_fill(order, held, world.market)
                and order[ORDER_STYLE] < LIMIT
                and turn_of(held, order[ORDER_QUANTITY]) == turn
            ):
                _fill_slices(account, world, asset, now, fine)
    for asset in range(account.positions.shape[0]):
        order = account.orders[asset]
        if order[ORDER_STYLE] >= LIMIT and order[ORDER_QUANTITY] != 0.0 and order[ORDER_FRESH] == 0.0:
            order[ORDER_REASON] = int(order[ORDER_REASON]) | NOT_REACHED


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
    order[ORDER_FRESH] = -1.0
    if quantity != 0.0:
        held = account.positions[asset, QUANTITY]
        prepare_stop(account, world, asset, now, quantity)
        mark_close = world.market.mark[now, asset, CLOSE]
        take_priced(
            account, asset, quantity, reference, touch, price, bar, mark_close, ORDER, contract, world.rules
        )
        note_price(account, asset, quantity, price)
        _note_added(order, held, account.positions[asset, QUANTITY])


@cold_kernel
def fill_resting(account, world, asset, now, fine):  # type: ignore[no-untyped-def]
    """A post-only order that the way of prices has reached: a maker's fill by what trades through it.

    Returns:
        Whether it turned the position to the other side.
    """
    contract, order = contract_rules(world.contracts[asset]), account.orders[asset]
    bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
    volume = volume_beyond(order[ORDER_QUANTITY], order[ORDER_LIMIT], bar, contract)
    return fill_through(account, world, asset, now, fine, volume)


@cold_kernel
def fill_through(account, world, asset, now, fine, volume):  # type: ignore[no-untyped-def]
    """The same where ``volume`` (base) is known to have traded through the order's price."""
    contract, order = contract_rules(world.contracts[asset]), account.orders[asset]
    bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
    wanted, limit, held = order[ORDER_QUANTITY], order[ORDER_LIMIT], account.positions[asset, QUANTITY]
    side = 1.0 if wanted > 0.0 else -1.0
    order[ORDER_FRESH] = -1.0
    if volume == 0.0:
        order[ORDER_REASON] = int(order[ORDER_REASON]) | NOT_REACHED
        return False
    if held != order[ORDER_HELD] and order[ORDER_HELD] * wanted < 0.0:
        # a stop on the way here took what the order was to close
        return False
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
    if quantity == 0.0:
        return False
    prepare_stop(account, world, asset, now, quantity)
    fee_rate = maker_cost_rate(account, quantity, limit, contract, world.rules)
    mark_close = world.market.mark[now, asset, CLOSE]
    take_at(account, asset, quantity, limit, fee_rate, mark_close, ORDER, contract, world.rules)
    note_price(account, asset, quantity, limit)
    _note_added(order, held, account.positions[asset, QUANTITY])
    return held * account.positions[asset, QUANTITY] < 0.0


@kernel
def _note_added(order, before, after):  # type: ignore[no-untyped-def]
    """What of a position was not there at the open: no target of this bar may count on it."""
    order[ORDER_HELD] = after
    is_same_side = before * after > 0.0
    if after != 0.0 and not (is_same_side and abs(after) <= abs(before)):
        order[ORDER_FRESH] = 1.0
        order[ORDER_ADDED] = after - before if is_same_side else after


@cold_kernel
def next_resting(account, world, group, now, fine, way, leg, begin):  # type: ignore[no-untyped-def]
    """The resting order of a group that a leg reaches first from ``begin`` on: (contract or -1, share).

    A price that the open has jumped over is reached at the open.
    """
    first, first_share = -1, 1.0
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        if not is_in_group(asset, group, contract) or not is_reached(account, world, asset, now, fine):
            continue
        bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
        limit = account.orders[asset, ORDER_LIMIT]
        buys = 1.0 if account.orders[asset, ORDER_QUANTITY] > 0.0 else -1.0
        side = side_of(account.positions[asset]) if account.positions[asset, QUANTITY] != 0.0 else buys
        start, end = leg_prices(bar, way, leg, side, False)
        share = NEVER
        if buys * (start - limit) <= 0.0:
            share = begin
        elif buys * (end - limit) <= 0.0:
            share = max(begin, (limit - start) / (end - start))
        if share <= 1.0 and (first < 0 or share < first_share):
            first, first_share = asset, share
    return first, first_share


@cold_kernel
def withdraw(account, world, group):  # type: ignore[no-untyped-def]
    """A liquidation takes the resting orders of its group with it."""
    for asset in range(account.positions.shape[0]):
        order = account.orders[asset]
        if order[ORDER_STYLE] >= LIMIT and is_in_group(asset, group, contract_rules(world.contracts[asset])):
            order[ORDER_QUANTITY] = 0.0
