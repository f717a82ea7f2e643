"""What a booked step is worth to the agent: growth, differential ratios, or mean less variance.

``docs/mechanics.md`` has the formulas and sources; ``envs/rewards.py`` the settings that choose between them.
"""

from __future__ import annotations

import math

from perpgym.data.bars import CLOSE
from perpgym.envs.account import (
    EQUITY,
    INITIAL_WALLET,
    LOG_EQUITY,
    ORDER_HELD,
    RETURN_MEAN,
    RETURN_SQUARE,
)
from perpgym.envs.compile import kernel
from perpgym.envs.margin import worth
from perpgym.envs.spaces import LEDGER

# in the order of envs.config.REWARD_KINDS
LOG_RETURN, DIFFERENTIAL_SHARPE, DIFFERENTIAL_SORTINO, MEAN_VARIANCE = range(4)

# of a bar's log return; a market that stands still has no ratio
LEAST_DEVIATION = 1e-6

_PRICE_PNL, _FUNDING, _FEES = LEDGER["price_pnl"], LEDGER["funding"], LEDGER["fees"]
_SPREAD, _IMPACT, _CLEARANCE = LEDGER["spread"], LEDGER["impact"], LEDGER["clearance"]
_INSURANCE, _TRADED = LEDGER["insurance"], LEDGER["traded_notional"]
_LIQUIDATED, _FLOORED, _DRAWDOWN = LEDGER["liquidated"], LEDGER["reward_floored"], LEDGER["drawdown"]


@kernel
def pay(account, world, equity_before, peak_before, now):  # type: ignore[no-untyped-def]
    """The step's reward, from its closed books; the running moments of the return move on.

    Args:
        account: ``Account``, with the equity after the step.
        world: ``World``.
        equity_before, peak_before: settle currency, before the step.
        now: the bar that was booked.
    """
    rules = world.rules
    log_return = _log_return(account, rules, equity_before)
    if rules.reward == MEAN_VARIANCE:
        worthwhile = _mean_variance(account, world, equity_before, now)
    elif rules.reward == LOG_RETURN:
        # second-order expansion of power utility over the bar: E g - (gamma - 1) / 2 E g^2
        worthwhile = log_return - 0.5 * (rules.reward_risk_aversion - 1.0) * log_return * log_return
    else:
        worthwhile = _differential_ratio(account.wallet, log_return, rules)
    if has_moments(rules):
        _remember(account.wallet, log_return, rules)
    if rules.reward_drawdown > 0.0:
        drawdown_before = 1.0 - equity_before / peak_before
        worthwhile -= rules.reward_drawdown * max(account.ledger[_DRAWDOWN] - drawdown_before, 0.0)
    if rules.reward_turnover > 0.0:
        worthwhile -= rules.reward_turnover * account.ledger[_TRADED] / max(equity_before, 1e-9)
    return rules.reward_scale * (worthwhile - rules.reward_liquidation * account.ledger[_LIQUIDATED])


@kernel
def has_moments(rules):  # type: ignore[no-untyped-def]
    """Whether the reward remembers running moments."""
    return rules.reward == DIFFERENTIAL_SHARPE or rules.reward == DIFFERENTIAL_SORTINO


@kernel
def _log_return(account, rules, equity_before):  # type: ignore[no-untyped-def]
    """Floored log return of the step; the account's log equity, which is observed, moves on."""
    wallet = account.wallet
    before = wallet[LOG_EQUITY]
    wallet[LOG_EQUITY] = math.log(max(wallet[EQUITY], 1e-9) / wallet[INITIAL_WALLET])
    if wallet[EQUITY] < rules.reward_equity_floor * equity_before or equity_before <= 0.0:
        account.ledger[_FLOORED] = 1.0
        return math.log(rules.reward_equity_floor)
    return wallet[LOG_EQUITY] - before


@kernel
def _mean_variance(account, world, equity_before, now):  # type: ignore[no-untyped-def]
    """Gain less kappa / 2 of the squared exposures less costs, in shares of what an exposure of 1 is.

    Exposures are those that the bar's orders led to, at the mark on which they were decided.
    """
    rules, ledger = world.rules, account.ledger
    base = account.wallet[INITIAL_WALLET] if rules.is_fixed_size > 0.0 else max(equity_before, 1e-9)
    gain, square = 0.0, 0.0
    for asset in range(account.positions.shape[0]):
        mark = world.market.mark[now - 1, asset, CLOSE]
        exposure = account.orders[asset, ORDER_HELD] * abs(worth(mark, world.contracts[asset, 0])) / base
        square += exposure * exposure
        if rules.reward_on_conditional_mean > 0.0:
            gain += exposure * world.market.planted[now - 1, asset]
    if rules.reward_on_conditional_mean == 0.0:
        gain = (ledger[_PRICE_PNL] + ledger[_FUNDING]) / base
    costs = ledger[_FEES] + ledger[_SPREAD] + ledger[_IMPACT] + ledger[_CLEARANCE] - ledger[_INSURANCE]
    return gain - 0.5 * rules.reward_variance * square - costs / base


@kernel
def _differential_ratio(wallet, log_return, rules):  # type: ignore[no-untyped-def]
    """How the Sharpe or Sortino ratio of the running moments turns with one more return.

    Moody, Saffell 2001, "Learning to trade via direct reinforcement", equations 7 and 17: the derivative with
    respect to the moments' adaptation rate at zero.
    """
    mean, square = wallet[RETURN_MEAN], wallet[RETURN_SQUARE]
    deviation = return_deviation(wallet, rules)
    if rules.reward == DIFFERENTIAL_SHARPE:
        change = square * (log_return - mean) - 0.5 * mean * (log_return * log_return - square)
        return change / (deviation * deviation * deviation)
    if log_return > 0.0:
        return (log_return - 0.5 * mean) / deviation
    loss = deviation * deviation * (log_return - 0.5 * mean) - 0.5 * mean * log_return * log_return
    return loss / (deviation * deviation * deviation)


@kernel
def return_deviation(wallet, rules):  # type: ignore[no-untyped-def]
    """Deviation of the account's log return per bar by its running moments; the downside's for Sortino."""
    variance = wallet[RETURN_SQUARE]
    if rules.reward != DIFFERENTIAL_SORTINO:
        variance -= wallet[RETURN_MEAN] * wallet[RETURN_MEAN]
    return math.sqrt(max(variance, LEAST_DEVIATION * LEAST_DEVIATION))


@kernel
def _remember(wallet, log_return, rules):  # type: ignore[no-untyped-def]
    counted = min(log_return, 0.0) if rules.reward == DIFFERENTIAL_SORTINO else log_return
    keep = rules.reward_keep
    wallet[RETURN_MEAN] = keep * wallet[RETURN_MEAN] + (1.0 - keep) * log_return
    wallet[RETURN_SQUARE] = keep * wallet[RETURN_SQUARE] + (1.0 - keep) * counted * counted


@kernel
def open_moments(wallet, sigma_per_bar, rules):  # type: ignore[no-untyped-def]
    """Before anything was earned: no mean, and the deviation of an exposure of 1 to the market."""
    wallet[RETURN_MEAN] = 0.0
    share = 0.5 if rules.reward == DIFFERENTIAL_SORTINO else 1.0
    wallet[RETURN_SQUARE] = share * sigma_per_bar * sigma_per_bar
