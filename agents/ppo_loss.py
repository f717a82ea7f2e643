"""PPO's clipped loss of one minibatch, and what is reported of an epoch."""

from __future__ import annotations

from typing import NamedTuple

import torch

from perpgym.agents.rollout import Minibatch
from perpgym.policies.actor_critic import Evaluation

# means over an epoch, under SB3's names
STATISTICS = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
KL = STATISTICS.index("approx_kl")


class Taken(NamedTuple):
    """Decisions, all (...,): their log-probability when taken, and what they turned out to be worth."""

    log_prob: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class PPOLoss(NamedTuple):
    """A minibatch's loss.

    Attributes:
        total: (), with its graph.
        terms: (4,) detached: total, policy loss, value loss, negative entropy.
        log_ratio: (G, T, K) detached, log of the new over the old probability of each action.
    """

    total: torch.Tensor
    terms: torch.Tensor
    log_ratio: torch.Tensor


def ppo_loss(
    now: Evaluation,
    batch: Minibatch | Taken,
    *,
    clip_range: float,
    vf_coef: float,
    ent_coef: float,
    value_scale: torch.Tensor | None = None,
) -> PPOLoss:
    """Schulman et al. 2017, eqs. 7 and 9, as SB3 weighs them.

    Args:
        now: what the present weights say of the minibatch.
        batch: the minibatch, or what of it is meant.
        clip_range: of the probability ratio.
        vf_coef, ent_coef: weights of value loss and entropy bonus.
        value_scale: what the error of a value is divided by, PopArt's sigma; None for 1.
    """
    log_ratio = now.log_prob - batch.log_prob  # G T K
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    policy_loss = -torch.minimum(batch.advantages * ratio, batch.advantages * clipped).mean()
    error = now.values - batch.returns
    value_loss = (error if value_scale is None else error / value_scale).square().mean()
    total = policy_loss + vf_coef * value_loss - ent_coef * now.entropy
    terms = torch.stack((total, policy_loss, value_loss, -now.entropy)).detach()
    return PPOLoss(total, terms, log_ratio.detach())


def epoch_statistics(
    terms: list[torch.Tensor], log_ratios: list[torch.Tensor], clip_range: float
) -> torch.Tensor:
    """(6,) in the order of ``STATISTICS``, from the terms and (n,) log ratios of an epoch's minibatches."""
    log_ratio = torch.cat(log_ratios)
    ratio = log_ratio.exp()
    # the low-variance estimator k3 of Schulman, http://joschu.net/blog/kl-approx.html
    approx_kl = (ratio - 1.0 - log_ratio).mean()
    clip_fraction = ((ratio - 1.0).abs() > clip_range).float().mean()
    return torch.cat((torch.stack(terms).mean(0), torch.stack((approx_kl, clip_fraction))))
