"""Many accounts through one bar in one compiled call, and the observations they see afterwards."""

from __future__ import annotations

import math

from perpgym.data.bars import CLOSE
from perpgym.envs.account import (
    ACCRUED_FUNDING,
    BARS_HELD,
    DAY_EQUITY,
    DAY_LOW_EQUITY,
    ENTRY_PRICE,
    EQUITY,
    INITIAL_WALLET,
    PEAK_EQUITY,
    QUANTITY,
    RECENT_COSTS,
    STOP_PRICE,
    TARGET_PRICE,
    Rules,
    give_position,
    margin_balance,
    open_account,
    read_bar,
)
from perpgym.envs.compile import kernel
from perpgym.envs.kernel import step_account
from perpgym.envs.margin import liquidation_price, maintenance_margin
from perpgym.envs.risk.overlay import admitted_exposure


@kernel
def _clip(value, low, high):  # type: ignore[no-untyped-def]
    return min(high, max(low, value))


@kernel
def _distance(price, mark_price):  # type: ignore[no-untyped-def]
    return 1.0 if math.isnan(price) else min(1.0, abs(mark_price - price) / mark_price)


@kernel
def observe_account(wallet, position, mark_price, brackets, rules, account_out, portfolio_out):  # type: ignore[no-untyped-def]
    """Write one account's observation columns, in the order of ``envs.spaces``.

    Args:
        wallet, position: the account's rows.
        mark_price: quote, mark close of the newest bar.
        account_out: (Ca,) float32, in place.
        portfolio_out: (Cp,) float32, in place.
    """
    quantity, equity = position[QUANTITY], max(wallet[EQUITY], 1e-9)
    balance = margin_balance(wallet, position, rules)
    unrealised = quantity * (mark_price - position[ENTRY_PRICE])
    liquidation = liquidation_price(balance, quantity, position[ENTRY_PRICE], brackets)
    account_out[0] = _clip(quantity * mark_price / equity, -10.0, 10.0)
    account_out[1] = _clip(unrealised / equity, -5.0, 5.0)
    account_out[2] = _distance(liquidation, mark_price)
    account_out[3] = _distance(position[STOP_PRICE], mark_price)
    account_out[4] = _distance(position[TARGET_PRICE], mark_price)
    account_out[5] = _clip(position[BARS_HELD] / 1_000.0, 0.0, 10.0)
    margin = maintenance_margin(abs(quantity) * mark_price, brackets)
    margin_equity = max(balance + unrealised, 1e-9) if quantity != 0.0 else 1.0
    cap, _bit = admitted_exposure(
        equity, wallet[PEAK_EQUITY], wallet[DAY_EQUITY], wallet[DAY_LOW_EQUITY], rules.max_leverage,
        rules.max_notional, rules.max_daily_loss, rules.drawdown_start, rules.max_drawdown,
    )  # fmt: skip
    portfolio_out[0] = _clip(math.log(equity / wallet[INITIAL_WALLET]), -5.0, 5.0)
    portfolio_out[1] = _clip(margin / margin_equity, 0.0, 1.0)
    portfolio_out[2] = _clip(1.0 - equity / wallet[PEAK_EQUITY], 0.0, 1.0)
    portfolio_out[3] = _clip(equity / wallet[DAY_EQUITY] - 1.0, -1.0, 1.0)
    portfolio_out[4] = min(1.0, cap / rules.max_exposure)
    portfolio_out[5] = _clip(100.0 * wallet[ACCRUED_FUNDING] / equity, -10.0, 10.0)
    portfolio_out[6] = _clip(100.0 * wallet[RECENT_COSTS], 0.0, 10.0)


@kernel
def first_bad_action(actions):  # type: ignore[no-untyped-def]
    """The first account whose action is not a number, or -1."""
    for account in range(actions.shape[0]):
        for column in range(actions.shape[1]):
            if not math.isfinite(actions[account, column]):
                return account
    return -1


@kernel
def restart(wallet, position, initial_wallet, exposure, mark_price, rules):  # type: ignore[no-untyped-def]
    """Open the account anew, flat or with a position entered at the mark."""
    open_account(wallet, position, initial_wallet)
    if exposure != 0.0:
        give_position(wallet, position, exposure, mark_price, rules)


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
def step_batch(  # type: ignore[no-untyped-def]
    open_time_ms, last, mark, volume, sigma_per_bar, stamp_start, stamp_time_ms, stamp_rate, bar_ms, brackets,
    rule_values, wallets, positions, path_bar, path_end, next_start, next_end,
    restart_wallet, restart_exposure, actions, out_bar, account, portfolio, reward, terminated, truncated,
    ledger, final_bar, final_account, final_portfolio, accounts_per_path,
):  # fmt: skip
    """Step every account, restart what ended, observe.

    Paths that reach their end truncate all their accounts and continue at ``next_start``; accounts that end
    before are restarted in place. ``final_*`` hold the observation before a restart.

    Returns:
        The number of accounts that ended, or -1 - i if the action of account i is not finite (nothing was
        booked).
    """
    bad = first_bad_action(actions)
    if bad >= 0:
        return -1 - bad
    ended = 0
    rules = _rules(rule_values)
    for path in range(path_bar.shape[0]):
        now = path_bar[path] + 1
        bar = read_bar(last, mark, volume, sigma_per_bar, now, 0)
        mark_before = mark[now - 1, 0, CLOSE]
        is_last = now >= path_end[path]
        for i in range(path * accounts_per_path, (path + 1) * accounts_per_path):
            reward[i], is_terminated = step_account(
                wallets[i], positions[i, 0], ledger[i], actions[i], mark_before, bar,
                open_time_ms[now], bar_ms, brackets, rules,
                stamp_start[0, now], stamp_start[0, now + 1], stamp_time_ms, stamp_rate,
            )  # fmt: skip
            terminated[i] = is_terminated
            truncated[i] = is_last and not is_terminated
            shown = now
            if is_last or is_terminated:
                ended += 1
                final_bar[i] = now
                observe_account(
                    wallets[i], positions[i, 0], bar.mark_close, brackets, rules,
                    final_account[i, 0], final_portfolio[i],
                )  # fmt: skip
                shown = next_start[path] if is_last else now
                restart(
                    wallets[i], positions[i, 0], restart_wallet[i], restart_exposure[i],
                    mark[shown, 0, CLOSE], rules,
                )  # fmt: skip
            out_bar[i] = shown
            observe_account(
                wallets[i],
                positions[i, 0],
                mark[shown, 0, CLOSE],
                brackets,
                rules,
                account[i, 0],
                portfolio[i],
            )
        path_bar[path] = now
        if is_last:
            path_bar[path] = next_start[path]
            path_end[path] = next_end[path]
            next_start[path] = -1  # used up: the caller draws another
    return ended


@kernel
def observe_batch(mark, brackets, rule_values, wallets, positions, out_bar, account, portfolio):  # type: ignore[no-untyped-def]
    """Write every account's observation at its bar, without stepping."""
    rules = _rules(rule_values)
    for i in range(out_bar.shape[0]):
        observe_account(
            wallets[i],
            positions[i, 0],
            mark[out_bar[i], 0, CLOSE],
            brackets,
            rules,
            account[i, 0],
            portfolio[i],
        )


@kernel
def restart_batch(mark, rule_values, wallets, positions, out_bar, restart_wallet, restart_exposure):  # type: ignore[no-untyped-def]
    """Open every account at its bar."""
    rules = _rules(rule_values)
    for i in range(out_bar.shape[0]):
        restart(
            wallets[i],
            positions[i, 0],
            restart_wallet[i],
            restart_exposure[i],
            mark[out_bar[i], 0, CLOSE],
            rules,
        )


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


@kernel
def _rules(values):  # type: ignore[no-untyped-def]
    """Name the packed rule values; the tuple lives in registers, so this costs nothing."""
    return Rules(
        values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7], values[8],
        values[9], values[10], values[11], values[12], values[13], values[14], values[15], values[16],
        values[17], values[18], values[19], values[20], values[21], values[22], values[23], values[24],
        values[25], values[26], values[27],
    )  # fmt: skip
