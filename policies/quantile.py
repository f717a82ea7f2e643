"""Quantile critic over the exposure ladder: dueling heads on the same encoders, its two networks, CVaR."""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from perpgym.data.features.scaler import Scaler
from perpgym.data.tape import Tape
from perpgym.policies.config import PolicyConfig
from perpgym.policies.features import PerpFeatures


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
    """

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
        self.value = _head(width, config.value_hidden, n_quantiles)
        self.advantage = _head(width, config.policy_hidden, n_branches * n_levels * n_quantiles)
        self.apply(_orthogonal)
        self.features_extractor.reset_parameters()

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
        shape = (self.n_branches, self.n_levels, self.n_quantiles)
        advantage = self.advantage(features).unflatten(-1, shape)  # ... A L N
        value = self.value(features)[..., None, None, :]  # ... 1 1 N
        quantiles: torch.Tensor = value + advantage - advantage.mean(dim=-2, keepdim=True)
        return quantiles

    def forward(self, observation: PyTorchObs) -> torch.Tensor:
        """(B, N, A * L), as sb3-contrib's quantile networks return them."""
        quantiles = self._from_features(self.features_extractor(observation))  # B A L N
        return quantiles.flatten(1, 2).transpose(1, 2)


class PerpQuantilePolicy(BasePolicy):
    """What sb3-contrib's QR-DQN trains: ``quantile_net``, its target, and the choice of a level.

    A level is chosen by the mean of its worst share ``alpha`` of quantiles, CVaR_alpha of the return to come;
    1 is the mean. Chosen anew at every step it is a risk-averse selection and no time-consistent objective:
    ``docs/algorithms/qrdqn.md``.

    Args:
        observation_space: of ``PerpVecEnv``, with or without windows.
        action_space: Discrete for one contract's ladder, MultiDiscrete for several.
        lr_schedule: of the optimiser.
        config: the network's shape.
        n_quantiles: N.
        alpha: share of the worst quantiles by which a level is chosen, in (0, 1].
        market_scaler, risk_scaler: fitted on the training period.
        optimizer_kwargs: of Adam; fused by default.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        market_scaler: Scaler,
        risk_scaler: Scaler,
        config: PolicyConfig | None = None,
        n_quantiles: int = 32,
        alpha: float = 1.0,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        kwargs = {"eps": 1e-5, "fused": True} if optimizer_kwargs is None else optimizer_kwargs
        super().__init__(observation_space, action_space, optimizer_kwargs=kwargs)
        self.config = config or PolicyConfig()
        self.scalers = {"market_scaler": market_scaler, "risk_scaler": risk_scaler}
        self.n_branches, self.n_levels = ladder_shape(action_space)
        self.n_quantiles, self.alpha = n_quantiles, alpha
        self.quantile_net = self._make_net()
        self.quantile_net_target = self._make_net()
        self.quantile_net_target.load_state_dict(self.quantile_net.state_dict())
        self.quantile_net_target.requires_grad_(False).eval()
        self.optimizer = torch.optim.Adam(
            self.quantile_net.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )
        self.register_buffer("tail", cvar_weights(alpha, n_quantiles), persistent=False)

    tail: torch.Tensor

    def _make_net(self) -> PerpQuantileNet:
        assert isinstance(self.observation_space, spaces.Dict)
        return PerpQuantileNet(
            self.observation_space,
            self.config,
            self.n_branches,
            self.n_levels,
            self.n_quantiles,
            **self.scalers,
        ).to(self.device)

    @property  # type: ignore[override]
    def features_extractor(self) -> PerpFeatures:
        """Of the network that acts."""
        return self.quantile_net.features_extractor

    @features_extractor.setter
    def features_extractor(self, value: Any) -> None:
        # SB3's base class sets its own to None; the networks own theirs
        del value

    @property
    def receptive_field(self) -> int:
        """R, bars."""
        return self.config.receptive_field

    def bind(self, tape: Tape) -> None:
        """Let the bar indices of observations refer to ``tape``, in both networks."""
        for net in (self.quantile_net, self.quantile_net_target):
            net.features_extractor.bind(tape)

    def stretch_context(self, first_bar: torch.Tensor, n_bars: int) -> torch.Tensor:
        """(S, n_bars, C) contexts of consecutive bars; see :meth:`PerpFeatures.stretch_context`."""
        return self.features_extractor.stretch_context(first_bar, n_bars)

    def tokens(self, n_bars: int) -> int:
        """What ``n_bars`` consecutive contexts cost; see :meth:`PerpFeatures.tokens`."""
        return self.features_extractor.tokens(n_bars)

    def worth(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., A, L): CVaR_alpha of every level's return; arguments as in ``PerpQuantileNet.quantiles``."""
        return self.quantile_net.quantiles(context, state) @ self.tail

    def decide(
        self, context: torch.Tensor, state: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(..., A) float32: the level of each contract's ladder that is worth most, deterministic."""
        return self.worth(context, state).argmax(dim=-1).float()

    # --- the face of SB3 ---

    def forward(self, obs: PyTorchObs, deterministic: bool = True) -> torch.Tensor:
        """(B,) or (B, A) levels."""
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> torch.Tensor:
        del deterministic
        quantiles = self.quantile_net(observation).transpose(1, 2)  # B A*L N
        worth = (quantiles @ self.tail).unflatten(1, (self.n_branches, self.n_levels))  # B A L
        levels: torch.Tensor = worth.argmax(dim=-1)
        return levels[:, 0] if isinstance(self.action_space, spaces.Discrete) else levels

    def set_training_mode(self, mode: bool) -> None:
        """Of the network that is trained; the target never is."""
        self.quantile_net.train(mode)
        self.training = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "config": self.config,
            "n_quantiles": self.n_quantiles,
            "alpha": self.alpha,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self.scalers,
        }


def ladder_shape(action_space: spaces.Space[Any]) -> tuple[int, int]:
    """A contracts and L levels of a ladder's space.

    Raises:
        ValueError: it is no ladder's.
    """
    if isinstance(action_space, spaces.Discrete):
        return 1, int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete) and len(set(action_space.nvec.tolist())) == 1:
        return len(action_space.nvec), int(action_space.nvec[0])
    raise ValueError(
        f"QR-DQN chooses a level of each contract's ladder, this action space is {action_space}: "
        "set action=ladder in the env's config"
    )


def cvar_weights(alpha: float, n_quantiles: int) -> torch.Tensor:
    """(N,) weights of the quantiles in the mean of the worst share ``alpha``, summing to 1.

    The quantile in which the share ends weighs its part of it. Source: Rockafellar & Uryasev 2000 for CVaR;
    the estimate from quantiles is that of Dabney et al. 2018, *Implicit quantile networks*, sec. 3.

    Raises:
        ValueError: alpha is outside (0, 1].
    """
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha must lie in (0, 1], a share of the worst outcomes, was {alpha}")
    share = alpha * n_quantiles
    return (share - torch.arange(n_quantiles)).clamp(0.0, 1.0) / share


def _head(width: int, hidden: tuple[int, ...], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.SiLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, out))


def _orthogonal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight, gain=math.sqrt(2.0))
        nn.init.zeros_(module.bias)
