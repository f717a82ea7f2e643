"""The way of prices through one bar: stops, take-profits, settlements and liquidations in their order.

The path inside a bar is unknown. With one position at risk the adverse extreme comes first. With several on
one margin, all lows then all highs and all highs then all lows are both walked and the worse one is kept
(``joint_adverse``: every contract at its own adverse extreme at once). Between two points of the way worths
move together, linearly; a finer tape shortens the bars until nothing is left to assume.
"""

from __future__ import annotations

from perpgym.data.bars import CLOSE, HIGH, LOW
from perpgym.envs.account import (
    CROSS,
    ISOLATED_WALLET,
    ORDER_FRESH,
    QUANTITY,
    STOP_PRICE,
    TARGET_PRICE,
    WALLET,
    is_in_group,
    margin_balance,
    position_excess,
    stop_distance,
    unrealised_profit,
)
from perpgym.envs.arrays import contract_rules, read_bar
from perpgym.envs.compile import cold_kernel, kernel
from perpgym.envs.execution import to_tick
from perpgym.envs.fills import STOP, TARGET, take, take_at, taker_cost_rate
from perpgym.envs.inside import fill_resting, is_reached, next_resting, withdraw
from perpgym.envs.liquidation import (
    ADVERSE_FIRST,
    HIGHS_FIRST,
    LOWS_FIRST,
    NEVER,
    has_position,
    leg_prices,
    liquidate_group,
    liquidation_share,
    mark_on_way,
    side_of,
)
from perpgym.envs.matching import may_rest
from perpgym.envs.spaces import LEDGER

_STOPPED = LEDGER["stopped"]


@kernel
def stop_share(position, bar, way, leg, rules):  # type: ignore[no-untyped-def]
    """The share of a leg at which the stop-loss is touched; 2 if it is not.

    A leg that moves in the position's favour touches no stop; nor does a market that does not trade.
    """
    side = side_of(position)
    start, end = leg_prices(bar, way, leg, side, rules.stop_on_mark > 0.0)
    stop = position[STOP_PRICE]
    # comparisons with nan are false: no stop
    if bar.volume > 0.0 and side * (end - start) < 0.0 and side * (end - stop) <= 0.0:
        return min(1.0, max(0.0, (stop - start) / (end - start)))
    return NEVER


@kernel
def stop_reference(stop, side, bar, rules):  # type: ignore[no-untyped-def]
    """Last price at the moment a stop-loss triggers inside the bar.

    A stop on the mark meets a last price that stands off by the basis; the basis of the open is assumed where
    it hurts, ignored where it would help, and the price is one that the bar traded.
    """
    if rules.stop_on_mark == 0.0 or rules.stop_at_last == 0.0:
        return stop
    at_basis = stop * bar.last_open / bar.mark_open
    worse = min(stop, at_basis) if side > 0.0 else max(stop, at_basis)
    return min(max(worse, bar.last_low), bar.last_high)


@kernel
def price_at(start, end, share):  # type: ignore[no-untyped-def]
    """Where a leg stands after a share of it."""
    return end if share >= 1.0 else start + share * (end - start)


@cold_kernel
def walk_leg(account, world, group, now, fine, way, leg, begin, until):  # type: ignore[no-untyped-def]
    """One margin group from one share of a leg to another; returns whether it was liquidated whole.

    A stop that lies nearer than its contract's mark at the liquidation comes first, of several the first one
    touched; then liquidation; a take-profit only if that stretch was survived.
    """
    while has_position(account, world, group):
        liquidation = liquidation_share(account, world, group, fine, way, leg, begin)
        if liquidation > until:
            liquidation = NEVER
        asset, share = _next_stop(account, world, group, now, fine, way, leg, until, liquidation)
        if asset >= 0:
            _stop_out(account, world, asset, now, fine, way, leg, begin)
            begin = max(begin, share)
        elif liquidation <= 1.0:
            if liquidate_group(account, world, group, now, fine, way, leg, liquidation):
                return True
            begin = max(begin, liquidation)
        else:
            break
    _take_profits(account, world, group, now, fine, way, leg, until)
    return False


@kernel
def _stop_out(account, world, asset, now, fine, way, leg, begin):  # type: ignore[no-untyped-def]
    """Fill a stop-loss on a leg; never better than where the last price stood when it could be placed."""
    contract, position = contract_rules(world.contracts[asset]), account.positions[asset]
    bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
    side = side_of(position)
    reference = stop_reference(position[STOP_PRICE], side, bar, world.rules)
    start, end = leg_prices(bar, way, leg, side, False)
    present = price_at(start, end, begin)
    reference = min(reference, present) if side > 0.0 else max(reference, present)
    mark_close = world.market.mark[now, asset, CLOSE]
    take(account, asset, -position[QUANTITY], reference, bar, mark_close, STOP, contract, world.rules)
    account.ledger[_STOPPED] = 1.0


@kernel
def _next_stop(account, world, group, now, fine, way, leg, until, liquidation):  # type: ignore[no-untyped-def]
    """The stop that is touched first, by ``until`` and before the liquidation: (contract or -1, share)."""
    first, first_share = -1, NEVER
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        position = account.positions[asset]
        if position[QUANTITY] == 0.0 or not is_in_group(asset, group, contract):
            continue
        bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
        share = stop_share(position, bar, way, leg, world.rules)
        if share > until or share >= first_share:
            continue
        side = side_of(position)
        if liquidation <= 1.0:
            # compared as prices: the stop may watch another series than the mark
            mark = mark_on_way(world, fine, asset, way, leg, liquidation, side, contract.is_inverse)
            if side * (mark - position[STOP_PRICE]) > 0.0:
                continue
        first, first_share = asset, share
    return first, first_share


@kernel
def _take_profits(account, world, group, now, fine, way, leg, until):  # type: ignore[no-untyped-def]
    for asset in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[asset])
        position = account.positions[asset]
        if position[QUANTITY] == 0.0 or not is_in_group(asset, group, contract):
            continue
        if account.orders[asset, ORDER_FRESH] > 0.0:
            # filled inside this bar: its favourable extreme may have come before
            continue
        bar = read_bar(world.market, now, fine, asset, contract.is_inverse)
        side, target = side_of(position), position[TARGET_PRICE]
        start, end = leg_prices(bar, way, leg, side, world.rules.stop_on_mark > 0.0)
        trigger = price_at(start, end, until)
        start, end = leg_prices(bar, way, leg, side, False)
        # the last price must trade there too: a mark that runs ahead of it pays nobody
        is_traded = world.rules.stop_at_last == 0.0 or side * (price_at(start, end, until) - target) >= 0.0
        if bar.volume > 0.0 and side * (trigger - target) >= 0.0 and is_traded:
            take_at(
                account,
                asset,
                -position[QUANTITY],
                target,
                taker_cost_rate(account, position[QUANTITY], target, contract, world.rules),
                world.market.mark[now, asset, CLOSE],
                TARGET,
                contract,
                world.rules,
            )
            account.ledger[_STOPPED] = 1.0


@kernel
def walk(account, world, now, fine, way):  # type: ignore[no-untyped-def]
    """The whole way for every margin group; returns whether the cross positions were liquidated.

    A resting order fills when the way has come to its price, after what its position met until then; the
    position after goes on from there. One that turned meets its own adverse side from the start.
    """
    is_over, rests = False, may_rest(world)
    for group in range(CROSS, account.positions.shape[0]):
        leg, begin = 0, 0.0
        while leg < 3:
            asset, share = -1, 1.0
            if rests:
                asset, share = next_resting(account, world, group, now, fine, way, leg, begin)
            if has_position(account, world, group) and walk_leg(
                account, world, group, now, fine, way, leg, begin, share
            ):
                is_over = is_over or group == CROSS
                withdraw(account, world, group)
                break
            leg, begin = (leg, share) if asset >= 0 else (leg + 1, 0.0)
            if asset >= 0 and fill_resting(account, world, asset, now, fine) and way == ADVERSE_FIRST:
                leg, begin = 0, 0.0
    return is_over


@kernel
def opens_beyond_stop(position, bar, rules):  # type: ignore[no-untyped-def]
    """Whether the bar opens at or beyond the stop-loss, in a market that trades."""
    if position[QUANTITY] == 0.0:
        return False
    trigger_open = bar.mark_open if rules.stop_on_mark > 0.0 else bar.last_open
    # a comparison with nan is false: no stop
    return bar.volume > 0.0 and side_of(position) * (trigger_open - position[STOP_PRICE]) <= 0.0


@kernel
def nothing_happens(account, world, fine):  # type: ignore[no-untyped-def]
    """Whether no stop or target is touched and margin suffices with every contract at its adverse extreme."""
    for asset in range(account.positions.shape[0]):
        position = account.positions[asset]
        quantity = position[QUANTITY]
        if quantity == 0.0:
            continue
        is_long = quantity > 0.0
        on_mark = world.rules.stop_on_mark > 0.0
        prices = world.market.fine_mark if on_mark else world.market.fine_last
        low, high = prices[fine, asset, LOW], prices[fine, asset, HIGH]
        stop, target = position[STOP_PRICE], position[TARGET_PRICE]
        # comparisons with nan are false
        if is_long and (low <= stop or high >= target):
            return False
        if not is_long and (high >= stop or low <= target):
            return False
    return world.rules.is_unlimited > 0.0 or _margin_suffices(account, world, fine)


@kernel
def trail_stops(account, world, fine):  # type: ignore[no-untyped-def]
    """Draw stops after the best price of a bar that was survived; they never move back.

    Not before the bar has ended: a stop drawn up inside it would fill, on the way back to the close, at a
    distance from the best price of the whole bar, which the price of the moment may not have seen yet. That
    earns on a market without drift (``tests/envs/test_martingale.py``).
    """
    prices = world.market.fine_mark if world.rules.stop_on_mark > 0.0 else world.market.fine_last
    for asset in range(account.positions.shape[0]):
        position = account.positions[asset]
        # what filled inside this bar may have filled after its favourable extreme
        is_fresh = account.orders[asset, ORDER_FRESH] > 0.0
        if position[QUANTITY] == 0.0 or is_fresh or world.market.fine_volume[fine, asset] == 0.0:
            continue
        side = side_of(position)
        best = prices[fine, asset, HIGH if side > 0.0 else LOW]
        distance = stop_distance(position, world.rules)
        stop = to_tick(best * (1.0 - side * distance), contract_rules(world.contracts[asset]), -side)
        if side * (stop - position[STOP_PRICE]) > 0.0:
            position[STOP_PRICE] = stop


@kernel
def _margin_suffices(account, world, fine):  # type: ignore[no-untyped-def]
    """Whether every margin group survives with every contract at its adverse extreme."""
    cross = margin_balance(account, CROSS)
    has_cross = False
    for asset in range(account.positions.shape[0]):
        quantity = account.positions[asset, QUANTITY]
        if quantity == 0.0:
            continue
        contract = contract_rules(world.contracts[asset])
        worst = world.market.fine_mark[fine, asset, LOW if quantity > 0.0 else HIGH]
        excess = position_excess(account.positions[asset], worst, world.brackets[asset], contract.is_inverse)
        if contract.is_isolated > 0.0:
            if account.positions[asset, ISOLATED_WALLET] + excess <= 0.0:
                return False
        else:
            cross += excess
            has_cross = True
    return cross > 0.0 or not has_cross


@kernel
def _copy_account(source, target):  # type: ignore[no-untyped-def]
    """Copy one account's rows, number by number: assigning slices would allocate."""
    for i in range(source.wallet.shape[0]):
        target.wallet[i] = source.wallet[i]
    for i in range(source.ledger.shape[0]):
        target.ledger[i] = source.ledger[i]
    for asset in range(source.positions.shape[0]):
        for i in range(source.positions.shape[1]):
            target.positions[asset, i] = source.positions[asset, i]
        for i in range(source.holdings.shape[1]):
            target.holdings[asset, i] = source.holdings[asset, i]
        for i in range(source.orders.shape[1]):
            target.orders[asset, i] = source.orders[asset, i]
    for i in range(source.traded.shape[0]):
        target.traded[i] = source.traded[i]
    for fill in range(min(source.fills.shape[0], target.fills.shape[0])):
        for i in range(source.fills.shape[1]):
            target.fills[fill, i] = source.fills[fill, i]


@cold_kernel
def live_through(account, world, now, fine, scratch):  # type: ignore[no-untyped-def]
    """Walk the bar on the way that hurts most; returns whether the cross positions were liquidated."""
    if world.rules.is_joint_adverse > 0.0 or _cross_contracts(account, world, now, fine) < 2:
        return walk(account, world, now, fine, ADVERSE_FIRST)
    _copy_account(account, scratch)
    is_over_there = walk(scratch, world, now, fine, LOWS_FIRST)
    is_over = walk(account, world, now, fine, HIGHS_FIRST)
    is_worse = _equity_at_close(scratch, world, fine) < _equity_at_close(account, world, fine)
    if (is_over_there and not is_over) or (is_over_there == is_over and is_worse):
        _copy_account(scratch, account)
        return is_over_there
    return is_over


@kernel
def _cross_contracts(account, world, now, fine):  # type: ignore[no-untyped-def]
    """How many contracts have a cross position, or an order that gives them one in this bar."""
    count, rests = 0, may_rest(world)
    for asset in range(account.positions.shape[0]):
        if contract_rules(world.contracts[asset]).is_isolated == 0.0 and (
            account.positions[asset, QUANTITY] != 0.0
            or (rests and is_reached(account, world, asset, now, fine))
        ):
            count += 1
    return count


@kernel
def _equity_at_close(account, world, fine):  # type: ignore[no-untyped-def]
    equity = account.wallet[WALLET]
    for asset in range(account.positions.shape[0]):
        mark = world.market.fine_mark[fine, asset, CLOSE]
        equity += unrealised_profit(
            account.positions[asset], mark, contract_rules(world.contracts[asset]).is_inverse
        )
    return equity
