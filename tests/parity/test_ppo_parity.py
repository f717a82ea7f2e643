"""One update of PerpPPO on bar indices is one update of stock Stable-Baselines3 PPO on windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

SMALL = PolicyConfig(d_model=16, n_layers=2, n_heads=2, band=10, risk_hidden=8, risk_chunk=8, risk_warmup=11)
REACH, STEPS, PATHS, ACCOUNTS = SMALL.receptive_field, 48, 4, 3
# jumps within the rollout; entropy bonus on, so that every term of the loss takes part
ENV = EnvConfig(window_bars=REACH, episode_bars=30, max_drawdown=0.05, reward_scale=100.0)
LOSSES = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=500)


def policy_kwargs(tape: Tape) -> dict[str, Any]:
    return {
        "config": SMALL,
        "market_scaler": fit_scaler(tape.features, 0, 500),
        "risk_scaler": fit_scaler(tape.risk, 0, 500),
    }


def encode_once(tape: Tape, rollouts: int) -> PerpPPO:
    """PerpPPO after some training, with a finished rollout that it has not learnt from."""
    samples = STEPS * PATHS * ACCOUNTS
    config = PPOConfig(n_steps=STEPS, batch_size=samples, n_epochs=1, learning_rate=3e-3, ent_coef=0.01)
    env = PerpVecEnv(tape, n_paths=PATHS, accounts_per_path=ACCOUNTS, config=ENV)
    model = PerpPPO(
        PerpActorCriticPolicy, env, config=config, policy_kwargs=policy_kwargs(tape), seed=2, device="cpu"
    )
    model.learn(samples * rollouts)
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, STEPS)
    assert len(model.rollout_buffer.segments) > PATHS
    return model


def stock_with_the_same_rollout(ours: PerpPPO, tape: Tape, lag: int = 0) -> tuple[PPO, dict[str, Any]]:
    """SB3's PPO whose own buffer holds that rollout as windows, ``lag`` bars late."""
    env = PerpVecEnv(tape, n_paths=PATHS, accounts_per_path=ACCOUNTS, config=ENV, with_windows=True)
    theirs = PPO(
        PerpActorCriticPolicy,
        env.as_sb3(),
        n_steps=STEPS,
        batch_size=STEPS * PATHS * ACCOUNTS,
        n_epochs=1,
        learning_rate=3e-3,
        ent_coef=0.01,
        policy_kwargs=policy_kwargs(tape),
        seed=2,
        device="cpu",
    )
    theirs.policy.load_state_dict(ours.policy.state_dict())
    mine, buffer = ours.rollout_buffer, theirs.rollout_buffer
    bars = np.zeros((PATHS, STEPS), np.int64)
    for path, first_step, first_bar in mine.segments:
        bars[path, first_step:] = first_bar + np.arange(STEPS - first_step)
    bars = np.repeat(bars.T, ACCOUNTS, axis=1) - lag  # T N

    def by_step(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
        return tensor.transpose(0, 1).flatten(1, 2).numpy().copy()

    state = by_step(mine.state[:, :-1])
    rows = bars[..., None] + np.arange(1 - REACH, 1)
    windows = {
        "market": tape.features[rows],
        "risk": tape.risk[rows],
        "clock": tape.clock(bars)[..., None],
        "account": state[..., None, : mine.account_size],
        "portfolio": state[..., mine.account_size :],
    }
    buffer.reset()
    for name, values in windows.items():
        buffer.observations[name][:] = values  # type: ignore[index]
    buffer.actions, buffer.log_probs = by_step(mine.actions), by_step(mine.log_prob)
    buffer.values, buffer.returns = by_step(mine.values[:, :-1]), by_step(mine.returns)
    buffer.advantages, buffer.full = by_step(mine.advantages), True
    return theirs, windows | {"bar": bars[..., None]}


def update(model: PPO) -> dict[str, float]:
    """One real ``train()``; returns what it logged."""
    model.set_logger(configure(None, []))
    model.train()
    return {name: model.logger.name_to_value[f"train/{name}"] for name in LOSSES}


@pytest.mark.parametrize("rollouts", [0, 6], ids=["fresh", "trained"])
def test_losses_and_gradients_of_one_update_agree(tape: Tape, rollouts: int) -> None:
    ours = encode_once(tape, rollouts)
    theirs, _ = stock_with_the_same_rollout(ours, tape)
    assert update(ours) == pytest.approx(update(theirs), abs=1e-4)
    for (name, mine), other in zip(ours.policy.named_parameters(), theirs.policy.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
    assert max(float(p.grad.abs().max()) for p in ours.policy.parameters() if p.grad is not None) > 1e-2


@pytest.mark.parametrize("rollouts", [0, 6], ids=["fresh", "trained"])
def test_chosen_actions_agree(tape: Tape, rollouts: int) -> None:
    ours = encode_once(tape, rollouts)
    theirs, observations = stock_with_the_same_rollout(ours, tape)
    flat = {name: torch.from_numpy(values).flatten(0, 1) for name, values in observations.items()}
    index = {name: flat[name] for name in ("bar", "account", "portfolio")}
    windows = {name: values for name, values in flat.items() if name != "bar"}
    with torch.no_grad():
        chosen = ours.policy._predict(index, deterministic=True)
        torch.testing.assert_close(
            chosen, theirs.policy._predict(windows, deterministic=True), rtol=0, atol=1e-4
        )
    if rollouts:
        assert chosen.std() > 0.01


def test_windows_one_bar_late_are_told_apart(tape: Tape) -> None:
    ours = encode_once(tape, rollouts=6)
    late, _ = stock_with_the_same_rollout(ours, tape, lag=1)
    assert abs(update(ours)["loss"] - update(late)["loss"]) > 1e-3
