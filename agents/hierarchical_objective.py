"""The losses of both levels of a minibatch, from contexts that are encoded once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from perpgym.agents.hierarchical_config import HierarchicalPPOConfig
from perpgym.agents.hierarchical_rollout import HierarchicalMinibatch
from perpgym.agents.objective import Objective
from perpgym.agents.ppo_loss import PPOLoss, Taken, ppo_loss
from perpgym.policies.hierarchy import PerpHierarchicalPolicy


class LevelSettings(NamedTuple):
    """What holds for one level at this moment of the run; without ``is_learning`` it has no loss."""

    clip_range: float
    ent_coef: float
    is_learning: bool


class HierarchicalLoss(NamedTuple):
    """A minibatch's losses: the sum (), each level's own, and that of the value within an option, ()."""

    total: torch.Tensor
    worker: PPOLoss
    manager: PPOLoss
    option: torch.Tensor


class HierarchicalObjective(Objective):
    """:class:`Objective` of a policy of two levels.

    Args:
        policy: bound to a tape.
        config: of the algorithm.
    """

    policy: PerpHierarchicalPolicy
    config: HierarchicalPPOConfig

    def losses(
        self, batch: HierarchicalMinibatch, n_steps: int, worker: LevelSettings, manager: LevelSettings
    ) -> HierarchicalLoss:
        """Both levels' losses of a minibatch."""
        context = self.contexts(batch, n_steps).unsqueeze(2)  # G T 1 C
        now = self.policy.evaluate_levels(
            context, batch.state, batch.actions, batch.masks, batch.decided, batch.choices, batch.choice_mask
        )
        config, policy = self.config, self.policy
        of_worker = ppo_loss(
            now.worker,
            batch,
            clip_range=worker.clip_range,
            vf_coef=config.vf_coef,
            ent_coef=worker.ent_coef,
            value_scale=policy.value_head.deviation if config.popart else None,
        )
        of_manager = ppo_loss(
            now.manager,
            Taken(batch.choice_log_prob, batch.choice_advantages, batch.choice_returns),
            clip_range=manager.clip_range,
            vf_coef=config.manager_vf_coef,
            ent_coef=manager.ent_coef,
            value_scale=policy.manager_value_head.deviation if config.popart else None,
        )
        error = now.option_values - batch.option_returns
        if config.popart:
            error = error / policy.option_value_head.deviation
        of_option = error.square().mean()
        total = config.manager_vf_coef * of_option
        if worker.is_learning:
            total = total + of_worker.total
        # a minibatch may hold no decision at all
        if manager.is_learning and len(batch.choices):
            total = total + of_manager.total
        return HierarchicalLoss(total, of_worker, of_manager, of_option.detach())
