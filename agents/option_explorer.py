"""Fill a replay on two levels: options where one is due, a level within the option at every bar."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.agents.explore import Explorer, Int64, random_allowed
from perpgym.agents.option_replay import OptionReplay
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.policies.hierarchical_quantile import HierarchicalQuantilePolicy
from perpgym.policies.options import after_bars


class OptionExplorer(Explorer):
    """Manager and worker of one policy; see :class:`perpgym.agents.explore.Explorer`.

    Both explore as often, the manager when it decides and the worker at every bar.

    Attributes:
        begun: options begun since somebody set this to 0.
        called_back: of them, those that a risk event brought on.
    """

    policy: HierarchicalQuantilePolicy
    replay: OptionReplay

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begun, self.called_back = 0, 0

    def _observe(self, env: SB3PerpVecEnv) -> None:
        out, rules = env.buffers, self.policy.options
        state, mask = self._seen(env)
        before, _mask = self.replay.newest()
        option = after_bars(torch.from_numpy(before[..., self.replay.observed_size :]), 1)
        if self.replay.awaits_observation:
            option.zero_()
        # who died begins another life, in no option; who was truncated came by a final observation
        option[torch.from_numpy(out.terminated.reshape(mask.shape[:2]).astype(np.bool_))] = 0.0
        due = rules.is_due(option, torch.from_numpy(state)).numpy()
        self.called_back += int((due & (option[..., -1] > 0.5).numpy()).sum())
        self.replay.observe_due(due)
        both = np.concatenate((state, option.numpy()), axis=-1)
        self.replay.observe(out.bar[:: mask.shape[1]], both, mask)

    def _choose(self, context: torch.Tensor) -> Int64:
        """(P, K, A) levels, once the options that are due have begun."""
        due = self.replay.newest_due()
        if due.any():
            self._begin(context, due)
        state, mask = self.replay.newest()  # P K S+Z, P K A L
        self.decisions += due.size
        option = torch.from_numpy(state[..., self.replay.observed_size :])
        allowed = self.policy.options.worker_mask(torch.from_numpy(mask), option).numpy()
        is_random = self.noise.random(due.shape) < self.chance()
        self.replay.explore(is_random)
        levels = random_allowed(allowed, self.noise)
        if is_random.all():
            return levels
        states, options, masks = (
            torch.as_tensor(array, device=context.device) for array in (state, option, mask)
        )
        quantiles = self.policy.quantile_net.worker_quantiles(context.unsqueeze(1), states)
        best = self.policy.best_level(quantiles, options, masks)  # P K A
        return np.where(is_random[..., None], levels, best.cpu().numpy())

    def _begin(self, context: torch.Tensor, due: NDArray[np.bool_]) -> None:
        """Options for the accounts that are due, n of them."""
        rules, replay = self.policy.options, self.replay
        state = torch.from_numpy(replay.newest()[0][due][:, : replay.observed_size])  # n S
        mask = rules.manager_mask(state).numpy()
        choice = random_allowed(mask, self.noise)  # n A
        is_random = self.noise.random(len(choice)) < self.chance()
        if not is_random.all():
            paths = torch.from_numpy(np.nonzero(due)[0]).to(context.device)
            there = state.to(context.device)
            quantiles = self.policy.quantile_net.quantiles(context[paths], there)
            best = self.policy.best_choice(quantiles, there).cpu().numpy()
            choice = np.where(is_random[:, None], choice, best)
        config = rules.config
        bars = self.noise.integers(config.min_bars, config.max_bars + 1, len(choice)).astype(np.float32)
        replay.begin(due, rules.begin(torch.from_numpy(choice), torch.from_numpy(bars)).numpy(), choice)
        self.begun += len(choice)
