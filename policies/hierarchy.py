"""A policy of two levels on the same encoders: a manager that chooses options, a worker that acts in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from perpgym.envs.actions import ActionKind
from perpgym.policies.action_heads import ChoiceActions
from perpgym.policies.actor_critic import Evaluation, PerpActorCriticPolicy
from perpgym.policies.deciding import predict_remembering
from perpgym.policies.features import count_contracts
from perpgym.policies.first_actions import aim_at_forecasts
from perpgym.policies.forecast import WithForecasts
from perpgym.policies.options import HierarchyConfig, Options, after_bars
from perpgym.policies.popart import PopArtLinear


class Levels(NamedTuple):
    """What the losses of both levels need; the manager's where it decided, in the order of the mask."""

    worker: Evaluation
    manager: Evaluation
    option_values: torch.Tensor


class PerpHierarchicalPolicy(PerpActorCriticPolicy):
    """A :class:`PerpActorCriticPolicy` whose state has an option's columns, and a manager who sets them.

    The state of the worker, (..., S + Z), is the account's and then the option's
    (:class:`perpgym.policies.options.Options`); that of the manager is the account's alone. A bar's context
    is computed once for both.

    Args:
        observation_space, action_space, lr_schedule: as of the flat policy; the action is the worker's.
        hierarchy: the manager's choices.
        action, levels, choices: the env's, see ``Options``.
        **kwargs: of the flat policy.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        action: ActionKind,
        levels: Sequence[float],
        choices: Sequence[int],
        hierarchy: HierarchyConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # what comes from disk is a mapping
        if isinstance(hierarchy, dict):
            hierarchy = HierarchyConfig(**hierarchy)
        self.hierarchy = hierarchy or HierarchyConfig()
        self.options = Options(
            self.hierarchy,
            action=action,
            levels=levels,
            choices=choices,
            n_assets=count_contracts(observation_space),
        )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self._manager_heads = ChoiceActions(self.options.counts)

    def _build_mlp_extractor(self) -> None:
        width = self.features_dim
        # the worker's two heads read its option too
        self.features_dim = width + self.options.size
        super()._build_mlp_extractor()
        self.features_dim = width
        config = self.config
        self.manager_policy = self._manager(width)
        self.manager_value = _value_head(width, config.value_hidden)
        # on the latents of the worker's value: one more layer, not one more network
        self.option_value = PopArtLinear(_linear(self.mlp_extractor.latent_dim_vf, 1, gain=1.0))

    def _manager(self, width: int) -> nn.Sequential:
        config, n_assets = self.config, self.options.n_assets
        *hidden, last = _head(width, config.policy_hidden, sum(self.options.counts), gain=0.01)
        if not self.n_forecasts:
            return nn.Sequential(*hidden, last)
        assert isinstance(last, nn.Linear)
        last = _linear(last.in_features + self.n_forecasts, last.out_features, gain=0.01)
        aim_at_forecasts(last, self.hierarchy.targets, n_assets, self.n_forecasts, config)
        return nn.Sequential(WithForecasts(nn.Sequential(*hidden), self.n_forecasts), last)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.own_settings()}

    def own_settings(self) -> dict[str, Any]:
        """Plain arguments of the constructor beside the network's shape."""
        options = self.options
        return {
            "hierarchy": self.hierarchy.to_json(),
            "action": options.action,
            "levels": list(options.levels),
            "choices": list(options.choices),
        }

    @property
    def manager_heads(self) -> ChoiceActions:
        """The distribution of the manager's choices."""
        if self._manager_heads.device != self.device:
            self._manager_heads = ChoiceActions(self.options.counts, self.device)
        return self._manager_heads

    @property
    def manager_value_head(self) -> PopArtLinear:
        """The last layer of the manager's values."""
        return cast(PopArtLinear, self.manager_value[-1])

    @property
    def option_value_head(self) -> PopArtLinear:
        """The last layer of the values within options."""
        return self.option_value

    # --- the manager ---

    def manager_parameters(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., n) logits of the manager's choices; a state may have an option's columns, it is not read."""
        logits: torch.Tensor = self.manager_policy(self._manager_features(context, state))
        return logits

    def manager_values(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(...,) V of states in which the manager decides, in the raw reward."""
        value: torch.Tensor = self.manager_value(self._manager_features(context, state))
        return value.squeeze(-1)

    def option_values(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(...,) value of being within an option, in the raw reward; ``state`` (..., S + Z)."""
        return self.values_within(context, state)[1]

    def values_within(self, context: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(...,) the worker's values, and those of being within an option; ``state`` (..., S + Z)."""
        latent = self.mlp_extractor.value_net(self._fuse(context, state))
        return self.value_net(latent).squeeze(-1), self.option_value(latent).squeeze(-1)

    def choose(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., Z) the options that the deterministic manager begins, of ``midpoint`` bars."""
        logits = self.manager_parameters(context, state)
        choice = self.manager_heads.mode(logits, self.options.manager_mask(state))
        bars = torch.full(choice.shape[:-1], float(self.hierarchy.midpoint), device=choice.device)
        return self.options.begin(choice, bars, state)

    # --- both ---

    @property
    def memory_size(self) -> int:
        """Z, columns of an option, which is what the policy remembers of an account."""
        return self.options.size

    def remember(self, context: torch.Tensor, state: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """(..., Z) the options in which accounts act now: those that go on, new ones where one is due."""
        is_due = self.options.is_due(memory, state).unsqueeze(-1)
        return torch.where(is_due, self.choose(context, state), memory)

    def forget(self, memory: torch.Tensor, bars: int = 1) -> torch.Tensor:
        """The options after so many bars have passed."""
        return after_bars(memory, bars)

    def decide(
        self, context: torch.Tensor, state: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Deterministic actions of the env from states with options, (..., S + Z)."""
        option = state[..., -self.options.size :]
        return self.options.bind(super().decide(context, state, self._allowed(mask, option)), option)

    def answers(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The manager's logits, and what the worker answers in an option without exposure or limit."""
        option = state.new_zeros(*state.shape[:-1], self.options.size)
        option[..., -2:] = 1.0
        worker = super().answers(context, torch.cat((state, option), dim=-1))
        return torch.cat((self.manager_parameters(context, state), worker), dim=-1)

    def evaluate_levels(
        self,
        context: torch.Tensor,
        state: torch.Tensor,
        actions: torch.Tensor,
        mask: torch.Tensor | None,
        decided: torch.Tensor,
        choices: torch.Tensor,
        choice_mask: torch.Tensor,
    ) -> Levels:
        """What the losses of both levels need of given actions and choices.

        Args:
            context: (..., C); leading axes broadcast with those of ``state``.
            state: (..., S + Z).
            actions: (..., action_dim), of the worker.
            mask: (..., m) bool, of the worker's choices.
            decided: (...,) bool, n of them true: where the manager decided.
            choices, choice_mask: (n, A + 1) and (n, M), of the manager there.
        """
        features = self._fuse(context, state)
        parameters, heads = self._parameters_of(features), self.action_heads
        log_prob = heads.log_prob(parameters, actions, mask)
        latent = self.mlp_extractor.value_net(features)
        values, option_values = self.value_net(latent).squeeze(-1), self.option_value(latent).squeeze(-1)
        worker = Evaluation(values, log_prob, heads.entropy(parameters, mask))
        bare = features[decided][:, self.options.size :]
        logits = self.manager_policy(bare)
        manager = Evaluation(
            self.manager_value(bare).squeeze(-1),
            self.manager_heads.log_prob(logits, choices, choice_mask),
            self.manager_heads.entropy(logits, choice_mask),
        )
        return Levels(worker, manager, option_values)

    # --- the face of SB3 ---

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        """SB3's ``predict`` of a recurrent policy: the state holds each account's option.

        Args:
            observation: of the env, of one account or of N.
            state: what the last call returned; None at the beginning.
            episode_start: (N,) which accounts begin an episode.
            deterministic: the likeliest choices, and options of ``midpoint`` bars.
            action_masks: (N, m), of the env's discrete actions, as MaskablePPO takes them.

        Returns:
            Actions, and the state for the next call: ((N, Z) float32,).
        """

        def act(
            context: torch.Tensor, account: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            memory = self._renew(context, account, memory, deterministic)
            full = torch.cat((account, memory), dim=-1)
            actions = self.decide(context, full, mask) if deterministic else self._draw(context, full, mask)
            return (actions.long() if self.action_heads.n_masked else actions), memory

        return predict_remembering(self, observation, state, episode_start, action_masks, act)

    def extract_features(self, obs: Any, features_extractor: nn.Module | None = None) -> torch.Tensor:
        """Refused: an observation without an option is not what the worker acts on."""
        raise RuntimeError(
            "a hierarchical policy acts within an option: call predict(observation, state=...)"
        )

    def _renew(
        self, context: torch.Tensor, state: torch.Tensor, memory: torch.Tensor, deterministic: bool
    ) -> torch.Tensor:
        if deterministic:
            return self.remember(context, state, memory)
        heads, is_due = self.manager_heads, self.options.is_due(memory, state).unsqueeze(-1)
        logits = self.manager_parameters(context, state)
        noise = heads.noise(logits.shape[:-1], device=self.device)
        choice = heads.sample(logits, noise, self.options.manager_mask(state))
        bars = self.options.draw_bars(torch.rand(len(state), device=state.device))
        return torch.where(is_due, self.options.begin(choice, bars, state), memory)

    def _draw(self, context: torch.Tensor, state: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        heads, option = self.action_heads, state[..., -self.options.size :]
        parameters = self.action_parameters(context, state)
        perturbation = heads.perturbation(heads.noise(parameters.shape[:-1], device=self.device))
        sampled = heads.sample(parameters, perturbation, self._allowed(mask, option))
        return self.options.bind(sampled, option)

    def _allowed(self, mask: torch.Tensor | None, option: torch.Tensor) -> torch.Tensor | None:
        """What env and option allow of discrete choices; without a mask, what the option does."""
        if mask is None and self.action_heads.n_masked:
            mask = torch.ones(self.action_heads.n_masked, dtype=torch.bool, device=option.device)
        return None if mask is None else self.options.worker_mask(mask, option)

    def _fuse(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        # the option first: forecasts are the last columns
        option = self.options.scaled(state[..., -self.options.size :])
        return torch.cat((option, super()._fuse(context, state[..., : -self.options.size])), dim=-1)

    def _manager_features(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        account = state[..., : len(self.features_extractor.inverse_divisors)]
        return super()._fuse(context, account)


def _head(width: int, hidden: Sequence[int], out: int, gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [_linear(width, size, 2.0**0.5), nn.SiLU()]
        width = size
    return nn.Sequential(*layers, _linear(width, out, gain))


def _value_head(width: int, hidden: Sequence[int]) -> nn.Sequential:
    head = _head(width, hidden, 1, gain=1.0)
    last = head[-1]
    assert isinstance(last, nn.Linear)
    head[-1] = PopArtLinear(last)
    return head


def _linear(width: int, out: int, gain: float) -> nn.Linear:
    linear = nn.Linear(width, out)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear
