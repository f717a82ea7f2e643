"""The policy of QR-DQN: a quantile critic, its target, and which level is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from perpgym.data.features.scaler import Scaler
from perpgym.data.tape import Tape
from perpgym.policies.config import PolicyConfig
from perpgym.policies.features import PerpFeatures
from perpgym.policies.quantile_net import PerpQuantileNet


class PerpQuantilePolicy(BasePolicy):
    """What QR-DQN trains, ours or sb3-contrib's: ``quantile_net``, its target, and the choice of a level.

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
        optimizer_class, optimizer_kwargs: Adam, fused, by default.

    Raises:
        ValueError: the actions are no ladder's, or alpha is no share.
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
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        kwargs = {"eps": 1e-5, "fused": True} if optimizer_kwargs is None else optimizer_kwargs
        super().__init__(
            observation_space, action_space, optimizer_class=optimizer_class, optimizer_kwargs=kwargs
        )
        self.config = config or PolicyConfig()
        self.scalers = {"market_scaler": market_scaler, "risk_scaler": risk_scaler}
        self.n_branches, self.n_levels = ladder_shape(action_space)
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"alpha must lie in (0, 1], a share of the worst outcomes, was {alpha}")
        self.n_quantiles, self.alpha = n_quantiles, alpha
        self.quantile_net = self._make_net()
        self.quantile_net_target = self._make_net()
        self.quantile_net_target.load_state_dict(self.quantile_net.state_dict())
        self.quantile_net_target.requires_grad_(False).eval()
        self.optimizer: torch.optim.Optimizer = self.optimizer_class(
            self.quantile_net.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
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

    def worth(
        self, context: torch.Tensor, state: torch.Tensor, alpha: torch.Tensor | None = None
    ) -> torch.Tensor:
        """CVaR of every level's return.

        Args:
            context, state: as in ``PerpQuantileNet.quantiles``.
            alpha: (...,) of each decision, a risk budget; None for the policy's own.

        Returns:
            (..., A, L).
        """
        return self.cvar(self.quantile_net.quantiles(context, state), alpha)

    def level_worth(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., A, L) what the levels of the env's ladder are worth to whoever picks one of them."""
        return self.worth(context, state)

    def cvar(self, quantiles: torch.Tensor, alpha: torch.Tensor | None = None) -> torch.Tensor:
        """(..., A, L, N) quantiles -> (..., A, L); ``alpha`` as in :meth:`worth`."""
        if alpha is None:
            return quantiles @ self.tail
        weights = cvar_weights(alpha, self.n_quantiles)[..., None, None, :]  # ... 1 1 N
        return (quantiles * weights).sum(dim=-1)

    def decide(
        self,
        context: torch.Tensor,
        state: torch.Tensor,
        mask: torch.Tensor | None = None,
        alpha: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(..., A) float32: of the allowed levels of each contract's ladder the one that is worth most.

        Args:
            context, state, alpha: as in :meth:`worth`.
            mask: (..., A * L) bool; None allows all.
        """
        return best_allowed(self.worth(context, state, alpha), self._by_contract(mask)).float()

    def answers(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., A * L) what each level is worth less than the best, in deviations of the return."""
        worth = self.worth(context, state)
        behind: torch.Tensor = (worth - worth.amax(dim=-1, keepdim=True)) / self.quantile_net.deviation
        return behind.flatten(-2)

    def own_settings(self) -> dict[str, Any]:
        """Plain arguments of the constructor beside the network's shape."""
        return {"n_quantiles": self.n_quantiles, "alpha": self.alpha}

    def _by_contract(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        return None if mask is None else mask.reshape(*mask.shape[:-1], self.n_branches, self.n_levels)

    # --- the face of SB3 ---

    def forward(self, obs: PyTorchObs, deterministic: bool = True) -> torch.Tensor:
        """(B,) or (B, A) levels."""
        return self._predict(obs, deterministic)

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = True, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        del deterministic
        quantiles = self.quantile_net(observation).transpose(1, 2)  # B A*L N
        worth = (quantiles @ self.tail).unflatten(1, (self.n_branches, self.n_levels))  # B A L
        levels = best_allowed(worth, self._by_contract(mask))
        return levels[:, 0] if isinstance(self.action_space, spaces.Discrete) else levels

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """SB3's ``predict``, with the masks of sb3-contrib's MaskablePPO: (B, A * L) or (A * L,) bool."""
        del episode_start, deterministic
        self.set_training_mode(False)
        tensors, is_batch = self.obs_to_tensor(observation)
        mask = None
        if action_masks is not None:
            mask = torch.as_tensor(action_masks, device=self.device).reshape(
                -1, self.n_branches * self.n_levels
            )
        with torch.no_grad():
            levels: NDArray[Any] = self._predict(tensors, mask=mask).cpu().numpy()
        return (levels if is_batch else levels.squeeze(axis=0)), state

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
            **self.own_settings(),
            "optimizer_class": self.optimizer_class,
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


def cvar_weights(alpha: float | torch.Tensor, n_quantiles: int) -> torch.Tensor:
    """Weights of the quantiles in the mean of the worst share ``alpha``, summing to 1.

    The quantile in which the share ends weighs its part of it. Source: Rockafellar & Uryasev 2000 for CVaR;
    the estimate from quantiles is that of Dabney et al. 2018, *Implicit quantile networks*, sec. 3.

    Args:
        alpha: (...,) in (0, 1].
        n_quantiles: N, of equal probability, the lowest first.

    Returns:
        (..., N).
    """
    share = torch.as_tensor(alpha, dtype=torch.float32).unsqueeze(-1) * n_quantiles  # ... 1
    return (share - torch.arange(n_quantiles, device=share.device)).clamp(0.0, 1.0) / share


def of_levels(quantiles: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """(..., A, L, N) quantiles and (..., A) int64 levels -> (..., A, N), those of the levels."""
    index = levels[..., None, None].expand(*levels.shape, 1, quantiles.shape[-1])
    return quantiles.gather(-2, index).squeeze(-2)


def best_allowed(worth: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(..., L) worth and (..., L) bool, whether a level is allowed -> (...,) int64, the best of those."""
    if mask is not None:
        worth = worth.masked_fill(~mask, -torch.inf)
    return worth.argmax(dim=-1)
