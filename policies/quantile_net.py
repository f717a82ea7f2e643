"""Quantile critic over the exposure ladder: dueling heads on the encoders that every policy has."""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from perpgym.data.features.scaler import Scaler
from perpgym.policies.config import PolicyConfig
from perpgym.policies.features import PerpFeatures
from perpgym.policies.popart import moved_moments

# what a batch's targets weigh in the running moments once there have been 1 / _RATE batches
_RATE = 0.003


class PerpQuantileNet(nn.Module):
    """Quantiles of the return of every level of every contract's ladder.

    Dueling (Wang et al. 2016): Q = V + A - mean of A over the levels, quantile by quantile. With several
    contracts each has advantages of its own beside one value (branches: Tavakoli et al. 2018).

    Args:
        observation_space: with or without windows.
        config: the network's shape; ``value_hidden`` is of V, ``policy_hidden`` of the advantages.
        n_branches: A, contracts.
        n_levels: L.
        n_quantiles: N.
        market_scaler, risk_scaler: become frozen buffers.

    Attributes:
        mean, deviation: () float32, PopArt's (van Hasselt et al. 2016): of returns, in the unit of the
            reward; 0 and 1 until :meth:`rescale` moves them.
        count: () int64, how often they have moved.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    count: torch.Tensor

    def __init__(
        self,
        observation_space: spaces.Dict,
        config: PolicyConfig,
        n_branches: int,
        n_levels: int,
        n_quantiles: int,
        market_scaler: Scaler,
        risk_scaler: Scaler,
    ) -> None:
        super().__init__()
        self.n_branches, self.n_levels, self.n_quantiles = n_branches, n_levels, n_quantiles
        self.features_extractor = PerpFeatures(observation_space, config, market_scaler, risk_scaler)
        width = self.features_extractor.features_dim
        self.value, self.advantage = dueling_heads(
            width, config, n_quantiles, n_branches * n_levels * n_quantiles
        )
        self.apply(orthogonal)
        self.features_extractor.reset_parameters()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def quantiles(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Quantiles at the midpoints (i + 1/2) / N, in the order of i.

        Args:
            context: (..., C); leading axes broadcast with those of ``state``.
            state: (..., S) raw account columns, then portfolio columns.

        Returns:
            (..., A, L, N).
        """
        features = self.features_extractor
        return self._from_features(features.fuse(features.split(context), state))

    def _from_features(self, features: torch.Tensor) -> torch.Tensor:
        return self._duel(self.value, self.advantage, features)

    def _duel(self, value_head: nn.Sequential, heads: nn.Sequential, features: torch.Tensor) -> torch.Tensor:
        """(..., A, L, N) of one pair of heads."""
        advantage = heads(features).unflatten(-1, (self.n_branches, -1, self.n_quantiles))  # ... A L N
        value = value_head(features)[..., None, None, :]  # ... 1 1 N
        normalised = value + advantage - advantage.mean(dim=-2, keepdim=True)
        return torch.addcmul(self.mean, normalised, self.deviation)

    @torch.no_grad()
    def rescale(self, targets: torch.Tensor) -> None:
        """Move the moments towards those of targets, (n,), and the last layers so that no quantile does."""
        self.count += 1
        mean, deviation = moved_moments(self.mean, self.deviation, targets, self.count, _RATE)
        shrink = (self.deviation / deviation).float()
        for value, advantage in self._pairs():
            for head in (value, advantage):
                last = head[-1]
                assert isinstance(last, nn.Linear)
                last.weight.mul_(shrink)
                last.bias.mul_(shrink)
            # advantages are differences: the mean is the value's alone
            last = value[-1]
            assert isinstance(last, nn.Linear)
            last.bias.add_((self.mean - mean) / deviation)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def _pairs(self) -> list[tuple[nn.Sequential, nn.Sequential]]:
        """The heads that answer in these moments: of values, and of the advantages beside them."""
        return [(self.value, self.advantage)]

    def forward(self, observation: PyTorchObs) -> torch.Tensor:
        """(B, N, A * L), as sb3-contrib's quantile networks return them."""
        quantiles = self._from_features(self.features_extractor(observation))  # B A L N
        return quantiles.flatten(1, 2).transpose(1, 2)


def dueling_heads(
    width: int, config: PolicyConfig, n_values: int, n_advantages: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """Heads of a value and of advantages on ``width`` features."""
    value = _head(width, config.value_hidden, n_values)
    return value, _head(width, config.policy_hidden, n_advantages)


def _head(width: int, hidden: tuple[int, ...], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.SiLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, out))


def orthogonal(module: nn.Module) -> None:
    """What heads begin with, for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight, gain=math.sqrt(2.0))
        nn.init.zeros_(module.bias)
