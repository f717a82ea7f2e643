"""What both levels act on along a path that jumps, dies and is limited: the bar, state and masks of now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from two_levels import ACCOUNTS, HEADS, N_PATHS, SETTINGS, build

from perpgym.agents.hierarchical_ppo import HierarchicalPPO
from perpgym.agents.hierarchical_rollout import HierarchicalMinibatch, HierarchicalRollout
from perpgym.data.tape import Tape
from perpgym.envs import RiskLimits

SHAPING = 3.0


class Bars(BaseCallback):
    """The bar of every path before each step of a rollout."""

    def _on_rollout_start(self) -> None:
        self.seen = [self._now()]

    def _on_step(self) -> bool:
        self.seen.append(self._now())
        return True

    def _now(self) -> torch.Tensor:
        return torch.from_numpy(self.model.env.buffers.bar[::ACCOUNTS].copy())  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def rolled(make_tape: Callable[..., Tape]) -> tuple[HierarchicalPPO, torch.Tensor]:
    """A rollout of a wild market that ends episodes after eleven bars, kills, and cuts risk; (P, T) bars."""
    env = replace(HEADS, episode_bars=11, max_drawdown=0.08, max_exposure=1.5)
    model = build(
        make_tape(bars=400, sigma=0.05),
        replace(SETTINGS, worker_shaping=SHAPING),
        env,
        limits=RiskLimits(drawdown_start=0.02),
    )
    with torch.no_grad():
        # a fresh network says nearly the same everywhere
        for head in (model.policy.manager_policy[-1], model.policy.action_net):
            torch.nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    bars = Bars()
    bars.init_callback(model)
    model._setup_learn(10**9)
    for _ in range(2):
        model.collect_rollouts(model.env, bars, model.rollout_buffer, model.n_steps)  # type: ignore[arg-type]
    return model, torch.stack(bars.seen[:-1], 1)


def ends(rollout: HierarchicalRollout, kind: str) -> torch.Tensor:
    """(P, T, K) where accounts were ``terminated`` or ``truncated``."""
    flags: np.ndarray = getattr(rollout, kind)
    return torch.from_numpy(flags).view(-1, N_PATHS, ACCOUNTS).transpose(0, 1)


def test_after_a_jump_both_levels_act_on_the_bars_of_the_path_where_it_is_now(
    rolled: tuple[HierarchicalPPO, torch.Tensor],
) -> None:
    model, bars = rolled
    rollout, policy = model.rollout_buffer, model.policy
    # in mid-round, not from the first bar on
    assert (bars.diff(dim=1) != 1).any()
    state, decided = rollout.state[:, :-1], rollout.decided[:, :-1]
    with torch.no_grad():
        # a bar at a time
        context = policy.stretch_context(bars.flatten(), 1).view(*bars.shape, 1, -1)
        now = policy.evaluate_levels(
            context, state, rollout.actions, rollout.masks, decided, rollout.choices[decided],
            policy.options.manager_mask(state[..., : rollout.observed_size])[decided],
        )  # fmt: skip
    for found, expected in (
        (rollout.log_prob, now.worker.log_prob),
        (rollout.choice_log_prob[decided], now.manager.log_prob),
        (rollout.values[:, :-1], now.worker.values),
        (rollout.manager_values[decided], now.manager.values),
        (rollout.within, now.option_values),
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0.0)
        assert expected.std() > 1e-2


def test_no_budget_is_granted_that_the_limits_forbid_and_the_update_knows_which(
    rolled: tuple[HierarchicalPPO, torch.Tensor],
) -> None:
    model, _bars = rolled
    rollout = model.rollout_buffer
    decided, first = rollout.decided[:, :-1], 0
    masks, choices = rollout.choice_mask[decided], rollout.choices[decided].long()
    assert 0.0 < (~masks).float().mean() < 0.5
    for number, count in enumerate(model.policy.options.counts):
        assert masks[:, first : first + count].gather(-1, choices[:, number : number + 1]).all()
        first += count
    rollout.weigh_decisions(path_baseline=False, normalise=True)
    for batch in rollout.minibatches(1, model.shuffle):
        assert isinstance(batch, HierarchicalMinibatch)
        ratio = model.levels_loss(batch, {"worker": True, "manager": True}).manager.log_ratio
        torch.testing.assert_close(ratio, torch.zeros_like(ratio), atol=1e-5, rtol=0.0)


def test_nothing_comes_after_a_death_on_either_level(rolled: tuple[HierarchicalPPO, torch.Tensor]) -> None:
    rollout = rolled[0].rollout_buffer
    died = ends(rollout, "terminated")
    # not with the last step of the rollout alone
    assert died[:, :-1].any()
    for returns, reward in (
        (rollout.returns, rollout.reward),
        (rollout.option_returns, rollout.raw_reward),
    ):
        booked = torch.from_numpy(reward).view(-1, N_PATHS, ACCOUNTS).transpose(0, 1)
        torch.testing.assert_close(returns[died], booked[died], atol=1e-5, rtol=0.0)


def test_the_worker_loses_by_how_far_the_bar_left_it_from_its_target(
    rolled: tuple[HierarchicalPPO, torch.Tensor],
) -> None:
    model, _bars = rolled
    rollout = model.rollout_buffer
    (column,) = model.policy.options.exposure_columns
    lives = ~(ends(rollout, "terminated") | ends(rollout, "truncated"))
    target = rollout.state[:, :-1, :, -3]
    exposure = rollout.state[:, 1:, :, column] / model.native.config.max_exposure
    lost, brought = (
        torch.from_numpy(reward).view(-1, N_PATHS, ACCOUNTS).transpose(0, 1)
        for reward in (rollout.raw_reward - rollout.reward, rollout.raw_reward)
    )
    torch.testing.assert_close(lost[lives], (SHAPING * (exposure - target).abs())[lives], atol=1e-4, rtol=0.0)
    assert brought.abs().max() > 0.0
    # targets on both sides, some reached and some far
    assert target.unique().numel() == 5
    assert lost[lives].min() < 0.1 < 1.0 < lost[lives].max()
