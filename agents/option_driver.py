"""Acts along encoded paths on two levels: options where one is due, the worker's actions at every bar."""

from __future__ import annotations

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
        self.option[is_due] = self.rules.begin(choice, self.rules.draw_bars(uniform))
        rollout.choices[:, step][is_due] = choice
        rollout.choice_mask[:, step][is_due] = mask
        rollout.choice_log_prob[:, step][is_due] = heads.log_prob(logits, choice, mask)
        rollout.manager_values[:, step][is_due] = policy.manager_value(features).squeeze(-1)

    def booked(self, step: int, out: StepBuffers, ended: NDArray[np.bool_]) -> None:
        """Shape the worker's reward, value what was truncated, and let a bar of every option pass."""
        rollout = self.rollout
        rollout.raw_reward[step] = out.reward
        if self.shaping:
            rollout.reward[step] -= self.shaping * self._distance(out)
        accounts = np.flatnonzero(out.truncated)
        by_account = self.option.flatten(0, 1)  # N Z, a view
        if accounts.size:
            context, state = self.final_states(step, out, accounts)
            # in the option that was cut off, whose present bar is not over for the worker's value
            state_in_option = torch.cat((state, by_account[accounts]), dim=1)
            values = self.policy.state_values(context, state_in_option)
            self.final_value[step, accounts] = values.cpu().numpy()
            of_manager = self.policy.manager_values(context, state)
            self._final_manager_value[step, accounts] = of_manager.cpu().numpy()
        by_account[:, -1] -= 1.0
        if ended.any():
            by_account[torch.from_numpy(ended).to(by_account.device)] = 0.0

    def _distance(self, out: StepBuffers) -> NDArray[np.float64]:
        """(N,) mean over contracts of |exposure - target|, in units of ``max_exposure``; before a restart."""
        targets = self.option[..., : self.rules.n_assets].flatten(0, 1).cpu().numpy()  # N A
        exposure = out.holdings[:, :, _EXPOSURE] / self.env.config.max_exposure
        distance: NDArray[np.float64] = np.abs(exposure - targets).mean(axis=1)
        return distance

    def finish(self) -> None:
        """Values of both levels after the last step, then everything of the rollout."""
        rollout, last = self.rollout, self._state[-1]
        context = self.context[:, -1].unsqueeze(1)  # P 1 C
        observed = last[..., : rollout.observed_size]
        is_due = self.rules.is_due(self.option, observed)
        rollout.decided[:, -1] = is_due
        # the option that is due begins with the next rollout; its mode stands in for it in the worker's value
        coming = torch.where(is_due.unsqueeze(-1), self.policy.choose(context, observed), self.option)
        last[..., rollout.observed_size :] = coming
        last_value = torch.where(
            is_due, self.policy.manager_values(context, observed), self.policy.option_values(context, last)
        )
        super().finish()
        rollout.finish_manager(last_value, self._final_manager_value)
