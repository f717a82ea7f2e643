"""What a step is worth: one settings class a reward, each resolved to the numbers that the kernel applies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig, RewardKind


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What every reward has.

    Attributes:
        scale: multiplies the reward; None takes the class's own, see there.
        equity_floor: the log return is floored at this one's logarithm, fraction of equity.
        drawdown_penalty: what an increase of the drawdown by 1 costs, before the scale.
        turnover_penalty: what trading the whole equity once costs, before the scale.
        liquidation_penalty: what a liquidation costs, before the scale.
    """

    kind: ClassVar[RewardKind]

    scale: float | None = None
    equity_floor: float = 0.01
    drawdown_penalty: float = 0.0
    turnover_penalty: float = 0.0
    liquidation_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale > 0:
            raise ValueError(
                f"reward scale must be positive, was {self.scale}; null lets the reward choose its own"
            )

    def apply(self, config: EnvConfig, tape: Tape, start_bar: int, end_bar: int) -> EnvConfig:
        """``config`` with this reward; what is derived comes from bars ``start_bar`` up to ``end_bar``."""
        return replace(
            config,
            reward=self.kind,
            reward_scale=self.own_scale(tape, start_bar, end_bar) if self.scale is None else self.scale,
            reward_equity_floor=self.equity_floor,
            reward_drawdown=self.drawdown_penalty,
            reward_turnover=self.turnover_penalty,
            reward_liquidation=self.liquidation_penalty,
        )

    def own_scale(self, tape: Tape, start_bar: int, end_bar: int) -> float:
        """One over the deviation of the mark's log return: a unit exposure earns rewards of unit size."""
        returns = np.diff(np.log(tape.mark[start_bar:end_bar, :, CLOSE]), axis=0)
        # of every contract since it is there
        deviation = float(returns[tape.is_valid[start_bar + 1 : end_bar]].std())
        return 1.0 / deviation if deviation > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class LogReturn(Reward):
    """Log equity return of a step, less a price for its risk.

    Attributes:
        risk_aversion: gamma; log return g is worth g - (gamma - 1) / 2 * g**2, the second-order expansion of
            power utility. 1 is log growth, whose optimal exposures draw down by half.
    """

    kind: ClassVar[RewardKind] = "log_return"

    risk_aversion: float = 1.0

    def apply(self, config: EnvConfig, tape: Tape, start_bar: int, end_bar: int) -> EnvConfig:
        config = super().apply(config, tape, start_bar, end_bar)
        return replace(config, reward_risk_aversion=self.risk_aversion)


@dataclass(frozen=True, kw_only=True)
class DifferentialSharpe(Reward):
    """How much one more return lifts the Sharpe ratio of the running moments (Moody, Saffell 2001).

    The moments are a part of the observation (``return_mean``, ``return_deviation``). Its own scale is 1.

    Attributes:
        half_life_bars: memory of the moments.
    """

    kind: ClassVar[RewardKind] = "differential_sharpe"

    half_life_bars: float = 168.0

    def apply(self, config: EnvConfig, tape: Tape, start_bar: int, end_bar: int) -> EnvConfig:
        config = super().apply(config, tape, start_bar, end_bar)
        return replace(config, reward_half_life_bars=self.half_life_bars)

    def own_scale(self, tape: Tape, start_bar: int, end_bar: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class DifferentialSortino(DifferentialSharpe):
    """The same with the deviation of losses alone (the paper's downside deviation ratio)."""

    kind: ClassVar[RewardKind] = "differential_sortino"


@dataclass(frozen=True, kw_only=True)
class MeanVariance(Reward):
    """Gain less half of ``variance_penalty`` times the squared exposures less costs, in units of an exposure.

    Contracts are taken one by one: their correlation is not in it. Exposures are those that the bar's orders
    led to, at the mark on which they were decided.

    Attributes:
        variance_penalty: kappa, per squared exposure and bar; risk aversion times the variance of a bar.
        on_conditional_mean: the gain is exposure times the mean return that the tape planted, which has no
            noise; needs a tape that knows it. Otherwise it is what the market and funding brought.
    """

    kind: ClassVar[RewardKind] = "mean_variance"

    variance_penalty: float = 0.0
    on_conditional_mean: bool = False

    def apply(self, config: EnvConfig, tape: Tape, start_bar: int, end_bar: int) -> EnvConfig:
        config = super().apply(config, tape, start_bar, end_bar)
        return replace(
            config,
            reward_variance=self.variance_penalty,
            reward_on_conditional_mean=self.on_conditional_mean,
        )
