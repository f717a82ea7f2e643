"""Dropout before the heads measures a decision and never changes what is trained or decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from perpgym.agents.algorithms import make_algorithm
from perpgym.agents.hierarchical_ppo import HierarchicalPPOConfig
from perpgym.agents.path_algorithm import AgentConfig, PathAlgorithm
from perpgym.agents.ppo import PPOConfig
from perpgym.agents.qrdqn import QRDQNConfig
from perpgym.agents.stock_config import RecurrentPPOConfig, SACConfig
from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.evaluation.backtest import run_backtest
from perpgym.policies import PolicyConfig

SMALL = PolicyConfig(
    d_model=8, n_layers=1, n_heads=2, band=4, risk_hidden=0, policy_hidden=(16,), value_hidden=(16,)
)
KINDS: dict[str, tuple[AgentConfig, str]] = {
    "ppo": (PPOConfig(n_steps=8, batch_size=32), "band"),
    "ppo_target": (PPOConfig(n_steps=8, batch_size=32), "target"),
    "hppo": (HierarchicalPPOConfig(n_steps=8, batch_size=32), "heads"),
    "hppo_ladder": (HierarchicalPPOConfig(n_steps=8, batch_size=32), "ladder"),
    "qrdqn": (
        QRDQNConfig(learning_starts=16, batch_size=32, stretch_bars=4, buffer_size=500, n_quantiles=4),
        "ladder",
    ),
    "recurrent_ppo": (RecurrentPPOConfig(n_steps=8, batch_size=32, lstm_hidden_size=4), "target"),
    "sac": (SACConfig(learning_starts=16, batch_size=16, buffer_size=500), "target"),
}
each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=200)


def trained(tape: Tape, kind: str, dropout: float) -> PathAlgorithm:
    config, action = KINDS[kind]
    env_config = EnvConfig(window_bars=4, action=cast(Any, action), episode_bars=40, reward_scale=100.0)
    env = PerpVecEnv(tape, n_paths=2, accounts_per_path=2, config=env_config)
    model = make_algorithm(
        config, env, policy=replace(SMALL, head_dropout=dropout), seed=1, device="cpu",
        market_scaler=fit_scaler(tape.features, 0, 200), risk_scaler=fit_scaler(tape.risk, 0, 200),
    )  # fmt: skip
    model.learn(128)
    return model


def agent_of(model: PathAlgorithm, **settings: Any) -> TrainedAgent:
    return TrainedAgent(model.trained, config=model.native.config, **settings)


def state(n: int = 2) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    account = rng.uniform(-0.2, 0.2, (n, 1, len(ACCOUNT_NAMES))).astype(np.float32)
    return account, rng.uniform(-0.2, 0.2, (n, len(PORTFOLIO_NAMES))).astype(np.float32)


@each
def test_dropout_changes_no_rollout_no_update_and_no_decision(tape: Tape, kind: str) -> None:
    without, with_it = trained(tape, kind, 0.0), trained(tape, kind, 0.5)
    for name, value in without.policy.state_dict().items():
        torch.testing.assert_close(value, with_it.policy.state_dict()[name], rtol=0, atol=0, msg=name)
    # a measured decision in between changes nothing either
    agents = agent_of(without), agent_of(with_it)
    for bar in (50, 51, 52):
        decided = [agent.act(tape, bar, *state()) for agent in agents]
        np.testing.assert_array_equal(*decided)
    assert not agents[0].uncertainty.any()
    assert agents[1].uncertainty.shape == (2, 1)


@pytest.mark.parametrize("kind", ["ppo_target", "sac", "recurrent_ppo"])
def test_the_same_decision_is_always_as_uncertain_and_others_are_not(tape: Tape, kind: str) -> None:
    model = trained(tape, kind, 0.3)
    torch.manual_seed(5)
    first, second = agent_of(model), agent_of(model, chunk_bars=7)
    measured = []
    for bar in range(60, 70):
        first.act(tape, bar, *state())
        torch.rand(3)
        second.act(tape, bar, *state())
        np.testing.assert_allclose(first.uncertainty, second.uncertainty, rtol=1e-4)
        measured.append(first.uncertainty[0, 0])
    assert min(measured) > 0.0
    assert np.std(measured) > 0.0


def test_encoders_never_drop_anything(tape: Tape) -> None:
    model = trained(tape, "ppo", 0.9)
    extractor = model.trained.features_extractor
    extractor.bind(tape)
    bars = torch.tensor([60])
    with torch.no_grad():
        plain = extractor.stretch_context(bars, 20)
        with extractor.dropping((16, 1), seed=0):
            torch.testing.assert_close(extractor.stretch_context(bars, 20), plain, rtol=0, atol=0)
            state_of_three = torch.zeros(3, len(extractor.inverse_divisors))
            dropped = extractor.fuse(extractor.split(plain[0, 0]), state_of_three)
    # a mask for each sample, the same for each account
    assert dropped.shape == (16, 3, extractor.features_dim)
    assert float((dropped == 0.0).float().mean()) == pytest.approx(0.9, abs=0.1)
    torch.testing.assert_close(dropped[:, 0], dropped[:, 1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["hppo", "hppo_ladder"])
def test_what_masks_leave_no_choice_about_is_certain_on_two_levels_too(tape: Tape, kind: str) -> None:
    model = trained(tape, kind, 0.5)
    layer = cast(Any, model.trained).action_net
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    agent, choices = agent_of(model), model.native.config.choices
    anything = np.ones((2, sum(choices)), np.bool_)
    # hold, with the first of everything else; or the ladder's middle, no exposure
    only = [0, *np.cumsum(choices)[:-1]] if len(choices) > 1 else [choices[0] // 2]
    nothing = np.zeros_like(anything)
    nothing[:, only] = True
    account, portfolio = state()
    # limits that cut no budget: the smallest one leaves the worker no level but none
    portfolio[:, PORTFOLIO_NAMES.index("risk_budget")] = 1.0
    free, bound = [], []
    for bar in range(60, 80):
        agent.act(tape, bar, account, portfolio, anything)
        free.append(agent.uncertainty)
        agent.act(tape, bar, account, portfolio, nothing)
        bound.append(agent.uncertainty)
    assert np.max(free) > 0.0
    assert np.max(bound) == 0.0
    # as a backtest asks it
    [backtest] = run_backtest(
        [agent], tape, start_bar=20, end_bar=60, config=model.native.config, limits=RiskLimits()
    )
    assert len(backtest.actions) > 0


def test_a_policy_that_is_never_sure_enough_trades_nothing(tape: Tape) -> None:
    model = trained(tape, "ppo_target", 0.3)
    layer = cast(Any, model.trained).action_net
    torch.nn.init.normal_(layer.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    agents = [
        agent_of(model, name="unlimited"),
        agent_of(model, name="sure", abstain_above=1e3),
        agent_of(model, name="never", abstain_above=0.0),
    ]
    unlimited, sure, never = run_backtest(
        agents, tape, start_bar=20, end_bar=120, config=model.native.config, limits=RiskLimits()
    )
    assert unlimited.column("traded_notional").sum() > 0.0
    np.testing.assert_array_equal(unlimited.actions, sure.actions)
    assert never.column("traded_notional").sum() == 0.0


def test_abstaining_without_knowing_is_refused(tape: Tape) -> None:
    model = trained(tape, "ppo", 0.0)
    with pytest.raises(ValueError, match=r"train it with policy\.head_dropout above 0, or ask an ensemble"):
        agent_of(model, abstain_above=0.1)
    with pytest.raises(ValueError, match=r"head_dropout must lie in \[0, 1\)"):
        PolicyConfig(head_dropout=1.0)
