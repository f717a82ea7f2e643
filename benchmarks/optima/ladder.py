"""The best that can be done on a ladder of exposures, and what share of it an agent reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from judges import RewardShare
from numpy.typing import NDArray
from problems import CHAOUKI_UNIT, Problem
from references import CHAOUKI_PERSISTENCE, CHAOUKI_SD, GP_H

from perpgym.envs import EnvConfig

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LadderProblem:
    """An AR(1) signal, costs and risk as an env charges them, and few exposures to choose from.

    The reward of holding x over a bar, having held x0, is s x - risk / 2 x^2 - cost(x - x0). Solved on a grid
    of signals by relative value iteration (Puterman 1994, section 8.5.5); nothing but that grid is inexact.

    Attributes:
        levels: (L,) exposures, ascending.
        persistence: correlation of the signal with its value a bar earlier.
        signal_sd: stationary deviation of the signal, the expected return of a bar.
        risk: per squared position and bar.
        linear_cost, quadratic_cost: per unit traded, and twice per squared unit.
    """

    levels: tuple[float, ...]
    persistence: float
    signal_sd: float
    risk: float = 0.0
    linear_cost: float = 0.0
    quadratic_cost: float = 0.0

    @classmethod
    def of(cls, env: EnvConfig, *, persistence: float, signal_sd: float) -> LadderProblem:
        """As the env charges it, at a price that stands still."""
        linear = (
            env.linear_cost_rate if env.cost != "exchange" else env.taker_rate + 1e-4 * env.half_spread_bps
        )
        return cls(
            levels=tuple(env.max_exposure * level for level in env.ladder),
            persistence=persistence,
            signal_sd=signal_sd,
            risk=env.reward_variance,
            linear_cost=linear or 0.0,
            quadratic_cost=env.quadratic_cost_rate,
        )

    def solve(self, points: int = 401, tolerance: float = 1e-9) -> LadderRule:
        """The best rule.

        Raises:
            RuntimeError: no convergence.
        """
        levels = np.array(self.levels)
        signal = self.signal_sd * np.linspace(-5.0, 5.0, points)
        trade = np.abs(levels[:, None] - levels)  # held, next
        cost = self.linear_cost * trade + 0.5 * self.quadratic_cost * trade**2
        earned = signal[:, None] * levels - 0.5 * self.risk * levels**2  # S next
        move = self._moves(signal)
        value = np.zeros((points, levels.size))
        for _ in range(20_000):
            after = earned + move @ value  # S next
            updated = (after[:, None, :] - cost).max(axis=2)  # S held
            change = updated - value
            value = updated - updated[points // 2, levels.size // 2]
            if np.ptp(change) < tolerance * np.abs(earned).max():
                return LadderRule(levels, signal, after, cost, float(change.mean()))
        raise RuntimeError("relative value iteration did not converge: the persistence is too close to 1")

    def _moves(self, signal: Floats) -> Floats:
        """(S, S) probabilities of the next signal, spread over the two grid points beside each node."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        innovation = self.signal_sd * math.sqrt(1.0 - self.persistence**2)
        following = self.persistence * signal[:, None] + innovation * nodes
        place = np.clip((following - signal[0]) / (signal[1] - signal[0]), 0.0, signal.size - 1.000001)
        left = place.astype(np.int64)
        move = np.zeros((signal.size, signal.size))
        rows = np.broadcast_to(np.arange(signal.size)[:, None], left.shape)
        weights = weights / weights.sum()
        np.add.at(move, (rows, left), weights * (1.0 - (place - left)))
        np.add.at(move, (rows, left + 1), weights * (place - left))
        return move


@dataclass(frozen=True, kw_only=False)
class LadderRule:
    """From the signal and the level held to the level to hold next.

    Attributes:
        levels: (L,) exposures.
        signal: (S,) ascending grid.
        after: (S, L) worth of holding each level next, less the average.
        cost: (L, L) of trading from one, rows, to another.
        average_reward: of a bar in the long run.
    """

    levels: Floats
    signal: Floats
    after: Floats
    cost: Floats
    average_reward: float

    def trade(self, signal: Floats, held: Floats) -> Floats:
        """The exposure to hold next; what is held lies on the ladder, or at its nearest level."""
        worth = np.stack([np.interp(signal, self.signal, column) for column in self.after.T], axis=1)
        at = np.abs(held[:, None] - self.levels).argmin(axis=1)
        return np.asarray(self.levels[(worth - self.cost[at]).argmax(axis=1)])


# seven levels where a position pays for its risk; where nothing but the limit does, the default
_INNER = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
LADDERS = {"chaouki_linear": _INNER, "chaouki_limited": EnvConfig().ladder, "proportional": _INNER}
# persistence and deviation of the features, and the expected return of a feature of 1
_SIGNALS = {
    "chaouki_linear": (CHAOUKI_PERSISTENCE, CHAOUKI_SD, CHAOUKI_UNIT),
    "chaouki_limited": (CHAOUKI_PERSISTENCE, CHAOUKI_SD, CHAOUKI_UNIT),
    "proportional": (GP_H.persistence, 1.0, GP_H.signal_sd),
}


def on_ladder(problem: Problem) -> Problem:
    """The problem with the ladder for actions, judged by the best there is on it.

    Raises:
        KeyError: it is none with a signal.
    """
    persistence, feature_sd, per_feature = _SIGNALS[problem.name]
    ladder = LADDERS[problem.name]
    env = replace(problem.env, action="ladder", ladder=ladder)
    rule = LadderProblem.of(env, persistence=persistence, signal_sd=per_feature * feature_sd).solve()
    assert isinstance(problem.judge, RewardShare)
    stretches = replace(problem.judge.stretches, env=replace(problem.judge.stretches.env, ladder=ladder))
    judge = replace(
        problem.judge,
        stretches=stretches,
        rule=lambda features, held: rule.trade(per_feature * features[:, 0], held),
    )
    return replace(problem, name=f"{problem.name} on a ladder", env=env, judge=judge)
