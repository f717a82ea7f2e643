"""One rollout of two levels: the worker's steps, and beside them where the manager decided and what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from perpgym.agents.rollout import Bool, Float64, Minibatch, PathRollout, Weights
from perpgym.agents.smdp import smdp_gae


@dataclass(frozen=True, kw_only=True)
class HierarchicalMinibatch(Minibatch):
    """A :class:`Minibatch` of the worker, with the manager's decisions; states have an option's columns.

    Attributes:
        decided: (G, T, K) bool, where the manager decided; n of them.
        choices: (n, A + 1) float32, indices.
        choice_mask: (n, M) bool.
        choice_log_prob, choice_advantages, choice_returns: (n,) float32.
        option_returns: (G, T, K) float32, targets of the value within an option.
    """

    decided: torch.Tensor
    choices: torch.Tensor
    choice_mask: torch.Tensor
    choice_log_prob: torch.Tensor
    choice_advantages: torch.Tensor
    choice_returns: torch.Tensor
    option_returns: torch.Tensor


class HierarchicalRollout(PathRollout):
    """A :class:`PathRollout` of the worker, and the manager's part on the same grid of bars and accounts.

    ``reward`` is the worker's, which may be shaped; ``raw_reward`` the env's, which the manager earns.

    Args:
        *args: of the flat rollout.
        counts: choices of each of the manager's numbers.
        manager_lambda: decay of the manager's trace, a decision.
        **kwargs: of the flat rollout.
    """

    minibatch_class = HierarchicalMinibatch

    def __init__(self, *args: Any, counts: tuple[int, ...], manager_lambda: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.manager_lambda = manager_lambda
        lead, device = self.log_prob.shape, self.device
        self.raw_reward = np.zeros_like(self.reward)
        # whether one is due after the last step is its last row
        self.decided = torch.zeros(lead[0], lead[1] + 1, lead[2], dtype=torch.bool, device=device)
        self.choices = torch.zeros(*lead, len(counts), device=device)
        self.choice_mask = torch.ones(*lead, sum(counts), dtype=torch.bool, device=device)
        self.choice_log_prob = torch.zeros(lead, device=device)
        # V where the manager decided, and everywhere the value of being within the option
        self.manager_values = torch.zeros(lead, device=device)
        self.within = torch.zeros(lead, device=device)
        # of the manager's decisions; between them, by how much the option went better than it was worth
        self.manager_advantages = torch.zeros(lead, device=device)
        self.option_returns = torch.zeros(lead, device=device)
        self.manager_weights = Weights()

    @property
    def ends(self) -> torch.Tensor:
        """(P, T, K) bool, where an episode ended with the step."""
        ends = torch.from_numpy(self.terminated | self.truncated).to(self.device)
        return ends.view(-1, self.n_paths, self.n_accounts).transpose(0, 1)

    def finish_manager(self, last_value: torch.Tensor, final_value: Float64) -> None:
        """Turn raw rewards and the manager's values into its advantages.

        Args:
            last_value: (P, K), after the last step: V where a decision is due, else the option's value.
            final_value: (T, N), the same of the observations at which accounts were truncated; 0 elsewhere.
        """
        decided: Bool = self._by_step(self.decided) > 0.5
        found = smdp_gae(
            self.raw_reward,
            decided,
            self._by_step(self.manager_values),
            last_value.flatten().cpu().numpy().astype(np.float64),
            self.terminated | self.truncated,
            final_value,
            gamma=self.gamma,
            gae_lambda=self.manager_lambda,
        )
        surprise = found.targets - self._by_step(self.within)
        self.manager_advantages.copy_(self._by_path(np.where(decided[:-1], found.advantages, surprise)))
        self.option_returns.copy_(self._by_path(found.targets))

    def weigh_decisions(self, *, path_baseline: bool, normalise: bool) -> None:
        """Say what minibatches make of the manager's advantages.

        Args:
            path_baseline: take from each the mean over its path's accounts at that step: of their managers'
                advantages, or within an option of what it brought beyond its value. That is what the market
                did next, as in ``weigh_advantages``.
            normalise: to mean 0 and deviation 1 over the manager's decisions.
        """
        self.manager_weights = weights = Weights(is_relative=path_baseline)
        weighed = weights.of(self.manager_advantages)[self.decided[:, :-1]]
        if normalise and weighed.numel() > 1:
            self.manager_weights = weights.normalising(weighed)

    def _columns(self, paths: torch.Tensor) -> dict[str, Any]:
        decided = self.decided[paths, :-1]
        return {
            **super()._columns(paths),
            "decided": decided,
            "choices": self.choices[paths][decided],
            "choice_mask": self.choice_mask[paths][decided],
            "choice_log_prob": self.choice_log_prob[paths][decided],
            "choice_advantages": self.manager_weights.of(self.manager_advantages[paths])[decided],
            "choice_returns": self.option_returns[paths][decided],
            "option_returns": self.option_returns[paths],
        }
