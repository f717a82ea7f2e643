"""Rewards by hand, and that what they remember is a part of the observation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.rewards import DifferentialSharpe, DifferentialSortino, LogReturn, MeanVariance, Reward
from perpgym.envs.spaces import LEDGER, PORTFOLIO_NAMES

MakeTape = Callable[..., Tape]
FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)
SIGMA = 0.01


class Run:
    """One account that is told its exposure, bar after bar, on given closes."""

    def __init__(self, tape: Tape, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "action": "target", "max_exposure": 1.0, "window_bars": 1, "half_spread_bps": 0.0,
            "impact_coefficient": 0.0, "taker_rate": 0.0, "rebalance_threshold": 0.0, "rounding": "off",
        }  # fmt: skip
        self.env = PerpVecEnv(tape, n_paths=1, config=EnvConfig(**defaults | settings), limits=FREE)
        self.out = self.env.make_buffers()
        self.env.reset_into(self.out, 0)

    def step(self, exposure: float) -> float:
        self.env.step_into(np.array([[exposure]], np.float32), self.out)
        return float(self.out.reward[0])

    def booked(self, name: str) -> float:
        return float(self.out.ledger[0, LEDGER[name]])

    def seen(self, name: str) -> float:
        return float(self.out.portfolio[0, PORTFOLIO_NAMES.index(name)])


def rising(make_tape: MakeTape, *returns: float) -> Tape:
    closes = 30_000.0 * np.cumprod([1.0, *(1.0 + r for r in returns)])
    return make_tape(closes, wick=0.0, funding_rate=0.0, sigma=SIGMA)


def test_differential_sharpe_of_two_bars_by_hand(make_tape: MakeTape) -> None:
    run = Run(rising(make_tape, 0.02, -0.01, 0.0), reward="differential_sharpe", reward_half_life_bars=1.0)
    # before: mean 0, square 1e-4; r = ln 1.02 = 0.0198026
    first = math.log(1.02)
    assert run.step(1.0) == pytest.approx(1e-4 * first / 1e-6)
    # half is remembered
    mean, square = 0.5 * first, 0.5 * 1e-4 + 0.5 * first**2
    second = math.log(0.99)
    change = square * (second - mean) - 0.5 * mean * (second**2 - square)
    assert run.step(1.0) == pytest.approx(change / (square - mean**2) ** 1.5)


def test_differential_sharpe_is_the_derivative_of_the_running_ratio() -> None:
    """With respect to the adaptation rate at zero: the definition, differentiated numerically."""
    mean, square, gain = 0.001, 2e-4, 0.03

    def ratio(rate: float) -> float:
        a, b = mean + rate * (gain - mean), square + rate * (gain**2 - square)
        return a / math.sqrt(b - a * a)

    numeric = (ratio(1e-7) - ratio(-1e-7)) / 2e-7
    change = square * (gain - mean) - 0.5 * mean * (gain**2 - square)
    assert change / (square - mean**2) ** 1.5 == pytest.approx(numeric, rel=1e-6)


def test_differential_sortino_weighs_a_loss_by_the_deviation_of_losses(make_tape: MakeTape) -> None:
    run = Run(rising(make_tape, 0.02, -0.01, 0.0), reward="differential_sortino", reward_half_life_bars=1.0)
    # half of the market's variance is downside
    first, below = math.log(1.02), 0.5e-4
    assert run.step(1.0) == pytest.approx(first / math.sqrt(below))
    mean, below, second = 0.5 * first, 0.5 * below, math.log(0.99)
    loss = below * (second - 0.5 * mean) - 0.5 * mean * second**2
    assert run.step(1.0) == pytest.approx(loss / below**1.5)


@pytest.mark.parametrize("reward", ["differential_sharpe", "differential_sortino"])
def test_the_moments_that_a_ratio_remembers_are_observed(make_tape: MakeTape, reward: Any) -> None:
    run = Run(rising(make_tape, 0.02, -0.01, 0.03, 0.0), reward=reward, reward_half_life_bars=2.0)
    keep = 0.5**0.5
    mean, square = 0.0, SIGMA**2 * (0.5 if reward == "differential_sortino" else 1.0)
    for growth in (1.02, 0.99, 1.03):
        run.step(1.0)
        log = math.log(growth)
        counted = min(log, 0.0) if reward == "differential_sortino" else log
        mean, square = keep * mean + (1 - keep) * log, keep * square + (1 - keep) * counted**2
        variance = square - (0.0 if reward == "differential_sortino" else mean**2)
        assert run.seen("return_mean") == pytest.approx(mean / math.sqrt(variance), rel=1e-6)
        assert run.seen("return_deviation") == pytest.approx(100 * math.sqrt(variance), rel=1e-6)


def test_mean_variance_pays_the_planted_mean_less_variance_and_costs(make_tape: MakeTape) -> None:
    tape = rising(make_tape, 0.02, -0.01, 0.03, 0.0)
    object.__setattr__(tape, "planted", np.array([[0.001], [0.002], [0.003], [0.004], [0.0]]))
    run = Run(
        tape, reward="mean_variance", reward_variance=0.01, reward_on_conditional_mean=True,
        reward_scale=10.0, sizing="fixed_notional", cost="linear", linear_cost_rate=0.002,
    )  # fmt: skip
    first = int(run.out.bar[0])
    # 0.5 held over the next bar: 0.5 * m - 0.01 / 2 * 0.25 - 0.002 * 0.5
    expected = 10 * (0.5 * tape.planted[first, 0] - 0.00125 - 0.001)  # type: ignore[index]
    assert run.step(0.5) == pytest.approx(expected, rel=1e-6)


def test_mean_variance_without_the_planted_mean_pays_what_happened(make_tape: MakeTape) -> None:
    run = Run(rising(make_tape, 0.02, -0.01), reward="mean_variance", reward_variance=0.01)
    assert run.step(0.5) == pytest.approx(0.5 * 0.02 - 0.005 * 0.25)


def test_a_conditional_mean_needs_a_tape_that_knows_it(make_tape: MakeTape) -> None:
    with pytest.raises(ValueError, match="set it to false for real data"):
        Run(make_tape(), reward="mean_variance", reward_on_conditional_mean=True)


def test_penalties_take_from_the_reward_what_they_name(make_tape: MakeTape) -> None:
    tape = rising(make_tape, -0.01, 0.02, 0.0)
    plain = Run(tape)
    fined = Run(tape, reward_drawdown=2.0, reward_turnover=0.001)
    # the order trades the equity once, and the drawdown grows by a hundredth
    assert plain.step(1.0) - fined.step(1.0) == pytest.approx(2.0 * 0.01 + 0.001)
    # an increase that is taken back costs nothing
    assert plain.step(1.0) - fined.step(1.0) == pytest.approx(
        0.001 * fined.booked("traded_notional") / 990_000
    )


def test_a_liquidation_costs_its_penalty_once(make_tape: MakeTape) -> None:
    tape = rising(make_tape, 0.0, -0.2, 0.0)
    runs = [Run(tape, leverage=10.0, max_exposure=10.0, reward_liquidation=fine) for fine in (0.0, 3.0)]
    for run in runs:
        run.step(1.0)
    rewards = [run.step(1.0) for run in runs]
    assert [run.booked("liquidated") for run in runs] == [1.0, 1.0]
    assert rewards[0] - rewards[1] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (LogReturn(risk_aversion=3.0), {"reward_risk_aversion": 3.0, "reward_drawdown": 0.0}),
        (DifferentialSharpe(half_life_bars=24.0), {"reward_half_life_bars": 24.0, "reward_scale": 1.0}),
        (DifferentialSortino(turnover_penalty=0.1), {"reward_turnover": 0.1, "reward_scale": 1.0}),
        (MeanVariance(variance_penalty=2.0, scale=7.0), {"reward_variance": 2.0, "reward_scale": 7.0}),
    ],
)  # fmt: skip
def test_a_reward_sets_the_numbers_of_the_env(
    make_tape: MakeTape, reward: Reward, expected: dict[str, float]
) -> None:
    config = reward.apply(EnvConfig(), make_tape(), 0, 600)
    assert config.reward == type(reward).kind
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_log_return_is_scaled_by_the_periods_volatility(make_tape: MakeTape) -> None:
    tape = make_tape(sigma=0.006)
    config = LogReturn().apply(EnvConfig(), tape, 100, 400)
    closes = tape.mark[100:400, 0, 3]
    assert config.reward_scale == pytest.approx(1 / np.diff(np.log(closes)).std())
