"""Which choices of an action margin, limits, brackets and the market forbid, as far as the close shows it."""

from __future__ import annotations

from perpgym.data.bars import CLOSE
from perpgym.envs.account import (
    CROSS,
    EQUITY,
    ISOLATED_WALLET,
    ORDER_ASKED,
    ORDER_WORKING,
    QUANTITY,
    margin_balance,
    notional,
    sizing_base,
)
from perpgym.envs.arrays import Account, contract_rules
from perpgym.envs.compile import kernel
from perpgym.envs.decision import (
    FLAT,
    HEADS,
    HOLD,
    LONG,
    SHORT,
    exposure_caps,
    exposure_of,
    is_on_its_way,
    is_overdue,
    single_exposure_cap,
)
from perpgym.envs.execution import square_root_impact
from perpgym.envs.fees import taker_rate

# a choice at the very limit is allowed
_SLACK = 1.0 + 1e-9


@kernel
def _others(account, world, asset, base, now):  # type: ignore[no-untyped-def]
    """Gross exposure of the other contracts, and the margin that is free for this one, settle currency."""
    gross, free = 0.0, account.wallet[EQUITY]
    for other in range(account.positions.shape[0]):
        contract = contract_rules(world.contracts[other])
        if other != asset:
            mark = world.market.mark[now, other, CLOSE]
            exposure = abs(exposure_of(account.positions[other], mark, base, contract))
            gross += exposure
            free -= exposure * base / contract.leverage
    contract = contract_rules(world.contracts[asset])
    if contract.is_isolated > 0.0:
        free = margin_balance(account, CROSS) + account.positions[asset, ISOLATED_WALLET]
    return gross, free


@kernel
def is_admitted(account, world, asset, wish, now):  # type: ignore[no-untyped-def]
    """Whether an exposure may be asked for at the close of ``now``: reducing always, more within every limit.

    The other contracts are taken as they are, and the next bar to open here with this bar's volume: the
    market may move before the order arrives, and what is admitted here can still be cut.
    """
    contract, rules = contract_rules(world.contracts[asset]), world.rules
    position, mark = account.positions[asset], world.market.mark[now, asset, CLOSE]
    if is_overdue(position, rules):
        return wish == 0.0
    base = sizing_base(account.wallet, rules)
    present = exposure_of(position, mark, base, contract)
    is_reducing = wish == 0.0 or (wish * present > 0.0 and abs(wish) <= abs(present))
    if is_reducing or rules.is_unlimited > 0.0:
        return True
    traded = abs(wish - present) * base
    if rules.is_reduce_only > 0.0 or _is_too_small(traded, mark, contract):
        return False
    cap, _bit = exposure_caps(account.wallet, rules)
    gross, free = _others(account, world, asset, base, now)
    size = abs(wish)
    return (
        gross + size <= cap * _SLACK
        and size <= single_exposure_cap(account.wallet, mark, contract, rules) * _SLACK
        and size * base <= contract.max_position_notional * _SLACK
        and size * base / contract.leverage + traded * _cost_share(account, world, asset, traded, now)
        <= free * _SLACK
    )


@kernel
def _is_too_small(traded, mark, contract):  # type: ignore[no-untyped-def]
    """Whether an order of this notional, settle currency, is below the exchange's smallest."""
    quantity = traded / notional(1.0, mark, contract.is_inverse)
    in_quote = quantity if contract.is_inverse > 0.0 else quantity * mark
    return quantity < contract.min_quantity or in_quote < contract.min_notional


@kernel
def _cost_share(account, world, asset, traded, now):  # type: ignore[no-untyped-def]
    """Fee, half spread and impact of a market order over its notional."""
    contract, rules = contract_rules(world.contracts[asset]), world.rules
    quantity = traded / notional(1.0, world.market.mark[now, asset, CLOSE], contract.is_inverse)
    volume, sigma = world.market.volume[now, asset], world.market.sigma_per_bar[now, asset]
    impact = min(square_root_impact(quantity, volume, sigma, rules.impact_coefficient), 0.5)
    return max(taker_rate(account.traded, contract), 0.0) + rules.half_spread + impact


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
