"""Gated fusion: how much of each feature comes from the market and how much from the account."""

from __future__ import annotations

import torch
from torch import nn


class GatedFusion(nn.Module):
    """z = g * W_m m + (1 - g) * W_s s with g = sigmoid(G_m m + G_s s).

    m is what the encoders say of a bar, s the state of one account. Everything that depends on m alone is the
    bar's *context*, computed once a bar and shared by all its accounts; what remains per account is one small
    matrix product.
    """

    def __init__(self, *, market_features: int, state_features: int, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        self.market = nn.Linear(market_features, 2 * out_features)
        self.state = nn.Linear(state_features, 2 * out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal weights, biases zero: the gate starts half open."""
        for layer in (self.market, self.state):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def context(self, market: torch.Tensor) -> torch.Tensor:
        """The share of the bar, its value and its gate: (..., M) -> (..., 2D)."""
        context: torch.Tensor = self.market(market)
        return context

    def forward(self, value: torch.Tensor, gate: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Fuse; leading axes broadcast.

        Args:
            value, gate: (..., D), the halves of :meth:`context`.
            state: (..., S), scaled account state.

        Returns:
            (..., D).
        """
        state_value, state_gate = self.state(state).chunk(2, dim=-1)  # ... D
        return torch.lerp(state_value, value, torch.sigmoid(gate + state_gate))
