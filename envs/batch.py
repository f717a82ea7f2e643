"""Many accounts through one bar in one compiled call, and the observations they see afterwards."""

from __future__ import annotations

import math

from perpgym.data.bars import CLOSE
from perpgym.envs.account import (
    ACCRUED_FUNDING,
    BARS_HELD,
    DAY_EQUITY,
    ENTRY_PRICE,
    EQUITY,
    ISOLATED_WALLET,
    LIQUIDATED,
    LOG_EQUITY,
    ORDER_ASKED,
    ORDER_WORKING,
    PEAK_EQUITY,
    QUANTITY,
    RECENT_COSTS,
    RETURN_MEAN,
    STOP_PRICE,
    TARGET_PRICE,
    free_wallet,
    give_position,
    notional,
    open_account,
    position_excess,
    sizing_base,
    unrealised_profit,
)
from perpgym.envs.arrays import Account, contract_rules
from perpgym.envs.compile import kernel
from perpgym.envs.decision import (
    LADDER,
    exposure_caps,
    exposure_of,
    exposure_of_quantity,
    single_exposure_cap,
)
from perpgym.envs.fees import open_traded
from perpgym.envs.impact import standing_shift
from perpgym.envs.kernel import DAY_MS, step_account
from perpgym.envs.margin import liquidation_price, maintenance_margin
from perpgym.envs.payoff import has_moments, open_moments, return_deviation
from perpgym.envs.spaces import FIRST_PART, TOTAL_COLUMNS

# a constant length becomes a few vector moves
TOTALS = len(TOTAL_COLUMNS)


@kernel
def _clip(value, low, high):  # type: ignore[no-untyped-def]
    return min(high, max(low, value))


@kernel
def _distance(price, mark_price):  # type: ignore[no-untyped-def]
    return 1.0 if math.isnan(price) else min(1.0, abs(mark_price - price) / mark_price)


@kernel
def observe_account(wallet, positions, orders, world, now, account_out, portfolio_out):  # type: ignore[no-untyped-def]
    """Write one account's observation columns, in the order of ``envs.spaces``.

    Args:
        wallet, positions, orders: the account's rows.
        world: ``World``.
        now: the newest closed bar.
        account_out: (A, Ca) float32, in place.
        portfolio_out: (Cp,) float32, in place.
    """
    rules = world.rules
    equity = max(wallet[EQUITY], 1e-9)
    base = max(sizing_base(wallet, rules), 1e-9)
    cross = free_wallet(wallet, positions)
    cross_balance, cross_excess, cross_margin = cross, cross, 0.0
    margin_ratio = 0.0
    for asset in range(positions.shape[0]):
        position, quantity = positions[asset], positions[asset, QUANTITY]
        if quantity == 0.0:
            continue
        contract = contract_rules(world.contracts[asset])
        mark = world.market.mark[now, asset, CLOSE]
        profit = unrealised_profit(position, mark, contract.is_inverse)
        margin = maintenance_margin(notional(quantity, mark, contract.is_inverse), world.brackets[asset])
        if contract.is_isolated > 0.0:
            margin_ratio = max(margin_ratio, margin / max(position[ISOLATED_WALLET] + profit, 1e-9))
        else:
            cross_balance += profit
            cross_margin += margin
            cross_excess += profit - margin
    if cross_margin != 0.0:
        margin_ratio = max(margin_ratio, cross_margin / max(cross_balance, 1e-9))
    for asset in range(positions.shape[0]):
        position = positions[asset]
        contract = contract_rules(world.contracts[asset])
        mark = world.market.mark[now, asset, CLOSE]
        out = account_out[asset]
        balance = position[ISOLATED_WALLET]
        if contract.is_isolated == 0.0:
            balance = cross_excess - position_excess(
                position, mark, world.brackets[asset], contract.is_inverse
            )
        liquidation = liquidation_price(
            balance, position[QUANTITY], position[ENTRY_PRICE], world.brackets[asset], contract.is_inverse
        )
        out[0] = _clip(exposure_of(position, mark, base, contract), -10.0, 10.0)
        out[1] = _clip(unrealised_profit(position, mark, contract.is_inverse) / equity, -5.0, 5.0)
        out[2] = _distance(liquidation, mark)
        out[3] = _distance(position[STOP_PRICE], mark)
        out[4] = _distance(position[TARGET_PRICE], mark)
        out[5] = _clip(position[BARS_HELD] / 1_000.0, 0.0, 10.0)
        asked = orders[asset, ORDER_ASKED]
        if rules.action != LADDER or math.isnan(asked):
            coming = position[QUANTITY] + orders[asset, ORDER_WORKING]
            asked = exposure_of_quantity(coming, mark, base, contract)
        out[6] = _clip(asked, -10.0, 10.0)
        out[8] = 0.0
        if rules.leaves_trace > 0.0:
            shift = standing_shift(orders[asset], world.market.root_illiquidity[now, asset])
            out[8] = _clip(100.0 * shift, -10.0, 10.0)
        out[7] = 1.0 if world.market.volume[now, asset] > 0.0 else 0.0
    cap, _bit = exposure_caps(wallet, rules)
    singles = 0.0
    for asset in range(positions.shape[0]):
        mark = world.market.mark[now, asset, CLOSE]
        singles += single_exposure_cap(wallet, mark, contract_rules(world.contracts[asset]), rules)
    cap = min(cap, singles)
    portfolio_out[0] = _clip(wallet[LOG_EQUITY], -5.0, 5.0)
    portfolio_out[1] = 1.0 if wallet[LIQUIDATED] > 0.0 else _clip(margin_ratio, 0.0, 1.0)
    portfolio_out[2] = _clip(1.0 - equity / wallet[PEAK_EQUITY], 0.0, 1.0)
    portfolio_out[3] = _clip(equity / wallet[DAY_EQUITY] - 1.0, -1.0, 1.0)
    portfolio_out[4] = min(1.0, cap / rules.max_exposure)
    portfolio_out[5] = _clip(100.0 * wallet[ACCRUED_FUNDING] / equity, -10.0, 10.0)
    portfolio_out[6] = _clip(100.0 * wallet[RECENT_COSTS], 0.0, 10.0)
    portfolio_out[7], portfolio_out[8] = 0.0, 0.0
    if has_moments(rules):
        deviation = return_deviation(wallet, rules)
        portfolio_out[7] = _clip(wallet[RETURN_MEAN] / deviation, -5.0, 5.0)
        portfolio_out[8] = _clip(100.0 * deviation, 0.0, 10.0)


@kernel
def first_bad_action(actions, counts):  # type: ignore[no-untyped-def]
    """The first account whose action is not a number, or no index of a choice; -1 for none.

    Args:
        actions: (N, A * action_dim) float32.
        counts: (action_dim,) float64, choices of each number of a contract; empty for continuous actions.
    """
    for account in range(actions.shape[0]):
        for column in range(actions.shape[1]):
            value = actions[account, column]
            if not math.isfinite(value):
                return account
            if counts.shape[0] > 0:
                is_index = 0.0 <= value < counts[column % counts.shape[0]] and value == int(value)
                if not is_index:
                    return account
    return -1


@kernel
def restart(state, i, world, now):  # type: ignore[no-untyped-def]
    """Open account ``i`` anew at bar ``now``, flat or with positions entered at the mark."""
    wallet, positions, orders = state.wallets[i], state.positions[i], state.orders[i]
    exposure = state.restart_exposure[i]
    open_account(wallet, positions, state.restart_wallet[i])
    state.totals[i, :] = 0.0
    if state.traded.shape[1] > 0:
        day = world.market.open_time_ms[now] // DAY_MS
        open_traded(
            state.traded[i], day, world.rules.traded_before, world.fee_tiers, world.rules.discount_factor
        )
    largest = 0.0
    for asset in range(positions.shape[0]):
        # a contract that is not listed yet has the least there is
        largest = max(largest, world.market.sigma_per_bar[now, asset])
    open_moments(wallet, largest, world.rules)
    orders[:] = 0.0
    for asset in range(positions.shape[0]):
        mark = world.market.mark[now, asset, CLOSE]
        contract = contract_rules(world.contracts[asset])
        sigma = world.market.sigma_per_bar[now, asset]
        if world.market.volume[now, asset] > 0.0:
            most = single_exposure_cap(wallet, mark, contract, world.rules)
            wish = min(max(exposure[asset], -most), most)
            give_position(wallet, positions, asset, wish, mark, sigma, contract, world.rules)
        if positions[asset, QUANTITY] != 0.0:
            orders[asset, ORDER_ASKED] = math.nan


@kernel
def copy_window(columns, newest, window, out):  # type: ignore[no-untyped-def]
    """Copy ``window`` rows of ``columns`` (T, A * F), the last one ``newest``, to ``out`` (window, A, F)."""
    size = window * columns.shape[1]
    # a flat loop becomes vector moves, over twice as fast as assigning the slice (benchmarks/bench_env.py)
    source = columns[newest - window + 1 : newest + 1].reshape(size)
    target = out.reshape(size)
    for i in range(size):
        target[i] = source[i]


@kernel
def step_batch(world, state, actions, scratch, out, accounts_per_path):  # type: ignore[no-untyped-def]
    """Step every account, restart what ended, observe.

    Paths that reach their end truncate all their accounts and continue at ``next_start``; accounts that end
    before are restarted in place. ``final_*`` hold the observation before a restart.

    Args:
        world: ``World``.
        state: ``BatchState``.
        actions: (N, A * action_dim) float32.
        scratch: ``Account``, for a second way through a bar.
        out: ``StepArrays``.
        accounts_per_path: K.

    Returns:
        The number of accounts that ended, or -1 - i if the action of account i is no action (nothing was
        booked).
    """
    bad = first_bad_action(actions, world.choices.counts)
    if bad >= 0:
        return -1 - bad
    ended = 0
    for path in range(state.path_bar.shape[0]):
        now = state.path_bar[path] + 1
        is_last = now >= state.path_end[path]
        for i in range(path * accounts_per_path, (path + 1) * accounts_per_path):
            wallet, positions = state.wallets[i], state.positions[i]
            account = Account(
                wallet,
                positions,
                out.ledger[i],
                out.holdings[i],
                state.orders[i],
                scratch.fills,
                state.traded[i],
            )
            out.reward[i], is_terminated = step_account(account, world, actions[i], now, is_last, scratch)
            for part in range(TOTALS):
                state.totals[i, part] += out.ledger[i, FIRST_PART + part]
            out.terminated[i] = is_terminated
            out.truncated[i] = is_last and not is_terminated
            shown = now
            if is_last or is_terminated:
                ended += 1
                out.final_bar[i] = now
                for part in range(TOTALS):
                    out.final_totals[i, part] = state.totals[i, part]
                observe_account(
                    wallet, positions, state.orders[i], world, now, out.final_account[i],
                    out.final_portfolio[i],
                )  # fmt: skip
                shown = state.next_start[path] if is_last else now
                restart(state, i, world, shown)
            out.bar[i] = shown
            observe_account(
                wallet, positions, state.orders[i], world, shown, out.account[i], out.portfolio[i]
            )
        state.path_bar[path] = now
        if is_last:
            state.path_bar[path] = state.next_start[path]
            state.path_end[path] = state.next_end[path]
            state.next_start[path] = -1  # used up: the caller draws another
    return ended


@kernel
def observe_batch(world, state, bars, account_out, portfolio_out):  # type: ignore[no-untyped-def]
    """Write every account's observation at its bar, without stepping."""
    for i in range(bars.shape[0]):
        observe_account(
            state.wallets[i], state.positions[i], state.orders[i], world, bars[i], account_out[i],
            portfolio_out[i],
        )  # fmt: skip


@kernel
def restart_batch(world, state, bars):  # type: ignore[no-untyped-def]
    """Open every account at its bar."""
    for i in range(bars.shape[0]):
        restart(state, i, world, bars[i])


@kernel
def copy_windows(features, risk, bars, window, market_out, risk_out):  # type: ignore[no-untyped-def]
    """Copy each account's windows of ``features`` (T, F) and ``risk`` (T, K) that end at its bar."""
    for i in range(bars.shape[0]):
        copy_window(features, bars[i], window, market_out[i])
        copy_window(risk, bars[i], window, risk_out[i])


@kernel
def copy_final_windows(  # type: ignore[no-untyped-def]
    features, risk, terminated, truncated, final_bar, window, market_out, risk_out
):
    """Copy the windows that end at ``final_bar``, of the accounts that ended."""
    for i in range(final_bar.shape[0]):
        if terminated[i] or truncated[i]:
            copy_window(features, final_bar[i], window, market_out[i])
            copy_window(risk, final_bar[i], window, risk_out[i])
