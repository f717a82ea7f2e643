"""The loss from sorted sums is the loss over all pairs."""

from __future__ import annotations

import pytest
import torch
from sb3_contrib.common.utils import quantile_huber_loss as over_all_pairs

from perpgym.agents.quantile_huber import quantile_huber_loss


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("offset", [0.0, 1_000.0])
def test_value_and_gradient_are_those_of_sb3_contrib(scale: float, offset: float) -> None:
    rng = torch.Generator().manual_seed(0)
    current = (offset + scale * torch.randn(300, 8, generator=rng)).requires_grad_()
    target = offset + scale * torch.randn(300, 12, generator=rng)
    ours, theirs = quantile_huber_loss(current, target), over_all_pairs(current, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)
    slopes = [torch.autograd.grad(3.0 * loss, current)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-8)


def test_targets_that_meet_a_quantile_or_an_edge_count_once() -> None:
    """Errors of exactly -1, 0 and 1: half, nothing and half, by the share on each side."""
    current = torch.tensor([[0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[-1.0, 0.0, 1.0, 1.0]])
    loss = quantile_huber_loss(current, target)
    # quantiles at 1/4 and 3/4
    expected = 0.5 * ((0.75 + 2 * 0.25) + (0.25 + 2 * 0.75)) / 4
    assert float(loss.detach()) == pytest.approx(expected)
    torch.testing.assert_close(loss.detach(), over_all_pairs(current, target).detach())
    (slope,) = torch.autograd.grad(loss, current)
    torch.testing.assert_close(slope, torch.tensor([[(0.75 - 2 * 0.25) / 4, (0.25 - 2 * 0.75) / 4]]))


@pytest.mark.parametrize("kappa", [0.1, 3.0])
def test_with_another_kappa_it_is_the_formula_over_all_pairs(kappa: float) -> None:
    """Dabney et al. 2018, eqs. 9 and 10, written out."""
    rng = torch.Generator().manual_seed(1)
    current = torch.randn(40, 5, generator=rng).requires_grad_()
    target = torch.randn(40, 7, generator=rng)
    error = target[:, None, :] - current[:, :, None]  # n N M
    share = ((torch.arange(5) + 0.5) / 5)[None, :, None]
    huber = torch.where(error.abs() <= kappa, 0.5 * error.square(), kappa * (error.abs() - 0.5 * kappa))
    expected = ((share - (error.detach() < 0.0).float()).abs() * huber / kappa).sum(1).mean()
    loss = quantile_huber_loss(current, target, kappa)
    torch.testing.assert_close(loss, expected)
    slopes = [torch.autograd.grad(one, current)[0] for one in (loss, expected)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-7)


def test_its_minimum_is_the_quantile_of_a_sample_wider_than_its_kappa() -> None:
    target = 1_000.0 * torch.arange(100.0).repeat(1, 1)
    current = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([current], lr=500.0)
    for step in range(3_000):
        optimizer.param_groups[0]["lr"] = 500.0 * (1.0 - step / 3_000)
        optimizer.zero_grad()
        quantile_huber_loss(current, target).backward()
        optimizer.step()
    torch.testing.assert_close(
        current.detach(), torch.tensor([[12_000.0, 37_000.0, 62_000.0, 87_000.0]]), atol=1_100.0, rtol=0.0
    )
