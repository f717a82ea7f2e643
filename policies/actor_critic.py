"""The actor-critic that Stable-Baselines3 trains, and its face for whole stretches of tape."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from perpgym.data.features.scaler import Scaler
from perpgym.data.tape import Tape
from perpgym.policies.action_heads import ActionHeads, make_action_heads
from perpgym.policies.config import PolicyConfig
from perpgym.policies.features import PerpFeatures
from perpgym.policies.first_actions import follow_forecasts
from perpgym.policies.forecast import WithForecasts
from perpgym.policies.popart import PopArtLinear


class Evaluation(NamedTuple):
    """Values (...,) and log-probabilities (...,) of given actions; entropy (), the mean over all states."""

    values: torch.Tensor
    log_prob: torch.Tensor
    entropy: torch.Tensor


class PerpActorCriticPolicy(ActorCriticPolicy):
    """Scaled market and risk encoders, gated fusion with the account, a distribution over actions.

    A whole SB3 policy (``predict``, ``forward``, ``evaluate_actions``, ``predict_values``) for index and for
    window observations; see :class:`perpgym.policies.features.PerpFeatures` for the two faces. Beside it, the
    calls of encode-once training: ``stretch_context`` once a bar, the others once an account.

    Args:
        observation_space: of ``PerpVecEnv``, with or without windows.
        action_space: Box in [-1, 1]: a Gaussian, whose samples the env clips, as SB3's PPO does. Discrete or
            MultiDiscrete: a categorical for each number, with masks.
        lr_schedule: of the optimiser.
        config: the network's shape.
        market_scaler, risk_scaler: fitted on the training period; they become frozen buffers.
        use_sde: refused.
        optimizer_kwargs: of Adam; fused by default.
    """

    features_extractor: PerpFeatures

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        market_scaler: Scaler,
        risk_scaler: Scaler,
        config: PolicyConfig | None = None,
        use_sde: bool = False,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if use_sde:
            raise ValueError("state-dependent exploration is not supported: leave use_sde=False")
        self.config = config or PolicyConfig()
        self.scalers = {"market_scaler": market_scaler, "risk_scaler": risk_scaler}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": list(self.config.policy_hidden), "vf": list(self.config.value_hidden)},
            activation_fn=nn.SiLU,
            log_std_init=self.config.log_std_init,
            features_extractor_class=PerpFeatures,
            features_extractor_kwargs={"config": self.config, **self.scalers},
            optimizer_kwargs={"eps": 1e-5, "fused": True} if optimizer_kwargs is None else optimizer_kwargs,
        )
        # SB3 registers the extractor under two more names; one set of weights needs one name on disk
        del self.pi_features_extractor, self.vf_features_extractor
        self.features_extractor.reset_parameters()
        assert isinstance(self.action_net, nn.Linear)
        follow_forecasts(
            self.action_net, action_space, self.features_extractor.n_assets, self.n_forecasts, self.config
        )
        self._action_heads: ActionHeads | None = None
        self._heads_device = self.device

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        assert isinstance(self.value_net, nn.Linear)
        self.value_net = PopArtLinear(self.value_net)

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        if self.n_forecasts:
            self.mlp_extractor.policy_net = WithForecasts(self.mlp_extractor.policy_net, self.n_forecasts)  # type: ignore[assignment]
            self.mlp_extractor.latent_dim_pi += self.n_forecasts

    @property
    def n_forecasts(self) -> int:
        """A * H, the last columns of the features."""
        return self.features_extractor.n_forecasts

    @property
    def receptive_field(self) -> int:
        """R, bars."""
        return self.config.receptive_field

    def bind(self, tape: Tape) -> None:
        """Let the bar indices of observations refer to ``tape``."""
        self.features_extractor.bind(tape)

    # --- the face of SB3 ---

    def extract_features(self, obs: PyTorchObs, features_extractor: nn.Module | None = None) -> torch.Tensor:
        """Features of an observation; SB3's preprocessing would turn the bar index into a float."""
        del features_extractor
        features: torch.Tensor = self.features_extractor(obs)
        return features

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The distribution of actions."""
        latent = self.mlp_extractor.forward_actor(self.extract_features(obs))
        return self._get_action_dist_from_latent(latent)

    def predict_values(self, obs: PyTorchObs) -> torch.Tensor:
        """(N, 1) values."""
        values: torch.Tensor = self.value_net(self.mlp_extractor.forward_critic(self.extract_features(obs)))
        return values

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "config": self.config,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self.scalers,
        }

    def own_settings(self) -> dict[str, Any]:
        """Plain arguments of the constructor beside the network's shape: none."""
        return {}

    # --- the face of encode-once training ---

    def stretch_context(self, first_bar: torch.Tensor, n_bars: int) -> torch.Tensor:
        """(S, n_bars, C) contexts of consecutive bars; see :meth:`PerpFeatures.stretch_context`."""
        return self.features_extractor.stretch_context(first_bar, n_bars)

    @property
    def value_head(self) -> PopArtLinear:
        """The last layer of the values, which PopArt rescales."""
        assert isinstance(self.value_net, PopArtLinear)
        return self.value_net

    @property
    def has_own_encoders(self) -> bool:
        """Whether the policy's own loss moves its encoders; where they forecast, that loss alone does."""
        return self.features_extractor.forecast is None

    def tokens(self, n_bars: int) -> int:
        """What ``n_bars`` consecutive contexts cost; see :meth:`PerpFeatures.tokens`."""
        return self.features_extractor.tokens(n_bars)

    @property
    def action_heads(self) -> ActionHeads:
        """The distribution whose parameters are the last layer's."""
        if self._action_heads is None or self._heads_device != self.device:
            log_std = getattr(self, "log_std", None)
            self._action_heads = make_action_heads(self.action_space, log_std, self.device)
            self._heads_device = self.device
        return self._action_heads

    def action_parameters(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Means of a Gaussian's actions, logits of choices.

        Args:
            context: (..., C); leading axes broadcast with those of ``state``.
            state: (..., S) raw account columns, then portfolio columns.

        Returns:
            (..., n_parameters).
        """
        return self._parameters_of(self._fuse(context, state))

    def decide(
        self, context: torch.Tensor, state: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Deterministic actions, (..., action_dim): see :class:`perpgym.policies.deciding.Policy`."""
        return self.action_heads.mode(self.action_parameters(context, state), mask)

    def answers(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """What decides, and is continuous: means within the action space, logits of choices."""
        parameters = self.action_parameters(context, state)
        return parameters if self.action_heads.n_masked else self.action_heads.mode(parameters)

    def state_values(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(...,) values; arguments as in :meth:`action_parameters`."""
        return self._value(self._fuse(context, state))

    def evaluate_states(
        self,
        context: torch.Tensor,
        state: torch.Tensor,
        actions: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> Evaluation:
        """What the PPO loss needs of (..., action_dim) actions; arguments as in :meth:`action_parameters`."""
        features = self._fuse(context, state)
        parameters, heads = self._parameters_of(features), self.action_heads
        log_prob = heads.log_prob(parameters, actions, mask)
        return Evaluation(self._value(features), log_prob, heads.entropy(parameters, mask))

    def _fuse(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return self.features_extractor.fuse(self.features_extractor.split(context), state)

    def _parameters_of(self, features: torch.Tensor) -> torch.Tensor:
        parameters: torch.Tensor = self.action_net(self.mlp_extractor.policy_net(features))
        return parameters

    def _value(self, features: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.value_net(self.mlp_extractor.value_net(features))
        return value.squeeze(-1)
