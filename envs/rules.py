"""From tape, contracts, account settings and limits to the arrays that the kernels read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.contract import HOUR_MS, Contract
from perpgym.data.tape import Tape
from perpgym.envs.actions import ACTION_KINDS
from perpgym.envs.arrays import AccountRules, Choices, ContractRules, Market, World
from perpgym.envs.config import EXECUTION_STYLES, REWARD_KINDS, EnvConfig, MarginMode
from perpgym.envs.execution import whole_inverse
from perpgym.envs.finer import Finer
from perpgym.envs.risk.limits import RiskLimits

Float64 = NDArray[np.float64]


def make_contract_rules(
    contract: Contract, config: EnvConfig, leverage: float, margin_mode: MarginMode
) -> ContractRules:
    """The kernel's rules for one contract at its own leverage setting and margin mode.

    Raises:
        ValueError: the contract admits no position at this leverage, or the rates in force pay for trading
            in circles.
    """
    taker_rate = contract.taker_rate if config.taker_rate is None else config.taker_rate
    maker_rate = contract.maker_rate if config.maker_rate is None else config.maker_rate
    if config.cost != "exchange":
        taker_rate = maker_rate = config.linear_cost_rate
    elif config.fees is None and min(maker_rate, 0.0) + taker_rate < 0.0:
        raise ValueError(
            f"taker_rate must be at least the maker's rebate, was {taker_rate:g} with a maker_rate of "
            f"{maker_rate:g} on {contract.symbol}: no exchange pays for trading in circles; set both "
            "rates of EnvConfig, or leave both null for the contract's"
        )
    is_rounded, is_limited = config.rounding == "on", config.limits == "on"
    tick_size = contract.tick_size if is_rounded else 0.0
    lot_size = contract.lot_size if is_rounded else 0.0
    return ContractRules(
        is_inverse=float(contract.kind == "inverse"),
        is_isolated=float(margin_mode == "isolated" and is_limited),
        tick_size=tick_size,
        tick_inverse=whole_inverse(tick_size),
        lot_size=lot_size,
        lot_inverse=whole_inverse(lot_size),
        min_quantity=contract.min_quantity if is_rounded else 0.0,
        max_quantity=contract.max_quantity if is_limited else math.inf,
        min_notional=contract.min_notional if is_rounded else 0.0,
        taker_rate=taker_rate,
        maker_rate=maker_rate,
        clearance_rate=contract.clearance_rate,
        leverage=leverage,
        max_position_notional=max_position_notional(contract, leverage) if is_limited else math.inf,
    )


def make_account_rules(
    config: EnvConfig, limits: RiskLimits, *, bar_ms: int = HOUR_MS, fine_ms: int = HOUR_MS
) -> AccountRules:
    """The kernel's rules for the account, on bars of ``bar_ms`` that ``fine_ms`` bars resolve."""
    push, keep = config.impact.kernel_numbers(bar_ms, fine_ms)
    fees = config.fees
    is_exchange, is_limited = config.cost == "exchange", config.limits == "on"
    rules = AccountRules(
        action=float(ACTION_KINDS.index(config.action)),
        max_exposure=config.max_exposure,
        is_fixed_size=float(config.sizing == "fixed_notional"),
        rebalance_threshold=config.rebalance_threshold,
        is_unlimited=float(not is_limited),
        is_sold_at_end=float(config.terminal == "liquidate"),
        quadratic_cost=config.quadratic_cost_rate if config.cost == "quadratic" else 0.0,
        is_reduce_only=float(config.reduce_only),
        leaves_trace=float(config.impact.kind != "none"),
        **dict(zip(("push_0", "push_1", "push_2", "push_permanent"), push, strict=True)),
        **dict(zip(("keep_0", "keep_1", "keep_2"), keep, strict=True)),
        half_spread=config.half_spread_bps * 1e-4 if is_exchange else 0.0,
        impact_coefficient=config.impact_coefficient if is_exchange else 0.0,
        max_participation=config.max_participation,
        style=float(EXECUTION_STYLES.index(config.execution)),
        limit_offset=config.limit_offset_bps * 1e-4,
        iceberg_clip=config.iceberg_clip,
        latency_ms=config.latency_ms + config.latency_bars * bar_ms,
        carries_remainder=float(config.remainder == "carry"),
        stop_loss=config.stop_loss or 0.0,
        stop_volatility=config.stop_volatility or 0.0,
        is_trailing=float(config.trailing_stop),
        max_bars_held=_or_inf(config.max_bars_held),
        take_profit=config.take_profit or 0.0,
        stop_on_mark=float(config.stop_trigger == "mark"),
        stop_at_last=1.0,
        discount_factor=1.0 if fees is None else fees.discount_factor,
        traded_before=0.0 if fees is None else fees.traded_before,
        funding_multiplier=config.funding_multiplier,
        liquidates_by_bracket=float(config.liquidation == "brackets"),
        liquidates_at_bankruptcy=0.0,
        is_joint_adverse=float(config.extremes == "joint_adverse"),
        max_drawdown=config.max_drawdown if is_limited else math.inf,
        reward=float(REWARD_KINDS.index(config.reward)),
        reward_scale=config.reward_scale,
        reward_equity_floor=config.reward_equity_floor,
        reward_risk_aversion=config.reward_risk_aversion,
        reward_keep=0.5 ** (1.0 / config.reward_half_life_bars),
        reward_variance=config.reward_variance,
        reward_on_conditional_mean=float(config.reward_on_conditional_mean),
        reward_drawdown=config.reward_drawdown,
        reward_turnover=config.reward_turnover,
        reward_liquidation=config.reward_liquidation,
        max_leverage=limits.max_leverage,
        max_notional=_or_inf(limits.max_notional),
        max_daily_loss=_or_inf(limits.max_daily_loss),
        drawdown_start=_or_inf(limits.drawdown_start),
    )
    # a setting that is a whole number would be another type, for which numba compiles everything anew
    return AccountRules(*map(float, rules))


def pack_contracts(contracts: tuple[Contract, ...], config: EnvConfig) -> tuple[Float64, Float64]:
    """Rules (A, len(ContractRules)) and brackets (A, B, 5), short tables filled up with their last row.

    Raises:
        ValueError: the contracts settle in different currencies or in one that their symbols do not say, or
            one admits no position at this leverage.
    """
    nameless = [c.symbol for c in contracts if not settle_currency(c)]
    if nameless and len(contracts) > 1:
        raise ValueError(
            "contracts on one tape must settle in one currency, but that of "
            f"{', '.join(nameless)} is unknown: name them as ccxt does, BASE/QUOTE:SETTLE "
            "such as BTC/USDT:USDT"
        )
    currencies = {settle_currency(c) for c in contracts}
    if len(currencies) > 1:
        raise ValueError(
            "contracts on one tape must settle in one currency, these settle in "
            f"{', '.join(sorted(currencies))}: collateral of several currencies is not modelled, "
            "build one tape for each"
        )
    leverages, modes = config.leverages(len(contracts)), config.margin_modes(len(contracts))
    settings = zip(contracts, leverages, modes, strict=True)
    rules = np.array([make_contract_rules(c, config, x, mode) for c, x, mode in settings], dtype=np.float64)
    rows = max(len(c.brackets) for c in contracts)
    tables = [c.bracket_table() for c in contracts]
    brackets = np.stack([np.concatenate([t, np.repeat(t[-1:], rows - len(t), axis=0)]) for t in tables])
    return rules, brackets


def make_world(tape: Tape, config: EnvConfig, limits: RiskLimits, finer: Finer | None = None) -> World:
    """Everything that accounts on this tape meet.

    Raises:
        ValueError: as :func:`pack_contracts`; or a latency that no finer bar resolves.
    """
    rules, brackets = pack_contracts(tape.contracts, config)
    if config.reward_on_conditional_mean and tape.planted is None:
        raise ValueError(
            "reward_on_conditional_mean needs a tape that knows its mean (Tape.planted: simulated markets "
            "and the problems of benchmarks/optima do); set it to false for real data"
        )
    market = market_arrays(tape, config, finer)
    account_rules = make_account_rules(config, limits, bar_ms=tape.bar_ms, fine_ms=market.fine_ms)
    if account_rules.latency_ms % tape.bar_ms > (market.fine_per_bar - 1) * market.fine_ms:
        raise ValueError(
            f"latency_ms={config.latency_ms:g} needs finer bars that resolve it: pass finer= bars of at most "
            f"that length to the env (its bars have {market.fine_ms} ms), set latency_ms to 0, or count in "
            "whole bars with latency_bars"
        )
    tiers = np.zeros((0, 3)) if config.fees is None else config.fees.tier_table()
    return World(market, rules, brackets, account_rules, make_choices(config), tiers)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view in C order of an array in memory or in a mapped file.

    Numba compiles anew, for a minute or more, for another layout, and for arrays that may be written where
    others may not.
    """
    view = np.ascontiguousarray(array).view()
    view.setflags(write=False)
    return view


def make_choices(config: EnvConfig) -> Choices:
    """What the indices of the discrete actions stand for; ``counts`` is empty for continuous ones."""
    levels = config.ladder if config.action == "ladder" else config.head_sizes
    return Choices(
        levels=np.array(levels, np.float64) * config.max_exposure,
        stops=np.array(config.head_stops, np.float64),
        styles=np.array([EXECUTION_STYLES.index(style) for style in config.head_styles], np.float64),
        counts=np.array(config.choices, np.float64),
    )


def market_arrays(tape: Tape, config: EnvConfig, finer: Finer | None = None) -> Market:
    """The tape as the kernels see it, with the bars inside its bars and what impact needs; read-only."""
    finer = finer or Finer.same(tape)
    market = Market(
        open_time_ms=tape.open_time_ms,
        last=tape.last,
        mark=tape.mark,
        volume=tape.volume,
        sigma_per_bar=tape.sigma_per_bar,
        stamp_start=tape.stamp_start,
        stamp_time_ms=tape.stamp_time_ms,
        stamp_rate=tape.stamp_rate,
        root_illiquidity=config.impact.root_illiquidity(tape),
        planted=np.empty((0, len(tape.contracts))) if tape.planted is None else tape.planted,
        bar_ms=tape.bar_ms,
        fine_last=finer.last,
        fine_mark=finer.mark,
        fine_volume=finer.volume,
        fine_share=finer.share,
        fine_first=finer.first,
        fine_per_bar=finer.per_bar,
        fine_ms=tape.bar_ms // finer.per_bar,
        fine_sigma_scale=finer.per_bar**-0.5,
    )
    return _frozen_market(market)


def _frozen_market(market: Market) -> Market:
    return Market(*(frozen(part) if isinstance(part, np.ndarray) else part for part in market))


def one_bar_market(
    *,
    mark_before: Float64,
    last: Float64,
    mark: Float64,
    volume: Float64,
    sigma_per_bar: Float64,
    open_ms: int = 0,
    bar_ms: int = 3_600_000,
    stamps: Sequence[Sequence[tuple[int, float]]] = (),
    root: Float64 | None = None,
) -> Market:
    """A market of one bar, number 1, after a bar of which only is known that it traded and its mark close.

    Args:
        mark_before: (A,) quote.
        last, mark: (A, 4) quote, open high low close.
        volume: (A,) base.
        sigma_per_bar: (A,) volatility of the bar's log return as known before it.
        open_ms, bar_ms: when the bar opens, how long it is.
        root: (A,) ``Market.root_illiquidity`` as known before it; None for 0.
        stamps: by contract, (time in ms, rate) of the settlements that the bar owns, ascending.
    """
    owned = list(stamps) or [()] * last.shape[0]
    ends = np.cumsum([len(rows) for rows in owned])
    starts = ends - [len(rows) for rows in owned]
    flat = [stamp for rows in owned for stamp in rows]
    before = np.repeat(mark_before[:, None], 4, axis=1)
    both_last, both_mark = (np.stack([before, prices]).astype(np.float64) for prices in (last, mark))
    both_volume = np.stack([np.ones_like(volume), volume]).astype(np.float64)
    market = Market(
        open_time_ms=np.array([open_ms - bar_ms, open_ms], np.int64),
        last=both_last,
        mark=both_mark,
        volume=both_volume,
        sigma_per_bar=np.stack([sigma_per_bar, sigma_per_bar]).astype(np.float64),
        stamp_start=np.stack([starts, starts, ends], axis=1).astype(np.int64),
        stamp_time_ms=np.array([time for time, _rate in flat], np.int64),
        stamp_rate=np.array([rate for _time, rate in flat], np.float64),
        root_illiquidity=np.zeros_like(both_volume) if root is None else np.stack([root, root]),
        planted=np.empty((0, last.shape[0])),
        bar_ms=bar_ms,
        fine_last=both_last,
        fine_mark=both_mark,
        fine_volume=both_volume,
        fine_share=np.ones_like(both_volume),
        fine_first=0,
        fine_per_bar=1,
        fine_ms=bar_ms,
        fine_sigma_scale=1.0,
    )
    return _frozen_market(market)


def settle_currency(contract: Contract) -> str:
    """The currency of margin and profit: after the colon of ccxt's symbol, else quote, base if inverse.

    Empty where the symbol is no such name (``BTCUSDT``), which nobody can take apart.
    """
    pair, _, settle = contract.symbol.partition(":")
    base, _, quote = pair.partition("/")
    return settle or (base if quote and contract.kind == "inverse" else quote)


def max_position_notional(contract: Contract, leverage: float) -> float:
    """Settle currency, the largest position that the exchange admits at this leverage setting.

    Raises:
        ValueError: the contract admits no position at this leverage.
    """
    caps = [bracket.cap for bracket in contract.brackets if bracket.max_leverage >= leverage]
    if not caps:
        most = max(bracket.max_leverage for bracket in contract.brackets)
        raise ValueError(f"leverage must be at most {most:g} for {contract.symbol}, was {leverage:g}")
    return max(caps)


def _or_inf(limit: float | None) -> float:
    return math.inf if limit is None else limit
