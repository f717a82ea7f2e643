"""Two levels when they act: from a file, in backtests, after an absence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from two_levels import ACCOUNTS, HEADS, N_PATHS, SETTINGS, SMALL, build

from perpgym.agents.artifact import load_artifact, save_artifact
from perpgym.agents.hierarchical_ppo import HierarchicalPPO
from perpgym.agents.ppo_config import PPOConfig
from perpgym.agents.trained import TrainedAgent
from perpgym.data.tape import Tape
from perpgym.envs import PerpVecEnv, RiskLimits
from perpgym.policies.hierarchy import PerpHierarchicalPolicy
from perpgym.policies.options import HierarchyConfig


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=400)


def test_a_saved_model_predicts_the_same(tape: Tape, tmp_path: Path) -> None:
    model = build(tape)
    model.learn(16 * N_PATHS * ACCOUNTS)
    model.save(tmp_path / "model.zip")
    loaded = HierarchicalPPO.load(tmp_path / "model.zip", env=model.native, device="cpu")
    observation = model.native.observation(model.env.buffers)  # type: ignore[union-attr]
    mine, theirs = (m.predict(observation, deterministic=True) for m in (model, loaded))
    np.testing.assert_array_equal(mine[0], theirs[0])
    np.testing.assert_array_equal(mine[1][0], theirs[1][0])


@pytest.mark.parametrize("action", ["heads", "band"])
def test_predict_with_its_state_is_what_backtests_and_artifacts_do(
    tape: Tape, tmp_path: Path, action: Any
) -> None:
    """Window observations and ``predict``'s state, against the stretch and the agent's own memory."""
    config = replace(HEADS, action=action, episode_bars=60)
    model = build(tape, env=config)
    model.learn(2 * 16 * N_PATHS * ACCOUNTS)
    save_artifact(
        tmp_path, model.policy, tape=tape, env_config=config, limits=RiskLimits(), seed=0, commit="none"
    )
    artifact = load_artifact(tmp_path)
    agent, policy = TrainedAgent(artifact), artifact.policy
    assert isinstance(policy, PerpHierarchicalPolicy)
    env = PerpVecEnv(tape, n_paths=1, accounts_per_path=2, config=config, with_windows=True, seed=3)
    out = env.make_buffers()
    env.reset_into(out, 3)
    state, budgets = None, []
    for _ in range(40):
        masks = env.action_masks() if config.choices else None
        seen = (tape, int(out.bar[0]), out.account, out.portfolio, masks)
        mine = agent.act(*seen)
        windows = env.observation(out)
        theirs, state = policy.predict(windows, state, deterministic=True, action_masks=masks)
        np.testing.assert_allclose(mine, theirs.reshape(mine.shape), atol=1e-5)
        np.testing.assert_allclose(agent.policy.forget(agent.in_force).numpy(), state[0], atol=1e-6)
        budgets.append(state[0][0, -1])
        env.step_into(mine, out)
    # options of the midpoint's three bars
    assert budgets[:6] == [2.0, 1.0, 0.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize("is_deterministic", [True, False])
@pytest.mark.parametrize("action", ["heads", "ladder"])
def test_the_option_binds_the_worker_where_nobody_passes_masks(
    tape: Tape, monkeypatch: pytest.MonkeyPatch, action: Any, is_deterministic: bool
) -> None:
    """SB3's ``evaluate_policy`` and most programs call ``predict`` without them."""
    hierarchy = HierarchyConfig(targets=(-0.5, 0.5), budgets=(0.25,), reach=0.5)
    config = replace(HEADS, action=action, ladder=(-1.0, -0.25, 0.0, 0.25, 1.0))
    model = build(tape, replace(SETTINGS, hierarchy=hierarchy), config)
    # a worker who would buy as much as it can
    heads = [0.0, 3.0, 3.0, 0.0, 0.0, 1.0, 3.0] + [0.0] * 5
    wish = torch.tensor(heads if action == "heads" else [2.0, 1.0, 0.0, 1.0, 3.0])
    monkeypatch.setattr(model.policy, "action_parameters", lambda _, state: wish.expand(len(state), -1))
    observation, _ = model.native.reset(seed=0)
    sizes, state = set(), None
    for _ in range(20):
        chosen, state = model.predict(observation, state=state, deterministic=is_deterministic)
        if action == "ladder":
            sizes |= {abs(config.ladder[int(level)]) for level in chosen.reshape(-1)}
        else:
            trades = chosen[np.isin(chosen[:, 0], (1, 2))]
            sizes |= {config.head_sizes[int(size)] for size in trades[:, 1]}
    assert 0.25 in sizes
    assert max(sizes) == 0.25


def test_the_state_of_other_accounts_is_refused(tape: Tape) -> None:
    model = build(tape)
    observation = model.native.observation(model.env.buffers)  # type: ignore[union-attr]
    with pytest.raises(
        ValueError, match=r"the state is of shape \(5, 3\), 12 accounts have one of \(12, 3\)"
    ):
        model.predict(observation, state=(np.zeros((5, 3), np.float32),))


def test_an_env_with_other_sizes_is_refused(tape: Tape, tmp_path: Path) -> None:
    model = build(tape)
    other = replace(HEADS, head_sizes=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"bind levels \(0.25, 0.5, 1.0\), the env has \(0.1, 0.2, 0.3\)"):
        model.set_env(build(tape, env=other).native)
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="bind levels"):
        HierarchicalPPO.load(tmp_path / "model.zip", env=build(tape, env=other).native, device="cpu")


def test_settings_of_another_algorithm_or_two_hierarchies_are_refused(tape: Tape) -> None:
    with pytest.raises(TypeError, match="HierarchicalPPO takes a HierarchicalPPOConfig, was a PPOConfig"):
        build(tape, PPOConfig())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="policy_kwargs has another hierarchy than config"):
        HierarchicalPPO(
            PerpHierarchicalPolicy,
            build(tape).native,
            config=SETTINGS,
            policy_kwargs={"config": SMALL, "hierarchy": HierarchyConfig(max_bars=7)},
        )


def test_a_prediction_without_an_option_is_refused(tape: Tape) -> None:
    model = build(tape)
    observation = model.native.observation(model.env.buffers)  # type: ignore[union-attr]
    tensors, _ = model.policy.obs_to_tensor(observation)
    with pytest.raises(RuntimeError, match="acts within an option"):
        model.policy.predict_values(tensors)


@pytest.mark.parametrize(
    ("later", "left"),
    [
        # asked again at the same close, as by a program that was started anew within the bar
        (0, 3.0),
        (1, 2.0),
        (2, 1.0),
        # the option ran out while nobody was there: a new one
        (9, 3.0),
    ],
)
def test_a_program_that_was_away_goes_on_in_its_option(tape: Tape, later: int, left: float) -> None:
    model, config = build(tape), HEADS
    env = PerpVecEnv(tape, n_paths=1, config=config, seed=3)
    out = env.make_buffers()
    env.reset_into(out, 3)
    bar = int(out.bar[0])
    masks = env.action_masks() if config.choices else None

    def ask(agent: TrainedAgent, at: int) -> NDArray[np.float32]:
        return agent.act(tape, at, out.account, out.portfolio, masks)

    before = TrainedAgent(model.policy)
    action = ask(before, bar)
    begun = before.in_force.clone()
    assert float(begun[0, -1]) == 3.0
    after = TrainedAgent(model.policy)
    after.load_state(before.state_dict())
    again = ask(after, bar + later)
    assert float(after.in_force[0, -1]) == left
    if later == 0:
        np.testing.assert_array_equal(again, action)
    if left < 3.0 or later == 0:
        torch.testing.assert_close(after.in_force[:, :-1], begun[:, :-1])
    # whoever was not away has jumped to another period
    ask(before, bar + 2)
    assert float(before.in_force[0, -1]) == 3.0
