"""A value head whose targets keep one size while its answers stay in the unit of the reward."""

from __future__ import annotations

import torch
from torch import nn

# what a rollout's targets weigh in the running moments once there have been 1 / _RATE rollouts
_RATE = 0.1
_LEAST_DEVIATION = 1e-4


class PopArtLinear(nn.Linear):
    """sigma * (W h + b) + mu, output by output (van Hasselt et al. 2016, arXiv:1602.07714).

    ``rescale`` moves mu and sigma to the targets' moments and W and b against them, so that no answer changes
    (their eqs. 8 and 9). Until then mu = 0 and sigma = 1, and this is a plain linear layer.

    Args:
        linear: whose weights it takes over; they are then those of the normalised answer.

    Attributes:
        mean, deviation: (out,) float32, mu and sigma, in the unit of the targets.
        count: () int64, how often the moments have moved.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    count: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # the same parameters: an optimiser that holds them goes on holding them
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mean", torch.zeros(linear.out_features))
        self.register_buffer("deviation", torch.ones(linear.out_features))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the unit of the targets."""
        return torch.addcmul(self.mean, super().forward(latent), self.deviation)

    @torch.no_grad()
    def rescale(self, targets: torch.Tensor) -> None:
        """Move the moments towards those of targets, and the weights so that every output stays.

        Args:
            targets: (n, out).
        """
        self.count += 1
        # the first rollouts count alike, so that nothing of the arbitrary start is left
        rate = torch.clamp(1.0 / self.count.double(), min=_RATE)
        targets, mean, deviation = targets.double(), self.mean.double(), self.deviation.double()
        new_mean = mean + rate * (targets.mean(dim=0) - mean)
        square = deviation.square() + mean.square()
        new_square = torch.lerp(square, targets.square().mean(dim=0), rate)
        new_deviation = (new_square - new_mean.square()).clamp(min=_LEAST_DEVIATION**2).sqrt()
        self.weight.mul_((deviation / new_deviation).unsqueeze(1))
        self.bias.copy_((deviation * self.bias + mean - new_mean) / new_deviation)
        self.mean.copy_(new_mean)
        self.deviation.copy_(new_deviation)
