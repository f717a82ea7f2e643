"""PPO's loss of four decisions by hand, and what is reported of an epoch."""

from __future__ import annotations

import math

import pytest
import torch

from perpgym.agents.ppo_loss import STATISTICS, PPOLoss, Taken, epoch_statistics, ppo_loss
from perpgym.policies.actor_critic import Evaluation

# of the new to the old probability; both edges of a range of 0.2 are left, by good decisions and by bad ones
RATIOS = torch.tensor([1.5, 1.5, 0.5, 0.5])
ADVANTAGES = torch.tensor([2.0, -2.0, 1.0, -1.0])


def loss_of(scale: float | None = None) -> tuple[PPOLoss, torch.Tensor, torch.Tensor]:
    """The loss, with the log-probabilities and values that it is differentiated by."""
    old = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    log_prob, values = (
        (old + RATIOS.log()).requires_grad_(),
        torch.tensor([1.0, 2.0, 3.0, 4.0]).requires_grad_(),
    )
    loss = ppo_loss(
        Evaluation(values, log_prob, torch.tensor(0.7)),
        Taken(old, ADVANTAGES, torch.tensor([1.0, 4.0, 3.0, 8.0])),
        clip_range=0.2,
        vf_coef=0.25,
        ent_coef=0.1,
        value_scale=None if scale is None else torch.tensor([scale]),
    )
    return loss, log_prob, values


def test_a_good_decision_counts_up_to_the_edge_and_a_bad_one_in_full() -> None:
    loss, log_prob, values = loss_of()
    policy = -(1.2 * 2.0 - 1.5 * 2.0 + 0.5 * 1.0 - 0.8 * 1.0) / 4
    value = (0.0 + 4.0 + 0.0 + 16.0) / 4
    total = policy + 0.25 * value - 0.1 * 0.7
    assert loss.terms.tolist() == pytest.approx([total, policy, value, -0.7])
    assert float(loss.total.detach()) == pytest.approx(total)
    torch.testing.assert_close(loss.log_ratio, RATIOS.log())
    loss.total.backward()  # type: ignore[no-untyped-call]
    # beyond the edge that an advantage pulls towards there is no slope
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == pytest.approx([0.0, 1.5 * 2.0 / 4, -0.5 * 1.0 / 4, 0.0])
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.0, 0.25 * 2.0 * -2.0 / 4, 0.0, 0.25 * 2.0 * -4.0 / 4])
    # what is reported holds no graph
    assert not loss.terms.requires_grad
    assert not loss.log_ratio.requires_grad


def test_an_error_of_values_is_measured_in_their_own_unit() -> None:
    assert float(loss_of(4.0)[0].terms[2]) == pytest.approx(20.0 / 4 / 16)


def test_an_epoch_reports_means_over_its_minibatches_and_over_all_its_decisions() -> None:
    terms = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([3.0, 4.0, 5.0, 8.0])]
    ratios = [torch.tensor([1.5, 1.1, 0.9]), torch.tensor([0.5])]
    found = epoch_statistics(terms, [ratio.log() for ratio in ratios], 0.2)
    # k3 of each ratio r is r - 1 - ln r, which is never negative
    kl = sum(r - 1.0 - math.log(r) for r in (1.5, 1.1, 0.9, 0.5)) / 4
    assert dict(zip(STATISTICS, found.tolist(), strict=True)) == pytest.approx(
        {
            "loss": 2.0,
            "policy_gradient_loss": 3.0,
            "value_loss": 4.0,
            "entropy_loss": 6.0,
            "approx_kl": kl,
            "clip_fraction": 0.5,
        }
    )
