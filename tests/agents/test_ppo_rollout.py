"""A rollout keeps exactly what was seen, also where paths end and jump to another place on the tape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.agents.rollout import PathRollout, gae
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

SMALL = PolicyConfig(d_model=8, n_layers=2, n_heads=2, band=6, risk_hidden=4, risk_chunk=4, risk_warmup=4)
STEPS, PATHS, ACCOUNTS = 40, 5, 3


class WatchedEnv(PerpVecEnv):
    """Keeps what every step showed, to compare with what the rollout kept."""

    def step_into(self, actions: Any, out: Any) -> None:
        self.seen = getattr(self, "seen", [])
        before = (out.bar.copy(), out.account.copy(), out.portfolio.copy())
        super().step_into(actions, out)
        final = (out.final_bar.copy(), out.final_account.copy(), out.final_portfolio.copy())
        self.seen.append((*before, out.truncated.copy(), out.terminated.copy(), *final, out.reward.copy()))


@pytest.fixture(scope="module")
def model(make_tape: Callable[..., Tape]) -> PerpPPO:
    """One rollout over episodes of 15 bars: every path jumps two or three times."""
    tape = make_tape(bars=400)
    env = WatchedEnv(
        tape,
        n_paths=PATHS,
        accounts_per_path=ACCOUNTS,
        config=EnvConfig(
            episode_bars=15, window_bars=SMALL.receptive_field, max_drawdown=0.015, reward_scale=100.0
        ),
    )
    model = PerpPPO(
        PerpActorCriticPolicy,
        env,
        config=PPOConfig(n_steps=STEPS, batch_size=2 * STEPS * ACCOUNTS),
        policy_kwargs={
            "config": SMALL,
            "market_scaler": fit_scaler(tape.features, 0, 400),
            "risk_scaler": fit_scaler(tape.risk, 0, 400),
        },
        seed=3,
        device="cpu",
    )
    torch.nn.init.normal_(model.policy.action_net.weight, std=0.3)
    model.learn(1)  # sets the model up; the update moves the weights
    env.seen = []
    collected = model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, STEPS)
    assert collected
    assert len(model.rollout_buffer.segments) > 2 * PATHS
    return model


def seen(model: PerpPPO, column: int) -> np.ndarray[Any, Any]:
    """(T, N, ...) of what ``WatchedEnv`` kept."""
    env = model.native
    assert isinstance(env, WatchedEnv)
    return np.stack([step[column] for step in env.seen])


def by_path(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """(T, N, ...) -> (P, T, K, ...)."""
    shaped = array.reshape(STEPS, PATHS, ACCOUNTS, *array.shape[2:])
    return torch.from_numpy(np.ascontiguousarray(np.swapaxes(shaped, 0, 1)))


def observation(bar: Any, account: Any, portfolio: Any) -> dict[str, torch.Tensor]:
    return {
        "bar": torch.as_tensor(bar).reshape(-1, 1),
        "account": torch.as_tensor(account).reshape(-1, 1, account.shape[-1]),
        "portfolio": torch.as_tensor(portfolio).reshape(-1, portfolio.shape[-1]),
    }


def test_rollout_contains_the_kinds_of_end_that_matter(model: PerpPPO) -> None:
    assert seen(model, 3).any(), "no account was truncated"
    assert seen(model, 4).any(), "no account was terminated"


def test_values_and_log_probabilities_are_those_of_a_bar_by_bar_policy(model: PerpPPO) -> None:
    rollout = model.rollout_buffer
    at = observation(*(by_path(seen(model, i)).numpy() for i in range(3)))
    with torch.no_grad():
        values, log_prob, _ = model.policy.evaluate_actions(at, rollout.actions.flatten(0, 2))
    torch.testing.assert_close(rollout.values[:, :-1].flatten(), values.flatten(), rtol=0, atol=1e-5)
    torch.testing.assert_close(rollout.log_prob.flatten(), log_prob, rtol=0, atol=1e-4)


def test_returns_bootstrap_truncated_accounts_at_their_final_observation_and_no_terminated_one(
    model: PerpPPO,
) -> None:
    rollout, config = model.rollout_buffer, model.config
    bars, accounts, portfolios, truncated, terminated, *final, reward = (seen(model, i) for i in range(9))
    with torch.no_grad():
        value = model.policy.predict_values(observation(bars.reshape(-1), accounts, portfolios)).view(
            STEPS, -1
        )
        final_value = model.policy.predict_values(observation(final[0].reshape(-1), final[1], final[2])).view(
            STEPS, -1
        )
    last = rollout.values[:, -1].flatten()
    expected = torch.zeros(STEPS, PATHS * ACCOUNTS, dtype=torch.float64)
    for account in range(PATHS * ACCOUNTS):
        advantage = 0.0
        for step in reversed(range(STEPS)):
            following = value[step + 1, account] if step + 1 < STEPS else last[account]
            if terminated[step, account]:
                following, advantage = 0.0, 0.0
            elif truncated[step, account]:
                following, advantage = final_value[step, account], 0.0
            delta = reward[step, account] + config.gamma * float(following) - float(value[step, account])
            advantage = delta + config.gamma * config.gae_lambda * advantage
            expected[step, account] = advantage
    torch.testing.assert_close(rollout.advantages, by_path(expected.numpy()).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rollout.returns, rollout.advantages + rollout.values[:, :-1])


def test_explained_variance_is_of_returns_by_values_and_no_number_where_they_do_not_vary() -> None:
    space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    rollout = PathRollout(2, {"account": space, "portfolio": space}, space, n_envs=2, n_paths=1)
    rollout.values[0, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    # returns of 1, 3, 3 and 7; squares around their mean sum to 19, those of what values left open to 6
    rollout.advantages[0] = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    assert rollout.explained_variance() == pytest.approx(1.0 - 6.0 / 19.0)
    rollout.advantages[0] = 5.0 - rollout.values[0, :2]
    assert math.isnan(rollout.explained_variance())


def test_a_million_steps_take_less_than_100_megabytes(model: PerpPPO) -> None:
    space = model.observation_space
    rollout = PathRollout(128, space, model.action_space, n_envs=64, n_paths=8)
    assert rollout.nbytes / (128 * 64) < 100


def test_minibatches_hold_advantages_of_mean_zero_and_deviation_one_and_returns_in_the_rewards_unit(
    model: PerpPPO,
) -> None:
    rollout = model.rollout_buffer
    rollout.weigh_advantages(path_baseline=False, normalise=True)
    (batch,) = rollout.minibatches(PATHS, np.random.default_rng(0))
    order = np.random.default_rng(0).permutation(PATHS)
    assert float(batch.advantages.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(batch.advantages.std()) == pytest.approx(1.0, abs=1e-5)
    assert abs(float(rollout.advantages.std()) - 1.0) > 0.01
    torch.testing.assert_close(batch.returns, rollout.returns[order])


def test_minibatch_arranges_every_decision_beside_the_bar_it_was_taken_at(model: PerpPPO) -> None:
    rollout, policy = model.rollout_buffer, model.policy
    shuffle = np.random.default_rng(0)
    order = np.random.default_rng(0).permutation(PATHS)
    bars = by_path(seen(model, 0))[:, :, 0]  # P T
    met = []
    with torch.no_grad():
        for group, batch in zip(np.array_split(order, 3), rollout.minibatches(2, shuffle), strict=True):
            assert batch.slot is not None
            arranged = batch.arrange(policy.stretch_context(batch.first_bar, STEPS))  # G T C
            alone = policy.stretch_context(bars[group].flatten(), 1).view_as(arranged)
            torch.testing.assert_close(arranged, alone, rtol=0, atol=1e-5)
            torch.testing.assert_close(batch.state, rollout.state[group, :-1])
            met += group.tolist()
    assert sorted(met) == list(range(PATHS))


def test_paths_that_do_not_jump_need_no_rearrangement(model: PerpPPO) -> None:
    rollout = model.rollout_buffer
    segments, rollout.segments = rollout.segments, rollout.segments[:PATHS]
    batches = list(rollout.minibatches(PATHS, np.random.default_rng(0)))
    rollout.segments = segments
    assert len(batches) == 1
    assert batches[0].slot is None
    encoded = torch.randn(PATHS, STEPS, 4)
    assert batches[0].arrange(encoded) is encoded


def test_advantages_of_a_worked_example() -> None:
    # two steps of one account, gamma 0.5, lambda 0.5: delta = r + 0.5 V' - V
    reward, value = np.array([[1.0], [2.0]]), np.array([[4.0], [6.0]])
    following = np.array([[6.0], [10.0]])
    go_on = gae(reward, value, following, np.array([[False], [False]]), 0.5, 0.5)
    # delta_1 = 2 + 5 - 6 = 1; delta_0 = 1 + 3 - 4 = 0; A_0 = 0 + 0.25 * 1
    np.testing.assert_allclose(go_on, [[0.25], [1.0]])
    # the first step ends an episode in 20: delta_0 = 1 + 10 - 4 = 7, and nothing of the next episode
    ended = gae(reward, value, np.array([[20.0], [10.0]]), np.array([[True], [False]]), 0.5, 0.5)
    np.testing.assert_allclose(ended, [[7.0], [1.0]])
