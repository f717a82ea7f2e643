"""From contract, account settings and limits to the one row of numbers that the kernel reads."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from perpgym.data.contract import Contract
from perpgym.envs.account import Rules
from perpgym.envs.config import EnvConfig
from perpgym.envs.risk.limits import RiskLimits


def make_rules(contract: Contract, config: EnvConfig, limits: RiskLimits) -> Rules:
    """The kernel's rules for one account on one contract.

    Raises:
        ValueError: the contract is inverse, or admits no position at this leverage.
    """
    if contract.kind != "linear":
        raise ValueError(f"{contract.symbol} is {contract.kind}: only linear contracts are supported for now")
    return Rules(
        tick_size=contract.tick_size,
        lot_size=contract.lot_size,
        min_quantity=contract.min_quantity,
        max_quantity=contract.max_quantity,
        min_notional=contract.min_notional,
        taker_rate=contract.taker_rate if config.taker_rate is None else config.taker_rate,
        clearance_rate=contract.clearance_rate,
        leverage=config.leverage,
        is_isolated=float(config.margin_mode == "isolated"),
        is_band=float(config.action == "band"),
        max_exposure=config.max_exposure,
        rebalance_threshold=config.rebalance_threshold,
        half_spread=config.half_spread_bps * 1e-4,
        impact_coefficient=config.impact_coefficient,
        max_participation=config.max_participation,
        stop_loss=config.stop_loss or 0.0,
        take_profit=config.take_profit or 0.0,
        stop_on_mark=float(config.stop_trigger == "mark"),
        funding_multiplier=config.funding_multiplier,
        max_drawdown=config.max_drawdown,
        reward_equity_floor=config.reward_equity_floor,
        reward_scale=config.reward_scale,
        reward_risk_aversion=config.reward_risk_aversion,
        max_leverage=limits.max_leverage,
        max_notional=_or_inf(limits.max_notional),
        max_daily_loss=_or_inf(limits.max_daily_loss),
        drawdown_start=_or_inf(limits.drawdown_start),
        max_position_notional=_max_position_notional(contract, config.leverage),
    )


def pack_rules(contract: Contract, config: EnvConfig, limits: RiskLimits) -> NDArray[np.float64]:
    """(len(Rules),) float64, in the order of ``Rules``."""
    return np.array(make_rules(contract, config, limits), dtype=np.float64)


def _max_position_notional(contract: Contract, leverage: float) -> float:
    """Quote, the largest position that the exchange admits at this leverage setting."""
    caps = [bracket.cap for bracket in contract.brackets if bracket.max_leverage >= leverage]
    if not caps:
        most = max(bracket.max_leverage for bracket in contract.brackets)
        raise ValueError(f"leverage must be at most {most:g} for {contract.symbol}, was {leverage:g}")
    return max(caps)


def _or_inf(limit: float | None) -> float:
    return math.inf if limit is None else limit
