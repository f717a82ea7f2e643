"""Stepping along a stretch gives the numbers of the policy itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig
from perpgym.policies.stretch_actor import StretchActor

SMALL = PolicyConfig(d_model=8, n_heads=2, band=6, risk_hidden=0, policy_hidden=(12, 16))


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=200)


def make_policy(tape: Tape, config: PolicyConfig) -> PerpActorCriticPolicy:
    torch.manual_seed(0)
    env = PerpVecEnv(tape, n_paths=3, config=EnvConfig(window_bars=config.receptive_field))
    policy = PerpActorCriticPolicy(
        env.single_observation_space,
        env.single_action_space,
        lambda _: 1e-3,
        config=config,
        market_scaler=fit_scaler(tape.features, 0, 100),
        risk_scaler=fit_scaler(tape.risk, 0, 100),
    )
    policy.bind(tape)
    # fresh heads answer almost nothing to everything: make differences visible
    torch.nn.init.normal_(policy.action_net.weight)
    if policy.features_extractor.forecast is not None:
        torch.nn.init.normal_(policy.features_extractor.forecast.linear.weight)
    return policy


@pytest.mark.parametrize("horizons", [(), (2, 5)], ids=["plain", "with forecasts"])
@torch.inference_mode()
def test_answers_along_a_stretch_are_the_policys_own(tape: Tape, horizons: tuple[int, ...]) -> None:
    policy = make_policy(tape, replace(SMALL, forecast_bars=horizons))
    context = policy.stretch_context(torch.tensor([20, 60, 110]), 9)  # 3 9 C
    states = 3.0 * torch.randn(9, 3, 2, len(policy.features_extractor.inverse_divisors))
    actor = StretchActor(policy, context)
    # a path that jumps has its contexts replaced after the actor was made
    context[1, 4:] = policy.stretch_context(torch.tensor([150]), 5)[0]
    for step, state in enumerate(states):
        own = policy.action_parameters(context[:, step : step + 1], state)
        torch.testing.assert_close(actor.parameters(step, state), own)
    assert own.std() > 0.1
