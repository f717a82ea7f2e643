"""Quantile critics of two levels on one encoder: a manager of options, a worker who picks levels in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from perpgym.data.features.scaler import Scaler
from perpgym.policies.config import PolicyConfig
from perpgym.policies.deciding import predict_remembering
from perpgym.policies.features import count_contracts
from perpgym.policies.ladder_options import LadderOptions
from perpgym.policies.options import HierarchyConfig, after_bars
from perpgym.policies.quantile import PerpQuantilePolicy, best_allowed, cvar_weights, of_levels
from perpgym.policies.quantile_net import PerpQuantileNet, dueling_heads, orthogonal


class HierarchicalQuantileNet(PerpQuantileNet):
    """A :class:`PerpQuantileNet` over the manager's choices, with the worker's heads beside its own.

    Both levels answer the return of one reward with one discount, so they share the moments of PopArt and
    may stand in for each other where an option ends.

    Args:
        options: the rules.
        n_levels: L, of the env's ladder.
        observation_space, config, n_quantiles, market_scaler, risk_scaler: of ``PerpQuantileNet``.
    """

    def __init__(
        self,
        options: LadderOptions,
        observation_space: spaces.Dict,
        config: PolicyConfig,
        n_levels: int,
        n_quantiles: int,
        market_scaler: Scaler,
        risk_scaler: Scaler,
    ) -> None:
        super().__init__(
            observation_space,
            config,
            options.n_assets,
            options.n_choices,
            n_quantiles,
            market_scaler,
            risk_scaler,
        )
        self.options = options
        width = self.features_extractor.features_dim + options.size
        self.worker_value, self.worker_advantage = dueling_heads(
            width, config, n_quantiles, options.n_assets * n_levels * n_quantiles
        )
        self.worker_value.apply(orthogonal)
        self.worker_advantage.apply(orthogonal)

    def worker_quantiles(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Quantiles of the return of every level, within the options that the states end with.

        Args:
            context: (..., C); leading axes broadcast with those of ``state``.
            state: (..., S + Z) raw account columns, portfolio columns, the option.

        Returns:
            (..., A, L, N).
        """
        features, size = self.features_extractor, self.options.size
        fused = features.fuse(features.split(context), state[..., :-size])
        option = self.options.scaled(state[..., -size:])
        return self._duel(self.worker_value, self.worker_advantage, torch.cat((option, fused), dim=-1))

    def _pairs(self) -> list[tuple[nn.Sequential, nn.Sequential]]:
        return [*super()._pairs(), (self.worker_value, self.worker_advantage)]


class HierarchicalQuantilePolicy(PerpQuantilePolicy):
    """What hierarchical QR-DQN trains: both levels' critics, their target, and who chooses what.

    The manager picks by CVaR at the policy's own ``alpha``; the worker by CVaR at the alpha that the manager
    granted it. The state of the worker, (..., S + Z), is the account's and then the option's
    (:class:`perpgym.policies.ladder_options.LadderOptions`).

    Args:
        observation_space, action_space, lr_schedule: as of the flat policy; the action is the worker's.
        levels: of the env's ladder.
        hierarchy: the manager's choices.
        **kwargs: of the flat policy.
    """

    quantile_net: HierarchicalQuantileNet
    quantile_net_target: HierarchicalQuantileNet

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        levels: Sequence[float],
        hierarchy: HierarchyConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # what comes from disk is a mapping
        if isinstance(hierarchy, dict):
            hierarchy = HierarchyConfig(**hierarchy)
        self.options = LadderOptions(
            hierarchy or HierarchyConfig(), levels=levels, n_assets=count_contracts(observation_space)
        )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _make_net(self) -> HierarchicalQuantileNet:
        assert isinstance(self.observation_space, spaces.Dict)
        return HierarchicalQuantileNet(
            self.options, self.observation_space, self.config, self.n_levels, self.n_quantiles, **self.scalers
        ).to(self.device)

    def own_settings(self) -> dict[str, Any]:
        """Plain arguments of the constructor beside the network's shape."""
        return {
            **super().own_settings(),
            "levels": list(self.options.levels),
            "hierarchy": self.options.config.to_json(),
        }

    # --- who chooses what ---

    def best_choice(self, quantiles: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., A) int64: of (..., A, choices, N) the manager's best that the limits admit."""
        return best_allowed(self.cvar(quantiles), self.options.manager_mask(state))

    def best_level(
        self, quantiles: torch.Tensor, option: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """(..., A) int64: the worker's best of (..., A, L, N), by its option's alpha and within its target.

        Args:
            quantiles: of the levels.
            option: (..., Z).
            allowed: (..., A, L) bool, of the env.
        """
        worth = self._worth_to_worker(quantiles, option)
        return best_allowed(worth, self.options.worker_mask(allowed, option))

    def level_worth(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., A, L) what the levels are worth to the worker, within the options of the states."""
        quantiles = self.quantile_net.worker_quantiles(context, state)
        return self._worth_to_worker(quantiles, state[..., -self.options.size :])

    def _worth_to_worker(self, quantiles: torch.Tensor, option: torch.Tensor) -> torch.Tensor:
        weights = cvar_weights(self.options.alphas(option), self.n_quantiles).unsqueeze(-2)  # ... A 1 N
        return (quantiles * weights).sum(dim=-1)  # ... A L

    def value_by_target(
        self, context: torch.Tensor, state: torch.Tensor, allowed: torch.Tensor, is_due: torch.Tensor
    ) -> torch.Tensor:
        """(n, A, N) quantiles of the return from here on, by the target network.

        Where the manager decides, those of its best choice; within an option, those of the worker's best
        level.

        Args:
            context: (n, C).
            state: (n, S + Z); the option is not read where one is due.
            allowed: (n, A, L) bool, of the env.
            is_due: (n,) bool.
        """
        net, goes_on = self.quantile_net_target, ~is_due
        after = context.new_empty(len(context), self.n_branches, self.n_quantiles)
        account = state[is_due, : -self.options.size]
        choices = net.quantiles(context[is_due], account)
        after[is_due] = of_levels(choices, self.best_choice(choices, account))
        within = state[goes_on]
        levels = net.worker_quantiles(context[goes_on], within)
        best = self.best_level(levels, within[:, -self.options.size :], allowed[goes_on])
        after[goes_on] = of_levels(levels, best)
        return after

    # --- what a policy that remembers is asked ---

    @property
    def memory_size(self) -> int:
        """Z, columns of an option."""
        return self.options.size

    def remember(self, context: torch.Tensor, state: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """(..., Z) options in force now: those that go on, new ones of ``midpoint`` bars where one is due."""
        choice = self.best_choice(self.quantile_net.quantiles(context, state), state)
        bars = torch.full(choice.shape[:-1], float(self.options.config.midpoint), device=choice.device)
        is_due = self.options.is_due(memory, state).unsqueeze(-1)
        return torch.where(is_due, self.options.begin(choice, bars), memory)

    def forget(self, memory: torch.Tensor, bars: int = 1) -> torch.Tensor:
        """The options after so many bars have passed."""
        return after_bars(memory, bars)

    def decide(
        self,
        context: torch.Tensor,
        state: torch.Tensor,
        mask: torch.Tensor | None = None,
        alpha: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(..., A) float32 levels of the worker from states with options, (..., S + Z).

        Raises:
            ValueError: an alpha is given, which here is the manager's to grant.
        """
        if alpha is not None:
            raise ValueError("alpha is the manager's to grant here: it is in the option, leave it out")
        quantiles = self.quantile_net.worker_quantiles(context, state)
        allowed = self._by_contract(mask)
        if allowed is None:
            allowed = torch.ones(quantiles.shape[:-1], dtype=torch.bool, device=quantiles.device)
        return self.best_level(quantiles, state[..., -self.options.size :], allowed).float()

    def answers(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """What each of the manager's choices, and of the worker's levels in no option, is worth less than
        the best, in deviations of the return."""
        memory = state.new_zeros(*state.shape[:-1], self.options.size)
        worker = self.quantile_net.worker_quantiles(context, torch.cat((state, memory), dim=-1)).mean(-1)
        both = (self.worth(context, state), worker)
        behind = [(worth - worth.amax(dim=-1, keepdim=True)).flatten(-2) for worth in both]
        return torch.cat(behind, dim=-1) / self.quantile_net.deviation

    # --- the face of SB3 ---

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = True, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        raise RuntimeError("a hierarchical policy acts in an option: call predict(observation, state=...)")

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        """SB3's ``predict`` of a recurrent policy: the state holds each account's option.

        Args:
            observation: of the env, of one account or of N.
            state: what the last call returned; None at the beginning.
            episode_start: (N,) which accounts begin an episode.
            deterministic: exploration is the algorithm's.
            action_masks: (N, A * L) bool.

        Returns:
            Levels, and the state for the next call: ((N, Z) float32,).
        """
        del deterministic

        def act(
            context: torch.Tensor, account: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            memory = self.remember(context, account, memory)
            return self.decide(context, torch.cat((account, memory), dim=-1), mask).long(), memory

        return predict_remembering(self, observation, state, episode_start, action_masks, act)
