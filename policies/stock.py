"""The libraries' own policies on our features: their heads, their distributions, and what those decide."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentMultiInputActorCriticPolicy
from sb3_contrib.tqc.policies import MultiInputPolicy as TQCMultiInputPolicy
from stable_baselines3.common.policies import BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.sac.policies import MultiInputPolicy as SACMultiInputPolicy
from torch import nn

from perpgym.data.features.scaler import Scaler
from perpgym.data.tape import Tape
from perpgym.policies.action_heads import ActionHeads, make_action_heads
from perpgym.policies.config import PolicyConfig
from perpgym.policies.features import PerpFeatures
from perpgym.policies.first_actions import trade_seldom

# SB3 hands every observation to the network as float32, which counts up to here without a gap
MAX_EXACT_BARS = 2**24


class StockPolicy(BasePolicy):
    """Stands before one of the libraries' policies, which stays as it is.

    Features, widths, activations and the first actions are those of :class:`PerpActorCriticPolicy`, so that a
    comparison is about the algorithm. What is added is what a backtest asks of any policy
    (:class:`perpgym.policies.deciding.Policy`), answered by the library's own layers.

    Args:
        observation_space, action_space, lr_schedule: as SB3 gives them.
        config: the network's shape.
        market_scaler, risk_scaler: fitted on the training period; they become frozen buffers.
        library: of the library's policy.

    Raises:
        ValueError: the config asks for forecasts, which these algorithms have no loss for.
    """

    # what the library calls the critic's part of net_arch
    _critic = "vf"
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
        **library: Any,
    ) -> None:
        self.config = config or PolicyConfig()
        self.scalers = {"market_scaler": market_scaler, "risk_scaler": risk_scaler}
        if self.config.forecast_bars:
            raise ValueError(
                f"forecast_bars must be empty, was {list(self.config.forecast_bars)}: encoders that forecast "
                "learn from that alone, and the libraries' algorithms have no loss for it; set "
                "policy.forecast_bars=[]"
            )
        cast(Any, super()).__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": list(self.config.policy_hidden), self._critic: list(self.config.value_hidden)},
            activation_fn=nn.SiLU,
            features_extractor_class=PerpFeatures,
            features_extractor_kwargs={"config": self.config, **self.scalers},
            **library,
        )

    @property
    def receptive_field(self) -> int:
        """R, bars."""
        return self.config.receptive_field

    @property
    def encoders(self) -> list[PerpFeatures]:
        """Every feature extractor: one, or one for each network."""
        return [module for module in self.modules() if isinstance(module, PerpFeatures)]

    def bind(self, tape: Tape) -> None:
        """Let the bar indices of observations refer to ``tape``.

        Raises:
            ValueError: the tape has other columns, or more bars than SB3 can tell apart.
        """
        check_exact(len(tape))
        for encoder in self.encoders:
            encoder.bind(tape)

    def decide(
        self, context: torch.Tensor, state: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See :class:`perpgym.policies.deciding.Policy`."""
        raise NotImplementedError

    def answers(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """See :class:`perpgym.policies.deciding.Policy`."""
        raise NotImplementedError

    def own_settings(self) -> dict[str, Any]:
        """Plain arguments of the constructor beside the network's shape."""
        return {}

    def _features(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., F) what the actor's head reads."""
        return self.features_extractor.fuse(self.features_extractor.split(context), state)

    def _first_band(self, layer: nn.Linear, width: float) -> None:
        """Start to trade as seldom as :class:`PerpActorCriticPolicy` does."""
        trade_seldom(layer, self.action_space, self.encoders[0].n_assets, width, self.config.hold_init)


class StockActorCritic(StockPolicy):
    """What SB3's policies for A2C and PPO have in common: one extractor, an actor's head, a critic's."""

    reads_masks = False
    action_net: nn.Linear
    mlp_extractor: Any
    # the one extractor, as SB3 calls it
    pi_features_extractor: Any = property(lambda self: self.features_extractor)
    vf_features_extractor: Any = property(lambda self: self.features_extractor)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # SB3 has registered the extractor under these names too; one set of weights needs one name on disk
        del self.pi_features_extractor, self.vf_features_extractor
        # SB3 has applied its one gain to every linear layer of it
        for encoder in self.encoders:
            encoder.reset_parameters()
        self._first_band(self.action_net, self.config.band_width_init)

    def decide(
        self, context: torch.Tensor, state: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The mode of the library's distribution; see :class:`perpgym.policies.deciding.Policy`.

        Masks are for an algorithm that has learnt with them; the others never saw one.
        """
        heads = self._heads()
        return heads.mode(self._parameters_of(context, state), mask if self.reads_masks else None)

    def answers(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Means within the action space, or logits of choices."""
        heads, parameters = self._heads(), self._parameters_of(context, state)
        return parameters if heads.n_masked else heads.mode(parameters)

    def _parameters_of(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., n) the last layer's answers."""
        return self._head(self._features(context, state))

    def _head(self, latent: torch.Tensor) -> torch.Tensor:
        parameters: torch.Tensor = self.action_net(self.mlp_extractor.forward_actor(latent))
        return parameters

    def _heads(self) -> ActionHeads:
        return make_action_heads(self.action_space, getattr(self, "log_std", None), self.device)


class StockA2CPolicy(StockActorCritic, MultiInputActorCriticPolicy):  # type: ignore[misc]
    """SB3's policy of A2C, with the exploration that ``log_std_init`` says."""

    def __init__(
        self, *args: Any, config: PolicyConfig | None = None, use_sde: bool = False, **kwargs: Any
    ) -> None:
        config = config or PolicyConfig()
        super().__init__(*args, config=config, log_std_init=config.log_std_init, use_sde=use_sde, **kwargs)


class StockMaskablePolicy(StockActorCritic, MaskableMultiInputActorCriticPolicy):  # type: ignore[misc]
    """sb3-contrib's policy of MaskablePPO."""

    reads_masks = True


class StockRecurrentPolicy(StockActorCritic, RecurrentMultiInputActorCriticPolicy):  # type: ignore[misc]
    """sb3-contrib's policy of RecurrentPPO: an LSTM between the features and each head.

    What it remembers of an account (:class:`perpgym.policies.deciding.Remembering`) is the actor's hidden and
    cell state, layer by layer.
    """

    lstm_actor: nn.LSTM

    def __init__(
        self, *args: Any, config: PolicyConfig | None = None, use_sde: bool = False, **kwargs: Any
    ) -> None:
        config = config or PolicyConfig()
        super().__init__(*args, config=config, log_std_init=config.log_std_init, use_sde=use_sde, **kwargs)

    def own_settings(self) -> dict[str, Any]:
        """Size of the LSTM."""
        return {
            "lstm_hidden_size": self.lstm_actor.hidden_size,
            "n_lstm_layers": self.lstm_actor.num_layers,
        }

    @property
    def memory_size(self) -> int:
        """Z, numbers of hidden and cell state."""
        return 2 * self.lstm_actor.num_layers * self.lstm_actor.hidden_size

    def remember(self, context: torch.Tensor, state: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """(..., Z) the LSTM's state after this bar; ``state`` (..., S), ``memory`` (..., Z) of before."""
        features = self._features(context, state)  # ... F
        lead = features.shape[:-1]
        before = self._by_layer(memory.expand(*lead, -1).reshape(-1, self.memory_size))  # N 2 L H
        hidden, cell = before.permute(1, 2, 0, 3).contiguous()  # L N H
        _, after = self.lstm_actor(features.reshape(1, -1, features.shape[-1]), (hidden, cell))
        return torch.stack(after).permute(2, 0, 1, 3).reshape(*lead, -1)  # ... Z

    def forget(self, memory: torch.Tensor, bars: int = 1) -> torch.Tensor:
        """Everything is kept from bar to bar, nothing over bars that the LSTM did not read."""
        return memory if bars == 1 else torch.zeros_like(memory)

    def _by_layer(self, memory: torch.Tensor) -> torch.Tensor:
        lstm = self.lstm_actor
        return memory.reshape(*memory.shape[:-1], 2, lstm.num_layers, lstm.hidden_size)  # ... 2 L H

    def _parameters_of(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The last layer's answers; without a memory behind ``state``, those of the first bar."""
        n_columns = len(self.features_extractor.inverse_divisors)
        memory = state[..., n_columns:]
        if not memory.shape[-1]:
            memory = self.remember(context, state, state.new_zeros(self.memory_size))
        return self._head(self._by_layer(memory)[..., 0, -1, :])


class StockSquashed(StockPolicy):
    """What the policies of SAC and TQC have in common: an actor's squashed Gaussian, an extractor each."""

    _critic = "qf"
    actor: Any
    critic: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width = min(max(self.config.band_width_init, -0.99), 0.99)
        self._first_band(self.actor.mu, math.atanh(width))

    @property  # type: ignore[override]
    def features_extractor(self) -> PerpFeatures:
        """Of the network that acts."""
        return cast(PerpFeatures, self.actor.features_extractor)

    @features_extractor.setter
    def features_extractor(self, value: Any) -> None:
        # SB3's base class sets its own to None; the networks own theirs
        del value

    def decide(
        self, context: torch.Tensor, state: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The squashed mean; see :class:`perpgym.policies.deciding.Policy`."""
        del mask
        return self.answers(context, state)

    def answers(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., a) the squashed mean."""
        mean: torch.Tensor = self.actor.mu(self.actor.latent_pi(self._features(context, state)))
        return torch.tanh(mean)


class StockSACPolicy(StockSquashed, SACMultiInputPolicy):
    """SB3's policy of SAC."""

    def own_settings(self) -> dict[str, Any]:
        """How many critics there are."""
        return {"n_critics": self.critic.n_critics}


class StockTQCPolicy(StockSquashed, TQCMultiInputPolicy):
    """sb3-contrib's policy of TQC."""

    def own_settings(self) -> dict[str, Any]:
        """How many critics there are, and of how many quantiles each."""
        return {"n_critics": self.critic.n_critics, "n_quantiles": self.critic.n_quantiles}


def check_exact(n_bars: int) -> None:
    """Refuse a tape whose bars have no exact float32 index.

    Raises:
        ValueError: it has more than 2**24 bars.
    """
    if n_bars > MAX_EXACT_BARS:
        raise ValueError(
            f"the tape has {n_bars:,} bars, and Stable-Baselines3 hands bar indices on as float32, which is "
            f"exact up to {MAX_EXACT_BARS:,}: use a shorter period or longer bars, or agent=ppo, which keeps "
            "them whole"
        )
