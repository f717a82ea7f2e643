"""PerpPPO finds what theory says it must find, and stays a Stable-Baselines3 algorithm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import VecCheckNan
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.spaces import LEDGER
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

SMALL = PolicyConfig(
    d_model=8,
    n_layers=2,
    n_heads=2,
    band=4,
    risk_hidden=4,
    risk_chunk=4,
    risk_warmup=2,
    policy_hidden=(16,),
    value_hidden=(16,),
)


def policy_kwargs(tape: Tape, config: PolicyConfig = SMALL) -> dict[str, Any]:
    return {
        "config": config,
        "market_scaler": fit_scaler(tape.features, 0, len(tape)),
        "risk_scaler": fit_scaler(tape.risk, 0, len(tape)),
    }


def make_env(tape: Tape, kind: type[PerpVecEnv] = PerpVecEnv, **env: Any) -> PerpVecEnv:
    config = EnvConfig(window_bars=SMALL.receptive_field, **env)
    return kind(tape, n_paths=4, accounts_per_path=2, config=config)


def make_model(
    env: PerpVecEnv, *, tensorboard_log: str | None = None, seed: int = 0, **config: Any
) -> PerpPPO:
    return PerpPPO(
        PerpActorCriticPolicy,
        env,
        config=PPOConfig(**{"n_steps": 32, "batch_size": 128, **config}),
        policy_kwargs=policy_kwargs(env.tape),
        tensorboard_log=tensorboard_log,
        seed=seed,
        device="cpu",
    )


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=600)


class ConstantReward(PerpVecEnv):
    """Every step earns 1, whatever is done."""

    def step_into(self, actions: Any, out: Any) -> None:
        super().step_into(actions, out)
        out.reward[:] = 1.0


class ConstantRewardTermination(ConstantReward):
    """The same, but the end of an episode is reported as if the account had died."""

    def step_into(self, actions: Any, out: Any) -> None:
        super().step_into(actions, out)
        out.terminated[:] |= out.truncated
        out.truncated[:] = False


def mean_value_after_training(tape: Tape, kind: type[PerpVecEnv]) -> float:
    env = make_env(tape, kind, episode_bars=16)
    model = make_model(env, gamma=0.8, gae_lambda=0.9, learning_rate=5e-3, n_epochs=6)
    model.learn(8 * 32 * 40)
    return float(model.rollout_buffer.values.mean())


def test_constant_reward_is_worth_one_over_one_minus_gamma_when_truncation_bootstraps(tape: Tape) -> None:
    assert mean_value_after_training(tape, ConstantReward) == pytest.approx(1 / (1 - 0.8), rel=0.03)


def test_constant_reward_is_worth_less_when_truncation_is_taken_for_termination(tape: Tape) -> None:
    # with k of 16 steps left the truth is (1 - 0.8^k) / 0.2, on average 3.8 of 5
    assert mean_value_after_training(tape, ConstantRewardTermination) < 0.85 / (1 - 0.8)


def test_agent_learns_a_feature_that_gives_the_sign_of_the_next_return(
    make_tape: Callable[..., Tape],
) -> None:
    rng = np.random.default_rng(0)
    bars = 3_000
    sign = np.sign(rng.standard_normal(bars))
    returns = np.concatenate(([0.0], 0.002 * sign[:-1])) + 0.002 * rng.standard_normal(bars)
    tape = make_tape(30_000.0 * np.exp(np.cumsum(returns)), n_features=2, wick=0.0)
    tape.features[:, 0, 0] = sign
    # free trading at any size: the best exposure is the sign
    free: dict[str, Any] = {
        "taker_rate": 0.0,
        "half_spread_bps": 0.0,
        "impact_coefficient": 0.0,
        "funding_multiplier": 0.0,
        "action": "target",
        "max_exposure": 1.0,
        "initial_wallet": 100_000.0,
        "episode_bars": 500,
        "reward_scale": 500.0,
    }
    config = EnvConfig(window_bars=SMALL.receptive_field, **free)
    env = PerpVecEnv(tape, n_paths=8, accounts_per_path=4, config=config, end_bar=2_000)
    model = make_model(env, gamma=0.5, learning_rate=3e-3, n_steps=64, batch_size=512)
    model.learn(32 * 64 * 15)
    growth = log_growth(TrainedAgent(model.policy), tape, config, start_bar=2_000)
    # 999 bars at 0.2 % each are 2.0; flat earns nothing
    assert growth > 1.5


def log_growth(agent: TrainedAgent, tape: Tape, config: EnvConfig, start_bar: int) -> float:
    """Log growth of one account from ``start_bar`` to the tape's end."""
    whole = EnvConfig(**{**vars(config), "episode_bars": len(tape)})
    env = PerpVecEnv(tape, n_paths=1, config=whole, start_bar=start_bar)
    out = env.make_buffers()
    env.reset_into(out, seed=0)
    growth = 0.0
    while not out.truncated[0]:
        env.step_into(agent.act(tape, int(out.bar[0]), out.account, out.portfolio), out)
        growth += np.log(out.ledger[0, LEDGER["equity"]] / out.ledger[0, LEDGER["equity_before"]])
    return growth


def test_saved_model_predicts_and_trains_like_the_one_that_was_saved(tape: Tape, tmp_path: Path) -> None:
    env = make_env(tape)
    model = make_model(env)
    model.learn(8 * 32)
    model.save(tmp_path / "model.zip")
    observation = env.as_sb3().reset()
    expected, _ = model.predict(observation, deterministic=True)
    loaded = PerpPPO.load(tmp_path / "model.zip", env=make_env(tape), device="cpu")
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    loaded.learn(8 * 32, reset_num_timesteps=False)
    assert loaded.num_timesteps == 2 * 8 * 32
    # without an env the tape has to be given by hand
    alone = PerpPPO.load(tmp_path / "model.zip", device="cpu")
    alone.policy.bind(tape)
    np.testing.assert_array_equal(alone.predict(observation, deterministic=True)[0], expected)


class Watcher(BaseCallback):
    """Counts what SB3's protocol of callbacks promises."""

    def __init__(self, stop_after: int = 10**9) -> None:
        super().__init__()
        self.stop_after, self.steps, self.rollouts, self.episodes = stop_after, 0, 0, 0

    def _on_step(self) -> bool:
        self.steps += 1
        assert self.locals["dones"].shape == (8,)
        self.episodes += sum("episode" in info for info in self.locals["infos"])
        return self.steps < self.stop_after

    def _on_rollout_end(self) -> None:
        self.rollouts += 1


def test_callbacks_see_every_step_and_may_stop(tape: Tape, tmp_path: Path) -> None:
    model, watcher = make_model(make_env(tape, episode_bars=20)), Watcher()
    saver = CheckpointCallback(save_freq=32, save_path=str(tmp_path))
    model.learn(8 * 32 * 2, callback=[watcher, saver])
    assert (watcher.steps, watcher.rollouts) == (64, 2)
    assert watcher.episodes >= 8
    assert len(list(tmp_path.glob("*.zip"))) == 2
    stopper = Watcher(stop_after=5)
    model.learn(8 * 32 * 2, callback=stopper)
    assert (stopper.steps, stopper.rollouts, model.num_timesteps) == (5, 0, 40)


def test_tensorboard_has_sb3s_keys_and_the_token_budget(tape: Tape, tmp_path: Path) -> None:
    model = make_model(make_env(tape, episode_bars=20), tensorboard_log=str(tmp_path))
    model.learn(8 * 32 * 2)
    events = EventAccumulator(str(next(tmp_path.iterdir())))
    events.Reload()
    assert {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/fps",
        "train/approx_kl",
        "train/clip_fraction",
        "train/clip_range",
        "train/entropy_loss",
        "train/explained_variance",
        "train/learning_rate",
        "train/loss",
        "train/policy_gradient_loss",
        "train/std",
        "train/value_loss",
        "train/tokens_per_step",
    } <= set(events.Tags()["scalars"])


def test_accounts_on_one_path_share_its_encoding(tape: Tape) -> None:
    model = make_model(make_env(tape, episode_bars=500), n_epochs=3)
    model.learn(8 * 32)
    segments, reach = len(model.rollout_buffer.segments), SMALL.receptive_field
    assert segments >= 4
    longest = segments * (33 + reach - 1) + 3 * segments * (32 + reach - 1)
    assert model.objective.tokens <= longest
    assert model.objective.tokens / (8 * 32) < 4


@pytest.mark.parametrize("is_relative", [True, False])
def test_an_update_measures_advantages_against_the_accounts_of_a_path_where_it_is_told_to(
    tape: Tape, is_relative: bool
) -> None:
    model = make_model(make_env(tape), path_baseline=is_relative)
    model.learn(8 * 32)
    rollout = model.rollout_buffer
    weighed = rollout.weights.of(rollout.advantages)
    assert float(weighed.std()) == pytest.approx(1.0, abs=1e-4)
    assert (float(weighed.mean(dim=2).abs().max()) < 1e-4) is is_relative


def test_no_further_epoch_once_the_policy_has_moved_too_far(tape: Tape) -> None:
    free = make_model(make_env(tape), learning_rate=0.02, n_epochs=8)
    free.learn(8 * 32)
    bound = make_model(make_env(tape), learning_rate=0.02, n_epochs=8, target_kl=0.002)
    bound.learn(8 * 32)
    assert free._n_updates == 8
    assert bound._n_updates < 8


def test_learning_rate_anneals_to_zero_over_the_run(tape: Tape) -> None:
    model = make_model(make_env(tape), learning_rate=1e-3, learning_rate_schedule="linear")
    model.learn(8 * 32 * 4)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_equal_seeds_give_equal_runs_and_others_do_not(tape: Tape) -> None:
    weights = []
    for seed in (0, 0, 1):
        model = make_model(make_env(tape), seed=seed)
        model.learn(8 * 32 * 2)
        weights.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_stock_sb3_trains_on_windows_with_the_same_policy(tape: Tape) -> None:
    config = EnvConfig(window_bars=SMALL.receptive_field, episode_bars=20)
    env = PerpVecEnv(tape, n_paths=4, accounts_per_path=2, config=config, with_windows=True)
    model = PPO(
        PerpActorCriticPolicy,
        env.as_sb3(),
        n_steps=32,
        batch_size=64,
        n_epochs=2,
        policy_kwargs=policy_kwargs(tape),
        seed=0,
        device="cpu",
    )
    before = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
    model.learn(8 * 32 * 2)
    assert not torch.equal(torch.nn.utils.parameters_to_vector(model.policy.parameters()), before)
    action, _ = model.predict(env.as_sb3().reset(), deterministic=True)
    assert action.shape == (8, 2)


def test_env_that_hides_or_copies_the_market_is_refused(tape: Tape) -> None:
    with pytest.raises(TypeError, match=r"use stable_baselines3\.PPO"):
        PerpPPO(PerpActorCriticPolicy, VecCheckNan(make_env(tape).as_sb3()))  # type: ignore[arg-type]
    windows = PerpVecEnv(
        tape, n_paths=2, config=EnvConfig(window_bars=SMALL.receptive_field), with_windows=True
    )
    with pytest.raises(ValueError, match="with_windows=False"):
        make_model(windows)


def test_env_whose_episodes_start_too_early_is_refused(tape: Tape) -> None:
    env = PerpVecEnv(tape, n_paths=2, config=EnvConfig(window_bars=SMALL.receptive_field - 1))
    with pytest.raises(ValueError, match=f"set window_bars={SMALL.receptive_field}"):
        make_model(env)


@pytest.mark.parametrize(
    ("field", "value"), [("gamma", 1.5), ("n_steps", 1), ("clip_range", 0.0), ("target_kl", -1.0)]
)
def test_impossible_setting_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        PPOConfig(**{field: value})


def test_the_learning_rate_never_turns_negative_where_the_last_rollout_runs_past_the_total(
    tape: Tape,
) -> None:
    model = make_model(make_env(tape), learning_rate=1e-3, learning_rate_schedule="linear")
    per_rollout = model.n_steps * model.n_envs
    model.learn(per_rollout + 1)
    assert model.num_timesteps == 2 * per_rollout
    assert model.policy.optimizer.param_groups[0]["lr"] >= 0.0
