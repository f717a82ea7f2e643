"""Acts along encoded paths on two levels: options where one is due, the worker's actions at every bar."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.agents.collect import FlatDriver
from perpgym.agents.hierarchical_rollout import HierarchicalRollout
from perpgym.agents.objective import Objective
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.spaces import CONTRACT_LEDGER
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.hierarchy import PerpHierarchicalPolicy

_EXPOSURE = CONTRACT_LEDGER["exposure"]


class _Cut(NamedTuple):
    """Of accounts whose experience is cut off: (...,), (..., S + Z) and (...,)."""

    is_due: torch.Tensor
    state: torch.Tensor
    manager_value: torch.Tensor


class OptionDriver(FlatDriver):
    """Manager and worker of one policy; see :class:`perpgym.agents.collect.Driver`.

    Args:
        objective, env, rollout, context, noise: of the flat driver.
        option: (P, K, Z), in which accounts are, from the rollout before; replaced as time goes on.
        is_scripted: the manager draws its choices evenly instead, to warm the worker up.
        shaping: what the worker loses a bar for each ``max_exposure`` of distance from its target.
    """

    rollout: HierarchicalRollout
    policy: PerpHierarchicalPolicy

    def __init__(
        self,
        objective: Objective,
        env: PerpVecEnv,
        rollout: HierarchicalRollout,
        context: torch.Tensor,
        noise: torch.Generator,
        *,
        option: torch.Tensor,
        is_scripted: bool,
        shaping: float,
    ) -> None:
        super().__init__(objective, env, rollout, context, noise)
        self.option, self.is_scripted, self.shaping = option, is_scripted, shaping
        self.rules, self._noise = self.policy.options, noise
        self._final_manager_value = np.zeros(rollout.reward.shape)

    def act(self, step: int) -> torch.Tensor:
        """Begin the options that are due, and act within all."""
        state = self._state[step]  # P K S+Z
        observed = state[..., : self.rollout.observed_size]
        features = self.actor.features(step, observed)
        is_due = self.rules.is_due(self.option, observed)
        self.rollout.decided[:, step] = is_due
        if is_due.any():
            self._begin(step, is_due, features[is_due], observed[is_due])
        state[..., self.rollout.observed_size :] = self.option
        parameters = self.actor.answer(torch.cat((self.rules.scaled(self.option), features), dim=-1))
        allowed = self.allowed(step)
        if allowed is not None:
            allowed.copy_(self.rules.worker_mask(allowed, self.option))
        return self.rules.bind(self.sample(step, parameters, allowed), self.option)

    def _begin(self, step: int, is_due: torch.Tensor, features: torch.Tensor, observed: torch.Tensor) -> None:
        """The manager decides for n accounts, from (n, .) features and states."""
        policy, rollout, heads = self.policy, self.rollout, self.policy.manager_heads
        logits = policy.manager_policy(features)
        if self.is_scripted:
            logits = torch.zeros_like(logits)
        mask = self.rules.manager_mask(observed)
        choice = heads.sample(logits, heads.noise(logits.shape[:-1], self._noise), mask)
        uniform = torch.rand(len(choice), generator=self._noise, device=choice.device)
        self.option[is_due] = self.rules.begin(choice, self.rules.draw_bars(uniform), observed)
        rollout.choices[:, step][is_due] = choice
        rollout.choice_mask[:, step][is_due] = mask
        rollout.choice_log_prob[:, step][is_due] = heads.log_prob(logits, choice, mask)
        rollout.manager_values[:, step][is_due] = policy.manager_value(features).squeeze(-1)

    def booked(self, step: int, out: StepBuffers, ended: NDArray[np.bool_]) -> None:
        """Shape the worker's reward, let a bar of every option pass, and value what was truncated."""
        rollout = self.rollout
        rollout.raw_reward[step] = out.reward
        if self.shaping:
            rollout.reward[step] -= self.shaping * self._distance(out)
        by_account = self.option.flatten(0, 1)  # N Z, a view
        by_account[:, -1] -= 1.0
        accounts = np.flatnonzero(out.truncated)
        if accounts.size:
            context, observed = self.final_states(step, out, accounts)
            cut = self._cut(context, observed, by_account[accounts])
            self.final_value[step, accounts] = self.policy.state_values(context, cut.state).cpu().numpy()
            self._final_manager_value[step, accounts] = cut.manager_value.cpu().numpy()
        if ended.any():
            by_account[torch.from_numpy(ended).to(by_account.device)] = 0.0

    def _cut(self, context: torch.Tensor, observed: torch.Tensor, option: torch.Tensor) -> _Cut:
        """Where experience is cut off: the option goes on, or the likeliest one begins where one is due.

        Args:
            context: (..., C), leading axes broadcast with those of ``observed``.
            observed: (..., S).
            option: (..., Z), after the last bar.
        """
        is_due = self.rules.is_due(option, observed)
        coming = torch.where(is_due.unsqueeze(-1), self.policy.choose(context, observed), option)
        state = torch.cat((observed, coming), dim=-1)
        deciding = self.policy.manager_values(context, observed)
        return _Cut(is_due, state, torch.where(is_due, deciding, self.policy.option_values(context, state)))

    def _distance(self, out: StepBuffers) -> NDArray[np.float64]:
        """(N,) mean over contracts of |exposure - target|, in units of ``max_exposure``; before a restart."""
        targets = self.option[..., : self.rules.n_assets].flatten(0, 1).cpu().numpy()  # N A
        exposure = out.holdings[:, :, _EXPOSURE] / self.env.config.max_exposure
        distance: NDArray[np.float64] = np.abs(exposure - targets).mean(axis=1)
        return distance

    def value(self, some: slice) -> None:
        """The worker's values, and from the same latents those of being within the options."""
        context, rollout = self.context[some].unsqueeze(2), self.rollout
        values, within = self.policy.values_within(context, rollout.state[some])
        rollout.values[some], rollout.within[some] = values, within[:, :-1]

    def finish(self) -> None:
        """Values of both levels after the last step, then everything of the rollout."""
        rollout, last = self.rollout, self._state[-1]
        context = self.context[:, -1].unsqueeze(1)  # P 1 C
        cut = self._cut(context, last[..., : rollout.observed_size], self.option)
        # an option that is due begins with the next rollout, where the manager draws it
        rollout.decided[:, -1] = cut.is_due
        last.copy_(cut.state)
        super().finish()
        rollout.finish_manager(cut.manager_value, self._final_manager_value)
