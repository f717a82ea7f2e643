"""Liquidation: when a margin group falls short on a way through a bar, and what the exchange closes then.

Margin groups are the cross positions together, and each isolated position by itself. A *way* is the order in
which a bar's four prices are visited; between two of them worths move together, linearly.
"""

from __future__ import annotations

import math

from perpgym.data.bars import CLOSE, HIGH, LOW, OPEN
from perpgym.envs.account import (
    CROSS,
    ENTRY_PRICE,
    ISOLATED_WALLET,
    QUANTITY,
    WALLET,
    is_in_group,
    margin_balance,
    position_excess,
    unrealised_profit,
)
from perpgym.envs.arrays import contract_rules, read_bar
from perpgym.envs.compile import cold_kernel, kernel
from perpgym.envs.execution import to_lots
from perpgym.envs.fills import close_by_force
from perpgym.envs.insolvency import bear_rest
from perpgym.envs.margin import bracket_row, maintenance_margin, price_of, worth

_FLOOR, _MMR, _CUM = 0, 2, 3

# ways through a bar
LOWS_FIRST, HIGHS_FIRST, ADVERSE_FIRST, STRAIGHT = range(4)
NEVER = 2.0  # a share of a leg beyond its end: never


@kernel
def point(way, leg, side):  # type: ignore[no-untyped-def]
    """Which of a bar's four prices begins leg ``leg``; leg 3 is the end of the way.

    Args:
        side: of the position, for ``ADVERSE_FIRST``.
    """
    if leg == 0:
        return OPEN
    if leg == 3 or way == STRAIGHT:
        return CLOSE
    is_low_first = way == LOWS_FIRST or (way == ADVERSE_FIRST and side > 0.0)
    return LOW if is_low_first == (leg == 1) else HIGH


@kernel
def mark_on_way(world, fine, asset, way, leg, share, side, is_inverse):  # type: ignore[no-untyped-def]
    """Mark price after ``share`` of a leg."""
    start = world.market.fine_mark[fine, asset, point(way, leg, side)]
    end = world.market.fine_mark[fine, asset, point(way, leg + 1, side)]
    if share == 0.0 or start == end:
        return start
    if share == 1.0:
        return end
    first = worth(start, is_inverse)
    return price_of(first + share * (worth(end, is_inverse) - first), is_inverse)


@kernel
def leg_prices(bar, way, leg, side, on_mark):  # type: ignore[no-untyped-def]
    """Both ends of a leg, of the mark or of the last price."""
    start, end = point(way, leg, side), point(way, leg + 1, side)
    if on_mark:
        prices = (bar.mark_open, bar.mark_high, bar.mark_low, bar.mark_close)
    else:
        prices = (bar.last_open, bar.last_high, bar.last_low, bar.last_close)
    return prices[start], prices[end]


@kernel
def side_of(position):  # type: ignore[no-untyped-def]
    return 1.0 if position[QUANTITY] >= 0.0 else -1.0


@kernel
def group_excess(account, world, group, fine, way, leg, share):  # type: ignore[no-untyped-def]
    """Margin balance and unrealised profit less maintenance margin after ``share`` of a leg; <= 0 liquidates.

    Returns:
        (excess, slope): settle currency, and its change over the whole leg while no bracket changes.
    """
    excess = margin_balance(account, group)
    slope = 0.0
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        quantity = account.positions[asset, QUANTITY]
        if quantity == 0.0 or not is_in_group(asset, group, contract):
            continue
        side = side_of(account.positions[asset])
        inverse = contract.is_inverse
        start = worth(world.market.fine_mark[fine, asset, point(way, leg, side)], inverse)
        move = worth(world.market.fine_mark[fine, asset, point(way, leg + 1, side)], inverse) - start
        value = worth(mark_on_way(world, fine, asset, way, leg, share, side, inverse), inverse)
        row = bracket_row(abs(quantity * value), world.brackets[asset])
        rate = world.brackets[asset, row, _MMR]
        excess += quantity * (value - worth(account.positions[asset, ENTRY_PRICE], inverse))
        excess -= abs(quantity * value) * rate - world.brackets[asset, row, _CUM]
        slope += (quantity - math.copysign(abs(quantity), value) * rate) * move
    return excess, slope


@kernel
def has_position(account, world, group):  # type: ignore[no-untyped-def]
    """Whether any position stands on this group's margin."""
    for asset in range(account.positions.shape[0]):
        if account.positions[asset, QUANTITY] != 0.0 and is_in_group(
            asset, group, contract_rules(world.contracts[asset])
        ):
            return True
    return False


@cold_kernel
def liquidation_share(account, world, group, fine, way, leg, begin):  # type: ignore[no-untyped-def]
    """The share of a leg, from ``begin`` on, at which the group is liquidated; 2 if it is not.

    Excess is concave in the share (profit is linear, maintenance margin convex), so tangents drawn from the
    end of the leg meet zero at ever smaller shares and reach the crossing after one step a bracket.
    """
    if world.rules.is_unlimited > 0.0:
        return NEVER
    share, lowest = 1.0, begin
    excess, slope = group_excess(account, world, group, fine, way, leg, begin)
    if excess <= 0.0:
        if begin > 0.0 or leg > 0 or slope >= 0.0:
            return begin
        # a settlement inside the bar has cost the margin of the open: the crossing lies before it, on the way
        # from where the mark stood at the settlement
        share, lowest = 0.0, -math.inf
    else:
        excess, slope = group_excess(account, world, group, fine, way, leg, 1.0)
        if excess > 0.0:
            return NEVER
    for _step in range(64):
        closer = share - excess / slope
        if not lowest <= closer < share:
            break
        share = closer
        excess, slope = group_excess(account, world, group, fine, way, leg, share)
        if excess >= 0.0:
            break
    # what costs more than a bar moves (a debt of another position) finds no crossing at a price of the bar
    return share if share >= 0.0 or _is_in_bar(account, world, group, fine, way, leg, share) else begin


@kernel
def _is_in_bar(account, world, group, fine, way, leg, share):  # type: ignore[no-untyped-def]
    """Whether every mark of the group lies in the bar's range after ``share`` of a leg, also one below 0."""
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        position = account.positions[asset]
        if position[QUANTITY] != 0.0 and is_in_group(asset, group, contract):
            mark = mark_on_way(world, fine, asset, way, leg, share, side_of(position), contract.is_inverse)
            marks = world.market.fine_mark[fine, asset]
            if not marks[LOW] <= mark <= marks[HIGH]:
                return False
    return True


@cold_kernel
def liquidate_group(account, world, group, now, fine, way, leg, share):  # type: ignore[no-untyped-def]
    """Liquidate a margin group where the way stands; returns whether nothing of it is left.

    With ``liquidates_by_bracket`` the position in the highest bracket is reduced to the floor of its bracket,
    one bracket at a time, until margin suffices; what is in its lowest bracket goes whole, with all others.
    """
    while world.rules.liquidates_by_bracket > 0.0:
        asset = _highest_bracket(account, world, group, fine, way, leg, share)
        if asset < 0:
            break
        contract = contract_rules(world.contracts[asset])
        position = account.positions[asset]
        mark = mark_on_way(world, fine, asset, way, leg, share, side_of(position), contract.is_inverse)
        unit = abs(worth(mark, contract.is_inverse))
        row = bracket_row(abs(position[QUANTITY]) * unit, world.brackets[asset])
        floor = world.brackets[asset, row, _FLOOR] * (1.0 - 1e-9)
        keep = to_lots(floor / unit, contract)
        if keep * unit > floor:
            keep = max(keep - contract.lot_size, 0.0)
        _force(account, world, group, asset, abs(position[QUANTITY]) - keep, now, fine, way, leg, share)
        excess, _slope = group_excess(account, world, group, fine, way, leg, share)
        if excess > 0.0:
            return False
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        if account.positions[asset, QUANTITY] != 0.0 and is_in_group(asset, group, contract):
            _force(
                account,
                world,
                group,
                asset,
                abs(account.positions[asset, QUANTITY]),
                now,
                fine,
                way,
                leg,
                share,
            )
    return True


@kernel
def _force(account, world, group, asset, size, now, fine, way, leg, share):  # type: ignore[no-untyped-def]
    """Close ``size`` of one position at the mark of the moment; the others of its group stand behind it."""
    contract = contract_rules(world.contracts[asset])
    bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
    balance = margin_balance(account, group)
    for other in range(account.positions.shape[0]):
        their = contract_rules(world.contracts[other])
        if other != asset and account.positions[other, QUANTITY] != 0.0 and is_in_group(other, group, their):
            mark = mark_on_way(
                world, fine, other, way, leg, share, side_of(account.positions[other]), their.is_inverse
            )
            balance += unrealised_profit(account.positions[other], mark, their.is_inverse)
    mark = mark_on_way(
        world, fine, asset, way, leg, share, side_of(account.positions[asset]), contract.is_inverse
    )
    wallet = account.wallet[WALLET]
    close_by_force(
        account, asset, size, balance, mark, bar, world.market.mark[now, asset, CLOSE], contract, world.rules
    )
    if group != CROSS and balance < 0.0 and account.positions[asset, QUANTITY] == 0.0:
        bear_rest(account, asset, max(wallet - account.wallet[WALLET] - balance, 0.0))


@kernel
def _highest_bracket(account, world, group, fine, way, leg, share):  # type: ignore[no-untyped-def]
    """The position in the highest bracket above the lowest, or -1; margin decides between equals."""
    best, best_row, best_margin = -1, 0, 0.0
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        quantity = account.positions[asset, QUANTITY]
        if quantity == 0.0 or not is_in_group(asset, group, contract):
            continue
        side = side_of(account.positions[asset])
        mark = mark_on_way(world, fine, asset, way, leg, share, side, contract.is_inverse)
        size = abs(quantity * worth(mark, contract.is_inverse))
        row = bracket_row(size, world.brackets[asset])
        margin = maintenance_margin(size, world.brackets[asset])
        if row > best_row or (row > 0 and row == best_row and margin > best_margin):
            best, best_row, best_margin = asset, row, margin
    return best


@kernel
def liquidate_if_short(account, world, now, fine, way, leg, share):  # type: ignore[no-untyped-def]
    """Margin check of every group at one moment; returns whether the cross positions were all liquidated."""
    is_over = False
    if world.rules.is_unlimited > 0.0:
        return False
    for group in range(CROSS, account.positions.shape[0]):
        if has_position(account, world, group):
            excess, _slope = group_excess(account, world, group, fine, way, leg, share)
            if excess <= 0.0:
                is_gone = liquidate_group(account, world, group, now, fine, way, leg, share)
                is_over = is_over or (is_gone and group == CROSS)
    return is_over


@kernel
def is_short_at(account, world, fine, column):  # type: ignore[no-untyped-def]
    """Whether any margin group is below its maintenance margin at one of the bar's four marks."""
    if world.rules.is_unlimited > 0.0:
        return False
    cross = margin_balance(account, CROSS)
    has_cross = False
    for asset in range(account.positions.shape[0]):
        if account.positions[asset, QUANTITY] == 0.0:
            continue
        contract = contract_rules(world.contracts[asset])
        mark = world.market.fine_mark[fine, asset, column]
        excess = position_excess(account.positions[asset], mark, world.brackets[asset], contract.is_inverse)
        if contract.is_isolated > 0.0:
            if account.positions[asset, ISOLATED_WALLET] + excess <= 0.0:
                return True
        else:
            cross += excess
            has_cross = True
    return has_cross and cross <= 0.0
