"""Both levels' losses by hand: each has its own settings, unit and advantages, and can be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure
from two_levels import N_PATHS, SETTINGS, build, roll

from perpgym.agents.hierarchical_ppo import HierarchicalPPO
from perpgym.agents.hierarchical_rollout import HierarchicalMinibatch
from perpgym.data.tape import Tape
from perpgym.policies.actor_critic import Evaluation

# no number of one level is one of the other
OWN = replace(
    SETTINGS, n_epochs=1, popart=True,
    clip_range=0.3, vf_coef=0.7, ent_coef=0.4,
    manager_clip_range=0.1, manager_vf_coef=0.2, manager_ent_coef=0.9, manager_gae_lambda=0.6,
)  # fmt: skip


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=400)


@pytest.fixture(scope="module")
def model(tape: Tape) -> HierarchicalPPO:
    """One rollout, after which the weights have moved and every value has another unit."""
    model = build(tape, OWN)
    roll(model, 2)
    model.rollout_buffer.weigh_advantages(path_baseline=False, normalise=True)
    model.rollout_buffer.weigh_decisions(path_baseline=False, normalise=True)
    policy, rng = model.policy, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in policy.parameters():
            weights += 0.1 * torch.randn(weights.shape, generator=rng)
    heads = (policy.value_head, policy.manager_value_head, policy.option_value_head)
    for head, size in zip(heads, (0.05, 0.1, 0.2), strict=True):
        head.rescale(size * torch.tensor([[-3.0], [1.0], [5.0]]))
    return model


def whole(model: HierarchicalPPO) -> HierarchicalMinibatch:
    """All paths at once."""
    (batch,) = model.rollout_buffer.minibatches(N_PATHS, np.random.default_rng(0))
    return cast(HierarchicalMinibatch, batch)


def plain(
    now: Evaluation, log_prob: torch.Tensor, advantages: torch.Tensor, returns: torch.Tensor,
    *, clip: float, vf: float, ent: float, unit: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Schulman et al. 2017, eq. 9: what an advantage promises, no further than to the edge of the range."""
    ratio = (now.log_prob - log_prob).exp()
    assert 0.02 < ((ratio - 1.0).abs() > clip).float().mean() < 0.98
    edge = torch.where(advantages > 0.0, ratio.clamp(max=1.0 + clip), ratio.clamp(min=1.0 - clip))
    error = (now.values - returns) / unit
    return -(advantages * edge).mean() + vf * (error**2).mean() - ent * now.entropy


def test_each_level_has_its_own_settings_and_a_stopped_one_is_left_out(model: HierarchicalPPO) -> None:
    batch, policy = whole(model), model.policy
    now = policy.evaluate_levels(
        model.objective.contexts(batch, model.n_steps).unsqueeze(2),
        batch.state,
        batch.actions,
        batch.masks,
        batch.decided,
        batch.choices,
        batch.choice_mask,
    )
    worker = plain(
        now.worker, batch.log_prob, batch.advantages, batch.returns,
        clip=0.3, vf=0.7, ent=0.4, unit=policy.value_head.deviation,
    )  # fmt: skip
    manager = plain(
        now.manager, batch.choice_log_prob, batch.choice_advantages, batch.choice_returns,
        clip=0.1, vf=0.2, ent=0.9, unit=policy.manager_value_head.deviation,
    )  # fmt: skip
    error = (now.option_values - batch.option_returns) / policy.option_value_head.deviation
    option = (error**2).mean()
    # nothing that is left out would go unnoticed
    assert min(abs(float(part.detach())) for part in (worker, manager, option)) > 0.05
    for works, manages in product((True, False), repeat=2):
        policy.optimizer.zero_grad()
        loss = model.levels_loss(batch, {"worker": works, "manager": manages})
        torch.testing.assert_close(loss.worker.terms[0], worker.detach())
        torch.testing.assert_close(loss.manager.terms[0], manager.detach())
        torch.testing.assert_close(loss.option, option.detach())
        torch.testing.assert_close(loss.total, 0.2 * option + works * worker + manages * manager)
        loss.total.backward()  # type: ignore[no-untyped-call]
        # the value within the option learns on
        assert policy.option_value_head.weight.grad is not None
        for parts, learns in (
            ((policy.action_net, policy.value_net), works),
            ((policy.manager_policy, policy.manager_value), manages),
        ):
            weights = [weight for part in parts for weight in part.parameters()]
            assert all((weight.grad is not None) == learns for weight in weights)


def test_a_minibatch_without_a_decision_leaves_the_worker_to_learn(model: HierarchicalPPO) -> None:
    batch = whole(model)
    none = {
        name: getattr(batch, name)[:0]
        for name in ("choices", "choice_mask", "choice_log_prob", "choice_advantages", "choice_returns")
    }
    batch = replace(batch, decided=torch.zeros_like(batch.decided), **none)
    loss = model.levels_loss(batch, {"worker": True, "manager": True})
    torch.testing.assert_close(loss.total.detach(), loss.worker.terms[0] + 0.2 * loss.option)


def updated(model: HierarchicalPPO) -> list[HierarchicalMinibatch]:
    """The minibatches of an update after one rollout."""
    seen: list[HierarchicalMinibatch] = []
    losses = model.levels_loss

    def watch(batch: HierarchicalMinibatch, learning: dict[str, bool]) -> Any:
        seen.append(batch)
        return losses(batch, learning)

    model.levels_loss = watch  # type: ignore[method-assign]
    roll(model)
    model.set_logger(configure(None, []))
    model.train()
    return seen


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("relative", ["worker", "manager"])
def test_each_level_weighs_its_own_advantages(tape: Tape, relative: str, normalise: bool) -> None:
    """Over all its decisions of the rollout, and against the accounts of a path where it is told to."""
    model = build(
        tape,
        replace(
            OWN,
            normalize_advantage=normalise,
            path_baseline=relative == "worker",
            manager_path_baseline=relative == "manager",
        ),
    )
    batches, rollout = updated(model), model.rollout_buffer
    decided = rollout.decided[:, :-1]
    for level, kept, where, found in (
        ("worker", rollout.advantages, torch.ones_like(decided), [b.advantages.flatten() for b in batches]),
        ("manager", rollout.manager_advantages, decided, [b.choice_advantages for b in batches]),
    ):
        against = kept.mean(dim=2, keepdim=True) if level == relative else 0.0
        expected = (kept - against)[where].sort().values
        assert expected.std() > 0.0
        if normalise:
            expected = (expected - expected.mean()) / expected.std()
        torch.testing.assert_close(torch.cat(found).sort().values, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("popart", [True, False])
def test_popart_gives_every_value_the_moments_of_its_own_targets(tape: Tape, popart: bool) -> None:
    model = build(tape, replace(OWN, popart=popart))
    updated(model)
    policy, rollout = model.policy, model.rollout_buffer
    decisions = rollout.option_returns[rollout.decided[:, :-1]]
    for head, targets in (
        (policy.value_head, rollout.returns),
        (policy.option_value_head, rollout.option_returns),
        (policy.manager_value_head, decisions),
    ):
        assert int(head.count) == popart
        mean, deviation = (targets.mean(), targets.std(correction=0)) if popart else (0.0, 1.0)
        assert float(head.mean) == pytest.approx(float(mean), rel=1e-4, abs=1e-7)
        assert float(head.deviation) == pytest.approx(float(deviation), rel=1e-3)
    means = {float(targets.mean()) for targets in (rollout.returns, rollout.option_returns, decisions)}
    assert len(means) == 3


def test_the_managers_decisions_keep_what_they_were_worth_and_not_what_the_worker_was_told(
    tape: Tape,
) -> None:
    model = build(tape, replace(OWN, worker_shaping=3.0))
    roll(model)
    rollout = model.rollout_buffer
    (batch,) = rollout.minibatches(N_PATHS, np.random.default_rng(0))
    assert isinstance(batch, HierarchicalMinibatch)
    order = np.random.default_rng(0).permutation(N_PATHS)
    decided = rollout.decided[order, :-1]
    torch.testing.assert_close(batch.choice_returns, rollout.option_returns[order][decided])
    torch.testing.assert_close(batch.option_returns, rollout.option_returns[order])
    assert not torch.allclose(batch.choice_returns, rollout.returns[order][decided])


def test_each_levels_trace_decays_by_its_own_lambda(tape: Tape) -> None:
    found = {}
    for name in ("none", "gae_lambda", "manager_gae_lambda"):
        model = build(tape, OWN if name == "none" else replace(OWN, **{name: 0.1}))  # type: ignore[arg-type]
        roll(model)
        found[name] = model.rollout_buffer.advantages, model.rollout_buffer.manager_advantages
    for number, name in enumerate(("gae_lambda", "manager_gae_lambda")):
        mine, others = (found[name][level] for level in (number, 1 - number))
        assert not torch.allclose(mine, found["none"][number], atol=1e-4)
        torch.testing.assert_close(others, found["none"][1 - number])
