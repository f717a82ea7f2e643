"""Whatever encoder PPO has trained: stretch, window and one more live bar on a ring give the same actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perpgym.agents.artifact import load_artifact, parity_error, save_artifact
from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.policies import ENCODERS, PerpActorCriticPolicy, PolicyConfig
from perpgym.policies.encoders import GridRecurrent

SMALL = PolicyConfig(
    d_model=8,
    n_heads=2,
    band=6,
    chunk=8,
    warmup=3,
    risk_hidden=4,
    risk_chunk=4,
    risk_warmup=4,
    forecast_bars=(4,),
    policy_hidden=(16,),
    value_hidden=(16,),
)
BARS, STEPS, PATHS, ACCOUNTS = 300, 24, 3, 2
ROLLOUT = STEPS * PATHS * ACCOUNTS


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=BARS)


def fresh(tape: Tape, config: PolicyConfig) -> PerpPPO:
    """A model whose learning rate moves every weight far."""
    env_config = EnvConfig(window_bars=config.receptive_field, episode_bars=40, reward_scale=100.0)
    return PerpPPO(
        PerpActorCriticPolicy,
        PerpVecEnv(tape, n_paths=PATHS, accounts_per_path=ACCOUNTS, config=env_config),
        config=PPOConfig(n_steps=STEPS, batch_size=48, learning_rate=0.01, forecast_coef=1.0),
        policy_kwargs={
            "config": config,
            "market_scaler": fit_scaler(tape.features, 0, BARS),
            "risk_scaler": fit_scaler(tape.risk, 0, BARS),
        },
        seed=1,
        device="cpu",
    )


def lengthen_memory(model: PerpPPO) -> None:
    """Every recurrence keeps its state: the market's, where there is one, and the risk LSTM's."""
    for module in model.policy.modules():
        if isinstance(module, GridRecurrent):
            module.lengthen_memory(5.0)


@pytest.fixture(scope="module", params=[(e, m) for e in ENCODERS for m in (False, True)], ids=str)
def model(request: pytest.FixtureRequest, tape: Tape) -> PerpPPO:
    encoder, is_memory_long = request.param
    model = fresh(tape, replace(SMALL, encoder=encoder))
    if is_memory_long:
        lengthen_memory(model)
    weights = model.policy.features_extractor.parameters
    before = torch.nn.utils.parameters_to_vector(weights()).detach().clone()
    model.learn(3 * ROLLOUT)
    assert (torch.nn.utils.parameters_to_vector(weights()) - before).abs().max() > 0.01
    return model


def test_trained_policy_computes_from_a_stretch_what_it_computes_from_windows(
    model: PerpPPO, tape: Tape
) -> None:
    assert parity_error(model.policy, tape) <= 1e-5


def test_live_bars_on_a_ring_give_the_actions_of_the_backtest(
    model: PerpPPO, tape: Tape, tmp_path: Path
) -> None:
    native, agent = model.native, TrainedAgent(model.policy)
    save_artifact(
        tmp_path, model.policy, tape=tape, env_config=native.config, limits=RiskLimits(), seed=1, commit="abc"
    )
    artifact = load_artifact(tmp_path)
    assert artifact.check_parity(tape) <= 1e-5
    policy, reach, bars = artifact.policy, model.policy.receptive_field, range(150, 190)
    account = np.full((1, 1, len(ACCOUNT_NAMES)), 0.3, np.float32)
    portfolio = np.full((1, len(PORTFOLIO_NAMES)), 0.1, np.float32)
    rings = {"market": tape.features, "risk": tape.risk}
    ring = {name: columns[bars[0] - reach : bars[0]].copy() for name, columns in rings.items()}
    chosen = []
    for bar in bars:
        for name, columns in rings.items():
            ring[name] = np.concatenate((ring[name][1:], columns[bar : bar + 1]))
        live, _ = policy.predict(
            {
                "account": account,
                "portfolio": portfolio,
                "market": ring["market"][None],
                "risk": ring["risk"][None],
                "clock": tape.clock(np.array([[bar]])),
            },
            deterministic=True,
        )
        np.testing.assert_allclose(live, agent.act(tape, bar, account, portfolio), rtol=0, atol=1e-5)
        chosen.append(live[0])
    # a policy that answers the same to everything would agree with itself
    assert np.std(chosen) > 1e-3


@pytest.mark.parametrize(
    ("encoder", "first_layer"),
    [("lstm", "recurrent"), ("gru", "recurrent"), ("tcn", "embed"), ("tft", "select"), ("mlp", "layers")],
)
def test_token_budget_counts_every_bar_that_the_market_encoder_reads(
    tape: Tape, encoder: str, first_layer: str
) -> None:
    model, read = fresh(tape, replace(SMALL, encoder=encoder)), []
    market_encoder = model.policy.features_extractor.market_encoder
    assert isinstance(market_encoder, torch.nn.Module)
    market_encoder.get_submodule(first_layer).register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    model.learn(ROLLOUT)
    assert len(model.rollout_buffer.segments) > PATHS
    assert model.objective.tokens == sum(read)
    assert model.logger.name_to_value["train/tokens_per_step"] == sum(read) / ROLLOUT
