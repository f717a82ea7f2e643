"""What share of the best possible result an agent reaches; every judge books its bars in the env."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from play import Agent, Floats, Played, Rule, Stretches, follow, play
from references import Liquidation, best_constant_exposure, growth
from tapes import net_returns

from perpgym.envs.actions import ActionKind


class Score(NamedTuple):
    """``fraction`` of the optimum, and a ``value`` in the unit of the problem's source."""

    fraction: float
    value: float


class Eyes(NamedTuple):
    """How an agent meets a market: its kind of action, and windows or the index of a bar."""

    action: ActionKind
    with_windows: bool = False


# from an agent and how it meets the market to its score
Judge = Callable[[Agent, Eyes], Score]


def _seen(stretches: Stretches, eyes: Eyes) -> Stretches:
    env = replace(stretches.env, action=eyes.action)
    return replace(stretches, env=env, with_windows=eyes.with_windows)


@dataclass(frozen=True, kw_only=True)
class RewardShare:
    """Mean reward over that of the best rule on the very same bars, which takes out the sample's own luck.

    Attributes:
        stretches: where both play.
        rule: the best there is.
        unit: value of a mean reward of 1.
    """

    stretches: Stretches
    rule: Rule
    unit: float = 1.0

    def __call__(self, agent: Agent, eyes: Eyes) -> Score:
        reward = float(play(_seen(self.stretches, eyes), agent).reward.mean())
        return Score(reward / self.best_reward, self.unit * reward)

    @cached_property
    def best_reward(self) -> float:
        """Mean reward of a bar."""
        return float(play(self.stretches, follow(self.rule)).reward.mean())


@dataclass(frozen=True, kw_only=True)
class GrowthShare:
    """Log growth of the mean exposure over that of the tape's own best one; the value is the exposure."""

    stretches: Stretches

    def __call__(self, agent: Agent, eyes: Eyes) -> Score:
        exposure = float(play(_seen(self.stretches, eyes), agent).exposure.mean())
        return Score(growth(exposure, self._returns) / growth(self.best_exposure, self._returns), exposure)

    @cached_property
    def best_exposure(self) -> float:
        """Of the whole tape."""
        return best_constant_exposure(self._returns)

    @cached_property
    def _returns(self) -> Floats:
        return net_returns(self.stretches.tape)


@dataclass(frozen=True, kw_only=True)
class SideOfSwitch:
    """1 if an agent's mean exposure lies nearer to the better of two, short and flat, else 0.

    Attributes:
        stretches: where it plays.
        is_short_better: whether to be short is.
    """

    stretches: Stretches
    is_short_better: bool

    def __call__(self, agent: Agent, eyes: Eyes) -> Score:
        # the last bar ends flat, whatever was held in it
        exposure = float(play(_seen(self.stretches, eyes), agent).exposure[:-1].mean())
        is_short = exposure < -0.5 * self.stretches.env.max_exposure
        return Score(float(is_short == self.is_short_better), exposure)


@dataclass(frozen=True, kw_only=True)
class ScheduleShare:
    """What the best schedule for selling a block costs over what an agent's does, as the env booked both.

    The value is that cost U, expected cost and lambda times its variance, in the paper's money.
    """

    stretches: Stretches
    block: Liquidation

    def __call__(self, agent: Agent, eyes: Eyes) -> Score:
        cost = self.booked_cost(play(_seen(self.stretches, eyes), agent))
        return Score(self.least_cost / cost, cost)

    @cached_property
    def least_cost(self) -> float:
        """U of the closed form, with the fee on what a sale brought: a little less than on the price."""
        held = self.block.schedule()[::-1] / self.block.shares
        steps_left = np.linspace(0.0, 1.0, self.block.steps)

        def rule(features: Floats, exposure: Floats) -> Floats:
            del exposure
            # a decision with k of N - 1 bars to come leaves k steps of the schedule
            return np.interp(features[:, 0], steps_left, held[:-1])

        return self.booked_cost(play(self.stretches, follow(rule)))

    def booked_cost(self, played: Played) -> float:
        """U: half of what the permanent impact costs is the same for every schedule, and no trade pays it."""
        permanent = 0.5 * self.block.permanent_impact * self.block.shares**2
        worth = self.block.shares * self.block.price
        return permanent - float(played.reward.sum(axis=0).mean()) * worth


def starts_of(pieces: int, bars: int, first: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(N,) starts of equal pieces of a tape, ``first`` bars into each."""
    return first + bars * np.arange(pieces, dtype=np.int64)
