"""Which choices of an action margin, limits, brackets and the market forbid, as far as the close shows it."""

from __future__ import annotations

from perpgym.data.bars import CLOSE
from perpgym.envs.account import ORDER_ASKED, ORDER_WORKING, QUANTITY, sizing_base
from perpgym.envs.arrays import Account, Bar, contract_rules
from perpgym.envs.compile import kernel
from perpgym.envs.decision import (
    FLAT,
    HEADS,
    HOLD,
    LONG,
    SHORT,
    exposure_caps,
    exposure_of_quantity,
    is_on_its_way,
    is_overdue,
    single_exposure_cap,
    wanted_quantity,
)
from perpgym.envs.fills import taker_cost_rate
from perpgym.envs.orders import admitted_by_free, free_margin, is_reduce_only, market_fill_price

# a choice at the very limit is allowed
_SLACK = 1.0 + 1e-9


@kernel
def is_admitted(account, world, asset, wish, now):  # type: ignore[no-untyped-def]
    """Whether an exposure may be asked for at the close of ``now``: closing always, more if it fills whole.

    The admission of the kernel, asked with a market that stands still: the next bar opens at this close and
    trades this bar's volume, the other contracts are kept. What is admitted here can still be cut.
    """
    contract, rules = contract_rules(world.contracts[asset]), world.rules
    position, mark = account.positions[asset], world.market.mark[now, asset, CLOSE]
    if is_overdue(position, rules):
        return wish == 0.0
    base = sizing_base(account.wallet, rules)
    quantity = wanted_quantity(position, wish, base, mark, contract)
    if rules.is_unlimited > 0.0 or quantity == 0.0 or is_reduce_only(position[QUANTITY], quantity):
        return True
    cap, _bit = exposure_caps(account.wallet, rules)
    return (
        rules.is_reduce_only == 0.0
        and _gross_of_others(account, world, asset, base, now) + abs(wish) <= cap * _SLACK
        and abs(wish) <= single_exposure_cap(account.wallet, mark, contract, rules) * _SLACK
        and _fills_whole(account, world, asset, quantity, now)
    )


@kernel
def _gross_of_others(account, world, asset, base, now):  # type: ignore[no-untyped-def]
    """Gross exposure of the other contracts, with what is being worked."""
    gross = 0.0
    for other in range(account.positions.shape[0]):
        if other != asset:
            contract = contract_rules(world.contracts[other])
            coming = account.positions[other, QUANTITY] + account.orders[other, ORDER_WORKING]
            mark = world.market.mark[now, other, CLOSE]
            gross += abs(exposure_of_quantity(coming, mark, base, contract))
    return gross


@kernel
def _fills_whole(account, world, asset, quantity, now):  # type: ignore[no-untyped-def]
    """Whether margin, brackets and the smallest order leave a market order whole where bar ``now`` closes."""
    contract, rules, market = contract_rules(world.contracts[asset]), world.rules, world.market
    last, mark = market.last[now, asset, CLOSE], market.mark[now, asset, CLOSE]
    volume = market.volume[now, asset] * (last if contract.is_inverse > 0.0 else 1.0)
    sigma, root = market.sigma_per_bar[now, asset], market.root_illiquidity[now, asset]
    bar = Bar(last, last, last, last, mark, mark, mark, mark, volume, sigma, root)
    _touch, price = market_fill_price(account, asset, last, quantity, bar, contract, rules)
    fee_rate = taker_cost_rate(account, quantity, last, contract, rules)
    free = free_margin(account, world, market.mark, now, CLOSE, asset)
    _left, reason = admitted_by_free(account, free, asset, quantity, quantity, price, fee_rate, bar, contract)
    return reason == 0


@kernel
def mask_account(account, world, now, out):  # type: ignore[no-untyped-def]
    """Write which choices are allowed, contract after contract.

    A contract that does not trade, or whose order is on its way, allows what changes nothing. At least one
    choice of each number is allowed.

    Args:
        account: ``Account``.
        world: ``World``.
        now: the newest closed bar.
        out: (A * sum of choices,) bool, in place.
    """
    levels = world.choices.levels
    n_levels, n_stops, n_styles = levels.shape[0], world.choices.stops.shape[0], world.choices.styles.shape[0]
    place = 0
    for asset in range(account.positions.shape[0]):
        is_trading = world.market.volume[now, asset] > 0.0
        is_trading = is_trading and not is_on_its_way(account.orders[asset], world)
        if world.rules.action != HEADS:
            asked, nearest, is_any = account.orders[asset, ORDER_ASKED], 0, False
            is_late = is_overdue(account.positions[asset], world.rules)
            for level in range(n_levels):
                # the level that stands means no order; a comparison with nan is false
                is_allowed = levels[level] == asked and not (is_trading and is_late)
                if is_trading and not is_allowed:
                    is_allowed = is_admitted(account, world, asset, levels[level], now)
                out[place + level] = is_allowed
                is_any = is_any or is_allowed
                if abs(levels[level]) < abs(levels[nearest]):
                    nearest = level
            if not is_any:
                # nothing fits: the smallest exposure of the ladder is the nearest to doing nothing
                out[place + nearest] = True
            place += n_levels
            continue
        is_long_any, is_short_any = False, False
        for size in range(n_levels):
            is_long = is_trading and is_admitted(account, world, asset, levels[size], now)
            is_short = is_trading and is_admitted(account, world, asset, -levels[size], now)
            out[place + 4 + size] = is_long or is_short
            is_long_any, is_short_any = is_long_any or is_long, is_short_any or is_short
        if not (is_long_any or is_short_any):
            out[place + 4] = True
        out[place + HOLD] = not (is_trading and is_overdue(account.positions[asset], world.rules))
        out[place + LONG], out[place + SHORT] = is_long_any, is_short_any
        # nothing to close, but an order in the book can be called back
        is_engaged = account.positions[asset, QUANTITY] != 0.0 or account.orders[asset, ORDER_WORKING] != 0.0
        out[place + FLAT] = is_trading and is_engaged
        for other in range(n_stops + n_styles):
            out[place + 4 + n_levels + other] = True
        place += 4 + n_levels + n_stops + n_styles


@kernel
def mask_batch(world, state, scratch, bars, out):  # type: ignore[no-untyped-def]
    """Every account's mask at its bar; ``out`` is (N, A * sum of choices) bool."""
    for i in range(bars.shape[0]):
        account = Account(
            state.wallets[i], state.positions[i], scratch.ledger, scratch.holdings, state.orders[i],
            scratch.fills, scratch.traded,
        )  # fmt: skip
        mask_account(account, world, bars[i], out[i])
