"""Forecasts learn from what the rollout has booked, and they alone move the encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perpgym.agents.artifact import load_artifact, save_artifact
from perpgym.agents.forecast import ForecastTask
from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.agents.trained import TrainedAgent
from perpgym.data.bars import CLOSE
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
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
    forecast_bars=(1, 6),
    forecast_response=0.5,
    band_width_init=-0.8,
)
STEPS, PATHS, ACCOUNTS = 32, 4, 3


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=600)


def make_model(tape: Tape, policy: PolicyConfig = SMALL, accounts: int = ACCOUNTS, **config: Any) -> PerpPPO:
    env_config = EnvConfig(window_bars=policy.receptive_field, episode_bars=20)
    env = PerpVecEnv(tape, n_paths=PATHS, accounts_per_path=accounts, config=env_config, end_bar=400)
    return PerpPPO(
        PerpActorCriticPolicy,
        env,
        config=PPOConfig(**{"n_steps": STEPS, "batch_size": 256, "forecast_coef": 1.0, **config}),
        policy_kwargs={
            "config": policy,
            "market_scaler": fit_scaler(tape.features, 0, 400),
            "risk_scaler": fit_scaler(tape.risk, 0, 400),
        },
        seed=0,
        device="cpu",
    )


def test_target_is_what_a_long_earned_over_the_horizon_net_of_funding(tape: Tape) -> None:
    task = ForecastTask(tape, (6,), scale=50.0, device="cpu")
    targets, known = task.targets(torch.tensor([100]), torch.tensor([32]), 32)
    close = tape.mark[:, 0, CLOSE]
    stamps = tape.stamp_start[0]
    for offset in (0, 5, 26):
        bar = 100 + offset
        funding = tape.stamp_rate[stamps[bar + 1] : stamps[bar + 7]].sum()
        earned = np.log(close[bar + 6] / close[bar]) - funding
        assert known[0, offset, 0]
        assert float(targets[0, offset, 0]) == pytest.approx(earned * 50.0 / np.sqrt(6), abs=1e-5)


def test_no_target_reaches_beyond_the_last_bar_that_the_rollout_booked(tape: Tape) -> None:
    first_bar, length = torch.tensor([50, 200]), torch.tensor([32, 11])
    before = ForecastTask(tape, (1, 6), scale=1.0, device="cpu").targets(first_bar, length, 32)
    later = tape.mark.copy()
    later[200 + 11 + 1 :] *= 1.5  # row 1 booked bars up to 211; row 0 ends long before
    after = ForecastTask(replace(tape, mark=later), (1, 6), scale=1.0, device="cpu").targets(
        first_bar, length, 32
    )
    for mine, other in zip(before, after, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert before[1][1].sum(0).tolist() == [11, 6]


def test_a_minibatch_knows_how_far_the_rollout_went_along_each_row(tape: Tape) -> None:
    model = make_model(tape)
    model.learn(1)
    rollout = model.rollout_buffer
    assert len(rollout.segments) > PATHS
    for batch in rollout.minibatches(PATHS, np.random.default_rng(0)):
        assert int(batch.length.sum()) == PATHS * STEPS
        assert int(batch.length.min()) > 0
        # an episode of 20 bars books nothing after its twentieth
        assert int(batch.length.max()) <= 20
        assert int((batch.first_bar + batch.length).max()) < model.native.end_bar


def test_forecast_loss_moves_the_encoders_and_the_policy_loss_does_not(tape: Tape) -> None:
    model = make_model(tape)
    model.learn(1)
    rollout, task = model.rollout_buffer, model.forecast_task
    assert task is not None
    batch = next(iter(rollout.minibatches(PATHS, np.random.default_rng(0))))
    extractor = model.policy.features_extractor
    encoders = [*extractor.market_encoder.parameters(), *extractor.risk_encoder.parameters()]

    model.policy.zero_grad()
    model.loss(batch).total.backward()
    assert all(p.grad is None or not p.grad.any() for p in encoders)
    assert model.policy.action_net.weight.grad is not None

    model.policy.zero_grad()
    encoded = model.policy.stretch_context(batch.first_bar, STEPS)
    task.loss(extractor.split(encoded).forecasts, batch.first_bar, batch.length).backward()
    assert all(p.grad is not None and p.grad.any() for p in encoders)
    assert model.policy.action_net.weight.grad is None


def test_embeddings_kept_from_the_rollout_are_those_of_the_present_encoders(tape: Tape) -> None:
    model = make_model(tape, n_epochs=2)
    model.learn(PATHS * ACCOUNTS * STEPS * 2)
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, STEPS)
    rollout = model.rollout_buffer
    assert len(rollout.segments) > PATHS
    before = model.objective.tokens
    with torch.no_grad():
        for batch in rollout.minibatches(2, np.random.default_rng(0)):
            kept = model.objective.contexts(batch, STEPS)
            encoded = batch.arrange(model.policy.stretch_context(batch.first_bar, STEPS))
            torch.testing.assert_close(kept, encoded, rtol=0, atol=1e-5)
            assert kept.std() > 0.01
    # nothing was encoded for the policy's epochs
    assert model.objective.tokens == before


def test_a_feature_that_tells_the_next_return_is_forecast(make_tape: Callable[..., Tape]) -> None:
    rng = np.random.default_rng(0)
    sign = np.sign(rng.standard_normal(3_000))
    returns = np.concatenate(([0.0], 0.002 * sign[:-1])) + 0.002 * rng.standard_normal(3_000)
    tape = make_tape(30_000.0 * np.exp(np.cumsum(returns)), n_features=2, wick=0.0)
    tape.features[:, 0, 0] = sign
    model = make_model(tape, replace(SMALL, forecast_bars=(1,)), learning_rate=1e-2)
    model.learn(PATHS * ACCOUNTS * STEPS * 30)
    bars = 400 + np.arange(500)  # never seen in training
    with torch.no_grad():
        context = model.policy.stretch_context(torch.tensor([400]), 500)
        forecast = model.policy.features_extractor.split(context).forecasts[0, :, 0].numpy()
    assert np.corrcoef(forecast, sign[bars])[0, 1] > 0.9


def test_policy_starts_by_following_its_forecast_within_a_narrow_band(tape: Tape) -> None:
    policy = make_model(tape).policy
    extractor = policy.features_extractor
    context = policy.stretch_context(torch.tensor([100]), 1)[0]
    state = torch.zeros(1, len(ACCOUNT_NAMES) + len(PORTFOLIO_NAMES))
    with torch.no_grad():
        flat = policy.action_parameters(context, state)
        context[:, -2:] = 0.1  # both forecasts explain 1 % of their variance
        bold = policy.action_parameters(context, state)
    torch.testing.assert_close(bold - flat, torch.tensor([[0.5, 0.0]]), rtol=0, atol=0.02)
    assert float(flat[0, 1]) == pytest.approx(-0.8, abs=0.02)
    assert extractor.features_dim == SMALL.d_model + 2


def test_an_artifact_brings_the_forecasts_back(tape: Tape, tmp_path: Path) -> None:
    model = make_model(tape)
    model.learn(PATHS * ACCOUNTS * STEPS * 3)
    save_artifact(
        tmp_path,
        model.policy,
        tape=tape,
        env_config=model.native.config,
        limits=model.native.limits,
        seed=0,
        commit="abc",
    )
    loaded = load_artifact(tmp_path)
    assert loaded.parity_error < 1e-5
    account = np.zeros((2, 1, len(ACCOUNT_NAMES)), np.float32)
    portfolio = np.zeros((2, len(PORTFOLIO_NAMES)), np.float32)
    mine, other = (TrainedAgent(p).act(tape, 450, account, portfolio) for p in (model.policy, loaded.policy))
    np.testing.assert_array_equal(mine, other)


def test_index_and_window_observations_agree_with_forecasts(tape: Tape) -> None:
    model = make_model(tape)
    model.learn(PATHS * ACCOUNTS * STEPS * 3)
    observations = []
    for with_windows in (False, True):
        env = PerpVecEnv(tape, n_paths=3, config=model.native.config, with_windows=with_windows)
        observations.append(env.reset(seed=4)[0])
    with torch.no_grad():
        index, window = (
            model.policy.get_distribution({k: torch.as_tensor(v) for k, v in o.items()}).mode()
            for o in observations
        )
    torch.testing.assert_close(index, window, rtol=0, atol=1e-5)


def test_path_baseline_takes_out_what_all_accounts_of_a_path_have_in_common(tape: Tape) -> None:
    model = make_model(tape)
    model.learn(1)
    rollout = model.rollout_buffer
    rollout.finish(np.zeros(rollout.reward.shape))
    own = rollout.advantages.clone()
    rollout.advantages += torch.linspace(-5, 5, STEPS).view(1, -1, 1)  # the market's own move
    rollout.weigh_advantages(path_baseline=True, normalise=False)
    order = np.random.default_rng(0).permutation(PATHS)
    batch = next(iter(rollout.minibatches(PATHS, np.random.default_rng(0))))
    expected = (own - own.mean(2, keepdim=True))[order]
    torch.testing.assert_close(batch.advantages, expected, rtol=1e-4, atol=1e-4)


def test_path_baseline_of_a_lone_account_is_refused(tape: Tape) -> None:
    with pytest.raises(ValueError, match="accounts_per_path"):
        make_model(tape, accounts=1, path_baseline=True)


def test_training_forecasts_that_the_policy_does_not_make_is_refused(tape: Tape) -> None:
    with pytest.raises(ValueError, match="forecast_bars"):
        make_model(tape, replace(SMALL, forecast_bars=()))
