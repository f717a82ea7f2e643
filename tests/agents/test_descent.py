"""A step of the optimiser is the one that torch's own functions take."""

from __future__ import annotations

import pytest
import torch

from perpgym.agents.descent import Descent


def make_network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.SiLU(), torch.nn.Linear(4, 1))


@pytest.mark.parametrize("max_norm", [1e-3, 1e3], ids=["clipped", "not clipped"])
def test_descends_like_clip_grad_norm_and_adam(max_norm: float) -> None:
    mine, theirs = make_network(), make_network()
    unused = torch.nn.Parameter(torch.ones(2))
    optimizers = [
        torch.optim.Adam([*network.parameters(), extra], lr=0.1)
        for network, extra in ((mine, unused), (theirs, torch.nn.Parameter(torch.ones(2))))
    ]
    descent = Descent(optimizers[0], max_norm)
    for seed in range(3):
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        descent.step(mine(inputs).square().mean())
        optimizers[1].zero_grad()
        theirs(inputs).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        optimizers[1].step()
    for ours, reference in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, reference.grad)
        torch.testing.assert_close(ours, reference)
    assert unused.grad is None
