"""A multilayer perceptron over the newest bar alone: the encoder without memory."""

from __future__ import annotations

import torch
from torch import nn

from perpgym.policies.encoders.protocol import count_outputs


class LastBar(nn.Module):
    """n linear layers with SiLU between them. R = 1: what it knows of the past stands in the features."""

    receptive_field = 1

    def __init__(self, *, in_features: int, d_model: int, n_layers: int) -> None:
        super().__init__()
        self.out_features = d_model
        layers: list[nn.Module] = [nn.Linear(in_features, d_model)]
        for _ in range(n_layers - 1):
            layers += [nn.SiLU(), nn.Linear(d_model, d_model)]
        self.layers = nn.Sequential(*layers)
        self.reset_parameters()

    def tokens(self, n_bars: int) -> int:
        """Bars read for ``n_bars`` embeddings."""
        return n_bars

    def reset_parameters(self) -> None:
        """Orthogonal weights, biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)

    def encode(self, stretch: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        """(B, L, F) -> (B, L, D), each bar for itself; ``first_bar`` is ignored."""
        del first_bar
        count_outputs(stretch, self.receptive_field)
        embedding: torch.Tensor = self.layers(stretch)  # B L D
        return embedding
