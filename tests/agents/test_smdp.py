"""Advantages of options: the formula by hand, its limits, and true advantages of a small SMDP."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from perpgym.agents.rollout import gae
from perpgym.agents.smdp import smdp_gae

Floats = NDArray[np.float64]
NEVER = np.zeros((3, 1), np.bool_)
NOTHING = np.zeros((3, 1))


def column(*values: float) -> Floats:
    return np.array(values)[:, None]


def test_two_options_by_hand() -> None:
    # an option of two steps that earns 1 + 0.9 * 2 = 2.8, then one that goes on beyond the last step
    found = smdp_gae(
        column(1.0, 2.0, 4.0),
        np.array([[True], [False], [True], [False]]),
        column(10.0, np.nan, 20.0),
        np.array([30.0]),
        NEVER,
        NOTHING,
        gamma=0.9,
        gae_lambda=0.5,
    )
    second = 4.0 + 0.9 * 30.0 - 20.0
    first = 2.8 + 0.81 * 20.0 - 10.0 + 0.81 * 0.5 * second
    np.testing.assert_allclose(found.advantages[:, 0], [first, 0.0, second])
    # within the first option: its rest, then V and the trace of the second
    np.testing.assert_allclose(
        found.targets[:, 0], [first + 10.0, 2.0 + 0.9 * 20.0 + 0.9 * 0.5 * second, 31.0]
    )


def test_an_end_within_an_option_ends_its_return() -> None:
    found = smdp_gae(
        column(1.0, 2.0, 4.0),
        np.array([[True], [False], [True], [True]]),
        column(10.0, np.nan, 20.0),
        np.array([30.0]),
        np.array([[False], [True], [False]]),
        column(0.0, 7.0, 0.0),
        gamma=0.9,
        gae_lambda=0.5,
    )
    np.testing.assert_allclose(found.advantages[0, 0], 1.0 + 0.9 * 2.0 + 0.81 * 7.0 - 10.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_decision_at_every_step_gives_flat_gae(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (40, 6)
    reward, value, end_value = rng.standard_normal((3, *shape))
    last_value = rng.standard_normal(6)
    ends = rng.random(shape) < 0.1
    found = smdp_gae(
        reward, np.ones((41, 6), np.bool_), value, last_value, ends, end_value, gamma=0.97, gae_lambda=0.9
    )
    next_value = np.where(ends, end_value, np.vstack([value[1:], last_value]))
    flat = gae(reward.astype(np.float32), value, next_value, ends, 0.97, 0.9)
    np.testing.assert_allclose(found.advantages, flat, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.targets, flat + value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_without_decay_the_targets_are_monte_carlo_returns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps, n, gamma = 30, 4, 0.95
    reward, value = rng.standard_normal((2, steps, n))
    decides = rng.random((steps + 1, n)) < 0.3
    last_value = rng.standard_normal(n)
    found = smdp_gae(
        reward, decides, value, last_value, np.zeros((steps, n), np.bool_), np.zeros((steps, n)),
        gamma=gamma, gae_lambda=1.0,
    )  # fmt: skip
    for step in range(steps):
        left = steps - step
        monte_carlo = gamma ** np.arange(left) @ reward[step:] + gamma**left * last_value
        np.testing.assert_allclose(found.targets[step], monte_carlo)
        np.testing.assert_allclose(
            found.advantages[step][decides[step]], (monte_carlo - value[step])[decides[step]]
        )


class TwoStates:
    """An SMDP that is solved exactly: two states, two options, random durations and moves."""

    gamma = 0.8
    # per-step reward of (state, option), steps that it lasts, and chance to end in state 1
    reward = np.array([[1.0, -0.5], [0.2, 2.0]])
    durations = ((1, 5), (2, 3))
    to_one = np.array([[0.3, 0.9], [0.5, 0.2]])
    policy = np.array([[0.6, 0.4], [0.3, 0.7]])

    def worth(self) -> tuple[Floats, Floats]:
        """V (2,) and Q (2, 2) of the policy, from its Bellman equation with gamma**k."""
        earned, kept = np.zeros((2, 2)), np.zeros((2, 2))
        for state in range(2):
            for option in range(2):
                for k in self.durations[option]:
                    earned[state, option] += (
                        0.5 * self.reward[state, option] * (1 - self.gamma**k) / (1 - self.gamma)
                    )
                    kept[state, option] += 0.5 * self.gamma**k
        moves = np.stack([1.0 - self.to_one, self.to_one], axis=-1)  # state option next
        transition = np.einsum("so,so,son->sn", self.policy, kept, moves)
        value = np.linalg.solve(np.eye(2) - transition, (self.policy * earned).sum(1))
        return value, earned + kept * (moves @ value)

    def play(self, steps: int, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
        """States, options (-1 where none begins) and rewards, (steps, n), and what follows the last."""
        states, options = np.zeros((steps + 1, n), np.int64), np.full((steps + 1, n), -1)
        rewards = np.zeros((steps, n))
        for account in range(n):
            state, step = int(rng.integers(2)), 0
            while step <= steps:
                option = int(rng.random() < self.policy[state, 1])
                k = int(rng.choice(self.durations[option]))
                options[step, account] = option
                states[step : step + k, account] = state
                rewards[step : step + k, account] = self.reward[state, option]
                state, step = int(rng.random() < self.to_one[state, option]), step + k
        return states, options, rewards  # type: ignore[return-value]


def measured_advantages(gamma_of_trace: float, gae_lambda: float) -> Floats:
    """(2, 2) mean advantage by state and option, with true V at decisions; gamma as the estimator is told."""
    problem, rng = TwoStates(), np.random.default_rng(0)
    value, _worth = problem.worth()
    states, options, rewards = problem.play(400, 500, rng)
    decides = options >= 0
    # an option that is cut off is left out below, so what follows the last step does not matter much
    found = smdp_gae(
        rewards, decides, value[states[:-1]], value[states[-1]], np.zeros(rewards.shape, np.bool_),
        np.zeros(rewards.shape), gamma=gamma_of_trace, gae_lambda=gae_lambda,
    )  # fmt: skip
    out = np.zeros((2, 2))
    early = slice(0, 300)
    for state in range(2):
        for option in range(2):
            taken = decides[early] & (states[early] == state) & (options[early] == option)
            out[state, option] = found.advantages[early][taken].mean()
    return out


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_the_mean_advantage_is_the_true_one(gae_lambda: float) -> None:
    value, worth = TwoStates().worth()
    np.testing.assert_allclose(
        measured_advantages(TwoStates.gamma, gae_lambda), worth - value[:, None], atol=0.05
    )


def test_gamma_instead_of_gamma_to_the_k_is_found_out() -> None:
    """Negative control: the estimator of an MDP, which discounts each option as if it lasted one step."""
    problem, rng = TwoStates(), np.random.default_rng(0)
    value, worth = problem.worth()
    states, options, rewards = problem.play(400, 500, rng)
    wrong = np.zeros((2, 2))
    counts = np.zeros((2, 2))
    for account in range(500):
        at = np.flatnonzero(options[:-1, account] >= 0)
        for begin, end in itertools.pairwise(at):
            earned = problem.gamma ** np.arange(end - begin) @ rewards[begin:end, account]
            state, option = states[begin, account], options[begin, account]
            wrong[state, option] += earned + problem.gamma * value[states[end, account]] - value[state]
            counts[state, option] += 1
    assert np.abs(wrong / counts - (worth - value[:, None])).max() > 0.5
