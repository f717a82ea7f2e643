"""What the kernels read and write: market, rules and account as tuples of arrays and numbers.

Numba passes a ``NamedTuple`` as its parts, so naming things costs nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from perpgym.data.bars import CLOSE, HIGH, LOW, OPEN
from perpgym.envs.compile import kernel


class Market(NamedTuple):
    """A tape as the kernels see it, with the bars inside its bars (the same ones, without a finer tape).

    Attributes:
        open_time_ms: (T,) int64.
        last, mark: (T, A, 4) float64.
        volume: (T, A) float64 base; 0 where nothing trades.
        sigma_per_bar: (T, A) float64, known at the close of its bar.
        stamp_start: (A, T + 1) int64, which settlements a bar owns.
        stamp_time_ms, stamp_rate: (S,) int64 and float64.
        root_illiquidity: (T, A) float64, square root of a bar's volatility over its usual turnover, known at
            the close of its bar; 0 where the account leaves no trace.
        planted: (T, A) float64, expected simple return over the bar after; (0, A) where unknown.
        bar_ms: int, length of a bar.
        fine_last, fine_mark: (T * n + …, A, 4) float64, bars of ``fine_ms``.
        fine_volume: the same times, (…, A).
        fine_share: the same times, (…, A), expected share of a finer bar in what is left of its bar's volume.
        fine_first: int, index of the finer bar that opens with bar 0.
        fine_per_bar: int, n; 1 without a finer tape.
        fine_ms: int, bar_ms / n.
        fine_sigma_scale: 1 / sqrt(n), from the volatility of a bar to that of a finer one.
    """

    open_time_ms: Any
    last: Any
    mark: Any
    volume: Any
    sigma_per_bar: Any
    stamp_start: Any
    stamp_time_ms: Any
    stamp_rate: Any
    root_illiquidity: Any
    planted: Any
    bar_ms: Any
    fine_last: Any
    fine_mark: Any
    fine_volume: Any
    fine_share: Any
    fine_first: Any
    fine_per_bar: Any
    fine_ms: Any
    fine_sigma_scale: Any


class ContractRules(NamedTuple):
    """The exchange's rules for one contract and the account's settings on it; floats, inf for no limit.

    ``tick_inverse``, ``lot_inverse``: ``execution.whole_inverse`` of the steps. A quantity is base units on a
    linear contract, quote units (contracts times their size) on an inverse one.
    """

    is_inverse: float
    is_isolated: float
    tick_size: float
    tick_inverse: float
    lot_size: float
    lot_inverse: float
    min_quantity: float
    max_quantity: float
    min_notional: float
    taker_rate: float
    maker_rate: float
    clearance_rate: float
    leverage: float
    max_position_notional: float


class AccountRules(NamedTuple):
    """Settings of the account, its execution and its limits; floats, inf for no limit.

    ``is_unlimited``: no margin, liquidation, ruin nor limits. ``is_fixed_size``: exposures are measured over
    the initial wallet. ``quadratic_cost``: twice what trading an exposure of 1 costs, over what that is.
    ``push_*``: how much of a fill each component of its trace takes; ``keep_*``: what a finer bar leaves of
    it. ``stop_at_last``: a stop or target that the mark triggers fills where the last price stands, a target
    only if it trades there. ``liquidates_at_bankruptcy``: a liquidation takes the whole
    margin.
    """

    action: float
    max_exposure: float
    is_fixed_size: float
    rebalance_threshold: float
    is_unlimited: float
    is_sold_at_end: float
    quadratic_cost: float
    is_reduce_only: float
    leaves_trace: float
    push_0: float
    push_1: float
    push_2: float
    push_permanent: float
    keep_0: float
    keep_1: float
    keep_2: float
    half_spread: float
    impact_coefficient: float
    max_participation: float
    style: float
    limit_offset: float
    iceberg_clip: float
    latency_ms: float
    carries_remainder: float
    stop_loss: float
    stop_volatility: float
    is_trailing: float
    max_bars_held: float
    take_profit: float
    stop_on_mark: float
    stop_at_last: float
    discount_factor: float
    traded_before: float
    funding_multiplier: float
    liquidates_by_bracket: float
    liquidates_at_bankruptcy: float
    is_joint_adverse: float
    max_drawdown: float
    reward: float
    reward_scale: float
    reward_equity_floor: float
    reward_risk_aversion: float
    reward_keep: float
    reward_variance: float
    reward_on_conditional_mean: float
    reward_drawdown: float
    reward_turnover: float
    reward_liquidation: float
    max_leverage: float
    max_notional: float
    max_daily_loss: float
    drawdown_start: float


class Choices(NamedTuple):
    """What the indices of a discrete action stand for.

    Attributes:
        levels: (L,) float64, exposures of a ladder's levels, or of the heads' sizes.
        stops: (S,) float64, volatilities of a bar; 0 is the account's own stop.
        styles: (K,) float64, codes of execution styles.
        counts: (action_dim,) float64, how many choices each number of a contract's action has; empty for
            continuous actions.
    """

    levels: Any
    stops: Any
    styles: Any
    counts: Any


_NO_TIERS = np.zeros((0, 3))
_NO_CHOICES = Choices(np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(0))


class World(NamedTuple):
    """Everything that an account meets and cannot change.

    Attributes:
        market: ``Market``.
        contracts: (A, len(ContractRules)) float64.
        brackets: (A, B, 5) float64.
        rules: ``AccountRules``.
        choices: ``Choices``.
        fee_tiers: (N, 3) float64, ``FeeSchedule.tier_table()``; empty without tiers.
    """

    market: Market
    contracts: Any
    brackets: Any
    rules: AccountRules
    choices: Choices = _NO_CHOICES
    fee_tiers: Any = _NO_TIERS


class Account(NamedTuple):
    """One account's rows, in place.

    Attributes:
        wallet: (WALLET_COLUMNS,) float64.
        positions: (A, POSITION_COLUMNS) float64.
        ledger: (len(LEDGER_COLUMNS),) float64, what the step booked.
        holdings: (A, len(CONTRACT_LEDGER_COLUMNS)) float64, the same by contract.
        orders: (A, ORDER_COLUMNS) float64, between decision and fill.
        fills: (F, FILL_COLUMNS) float64, the first F fills of the step; F = 0 keeps none.
        traded: (TRADED_COLUMNS,) float64, what it traded in 30 days and pays for it; empty without tiers.
    """

    wallet: Any
    positions: Any
    ledger: Any
    holdings: Any
    orders: Any
    fills: Any
    traded: Any


class BatchState(NamedTuple):
    """What N accounts on P paths carry from step to step, in place.

    Attributes:
        wallets: (N, WALLET_COLUMNS) float64.
        positions: (N, A, POSITION_COLUMNS) float64.
        orders: (N, A, ORDER_COLUMNS) float64.
        traded: (N, TRADED_COLUMNS) float64, or (N, 0) without fee tiers.
        totals: (N, len(TOTAL_COLUMNS)) float64, the ledger's parts since the episode began.
        path_bar, path_end: (P,) int64, the newest closed bar and the last one of the episode.
        next_start, next_end: (P,) int64, the episode that follows; start -1 once it is used.
        restart_wallet: (N,) float64, restart_exposure: (N, A) float64, of the next restart.
    """

    wallets: Any
    positions: Any
    orders: Any
    traded: Any
    totals: Any
    path_bar: Any
    path_end: Any
    next_start: Any
    next_end: Any
    restart_wallet: Any
    restart_exposure: Any


class StepArrays(NamedTuple):
    """What a step of N accounts writes; see ``StepBuffers``."""

    bar: Any
    account: Any
    portfolio: Any
    reward: Any
    terminated: Any
    truncated: Any
    ledger: Any
    holdings: Any
    final_totals: Any
    final_bar: Any
    final_account: Any
    final_portfolio: Any


@kernel
def contract_rules(values):  # type: ignore[no-untyped-def]
    """Name one row of packed contract rules; the tuple lives in registers, so this costs nothing."""
    return ContractRules(
        values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7], values[8],
        values[9], values[10], values[11], values[12], values[13],
    )  # fmt: skip


class Bar(NamedTuple):
    """What one contract's market does in one bar; prices quote, volume in the contract's quantity units."""

    last_open: float
    last_high: float
    last_low: float
    last_close: float
    mark_open: float
    mark_high: float
    mark_low: float
    mark_close: float
    volume: float
    sigma_per_bar: float
    root_illiquidity: float = 0.0


@kernel
def read_bar(market, now, fine, asset, is_inverse):  # type: ignore[no-untyped-def]
    """Gather finer bar ``fine`` of bar ``now``; its volatility is known at the close before it."""
    last_open = market.fine_last[fine, asset, OPEN]
    volume = market.fine_volume[fine, asset]
    return Bar(
        last_open,
        market.fine_last[fine, asset, HIGH],
        market.fine_last[fine, asset, LOW],
        market.fine_last[fine, asset, CLOSE],
        market.fine_mark[fine, asset, OPEN],
        market.fine_mark[fine, asset, HIGH],
        market.fine_mark[fine, asset, LOW],
        market.fine_mark[fine, asset, CLOSE],
        volume * last_open if is_inverse > 0.0 else volume,
        market.sigma_per_bar[now - 1, asset] * market.fine_sigma_scale,
        market.root_illiquidity[now - 1, asset],
    )
