"""Forecasts of the market's own return from its embedding, and how they reach the actions."""

from __future__ import annotations

import torch
from torch import nn

# a forecast that explains 1 % of its target's variance, which is a good one, reaches the heads at size one
_GAIN = 10.0
_CLIP = 5.0


class ForecastHead(nn.Module):
    """Linear forecasts of the scaled return over the next h bars, one for each horizon; zero before training.

    The policy's heads read them as plain inputs, so that reinforcement learning has only to find what to do
    with a forecast, a map of few dimensions. They never pull at it (``for_heads`` detaches): the forecast
    belongs to its own loss, an auxiliary task (Jaderberg et al. 2017) with a target for every bar and no
    exploration noise.
    """

    def __init__(self, in_features: int, horizons: tuple[int, ...]) -> None:
        super().__init__()
        self.horizons = horizons
        self.linear = nn.Linear(in_features, len(horizons))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No forecast."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """(..., M) -> (..., H), in deviations of the return over each horizon."""
        forecast: torch.Tensor = self.linear(embedding)
        return forecast

    @staticmethod
    def for_heads(forecast: torch.Tensor, detach: bool = True) -> torch.Tensor:
        """(..., H) -> the same, at the size of the other features; without gradient, unless one explains."""
        return ((forecast.detach() if detach else forecast) * _GAIN).clamp(-_CLIP, _CLIP)


class WithForecasts(nn.Module):
    """A head's hidden layers, and beside their output the forecasts: (..., D + H) -> (..., L + H).

    The layer after it can so answer a forecast in proportion from the start, and what the hidden layers learn
    is a correction to that (residual policy learning: Silver et al. 2018).
    """

    def __init__(self, hidden: nn.Module, n_forecasts: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.n_forecasts = n_forecasts

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Latents, then forecasts."""
        return torch.cat((self.hidden(features), features[..., -self.n_forecasts :]), dim=-1)
