"""Fill a replay: encode each path's bars in one pass, then step the accounts along them, level by level."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.agents.replay import StretchReplay
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.policies.quantile import PerpQuantilePolicy, best_allowed

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]


class Explorer:
    """Acts in a batch env and keeps what happened.

    Args:
        policy: bound to the env's tape.
        replay: filled in place.
        noise: of random levels.
        chance: how often an account takes a random level now.

    Attributes:
        tokens: bars of single contracts that the market encoder has read.
        decisions: of accounts.
    """

    def __init__(
        self,
        policy: PerpQuantilePolicy,
        replay: StretchReplay,
        noise: np.random.Generator,
        chance: Callable[[], float],
    ) -> None:
        self.policy, self.replay, self.noise, self.chance = policy, replay, noise, chance
        self.tokens, self.decisions = 0, 0

    @torch.no_grad()
    def steps(self, env: SB3PerpVecEnv, n_steps: int) -> Iterator[Bool]:
        """Step every account ``n_steps`` times; yields after each bar (N,) which episodes ended."""
        native, out, replay = env.native, env.buffers, self.replay
        lead = (native.n_paths, native.accounts_per_path)
        bars = out.bar[:: lead[1]].copy()
        context = self._encode(bars, n_steps)  # P T C
        if replay.awaits_observation:
            self._observe(env)
        for step in range(n_steps):
            levels = self._choose(context[:, step])  # P K A
            native.step_into(levels.reshape(native.num_envs, -1).astype(np.float32), out)
            replay.book(levels, out.reward.reshape(lead), out.terminated.reshape(lead))
            bars += 1
            moved = out.bar[:: lead[1]]
            jumped = np.flatnonzero(moved != bars)
            # a path that ends on the tape's last bars may begin again on the very next one
            ended = np.flatnonzero(out.truncated.reshape(lead).any(axis=1))
            self._end(env, np.union1d(jumped, ended))
            bars[jumped] = moved[jumped]
            if jumped.size and step + 1 < n_steps:
                there = torch.from_numpy(jumped).to(context.device)
                context[there, step + 1 :] = self._encode(bars[jumped], n_steps - step - 1)
            self._observe(env)
            yield out.terminated | out.truncated

    def _encode(self, bars: Int64, n_bars: int) -> torch.Tensor:
        self.tokens += bars.size * self.policy.tokens(n_bars)
        return self.policy.stretch_context(torch.from_numpy(bars).to(self.policy.device), n_bars)

    def _choose(self, context: torch.Tensor) -> Int64:
        """(P, K, A) levels: the best allowed one, or at random."""
        state, mask = self.replay.newest()  # P K S, P K A L
        self.decisions += mask.shape[0] * mask.shape[1]
        is_random = self.noise.random(mask.shape[:2]) < self.chance()
        levels = random_allowed(mask, self.noise)
        if is_random.all():
            return levels
        on_device = (torch.from_numpy(array).to(context.device) for array in (state, mask))
        states, allowed = on_device
        best = best_allowed(self.policy.worth(context.unsqueeze(1), states), allowed)  # P K A
        return np.where(is_random[..., None], levels, best.cpu().numpy())

    def _observe(self, env: SB3PerpVecEnv) -> None:
        state, mask = self._seen(env)
        self.replay.observe(env.buffers.bar[:: mask.shape[1]], state, mask)

    def _seen(self, env: SB3PerpVecEnv) -> tuple[NDArray[np.float32], Bool]:
        """(P, K, S) states and (P, K, A, L) masks of the present observation."""
        out, native = env.buffers, env.native
        lead = (native.n_paths, native.accounts_per_path)
        flat = np.concatenate((out.account.reshape(native.num_envs, -1), out.portfolio), axis=1)
        mask = native.action_masks().reshape(*lead, self.policy.n_branches, self.policy.n_levels)
        return flat.reshape(*lead, -1), mask

    def _end(self, env: SB3PerpVecEnv, paths: Int64) -> None:
        """Keep the final observations of paths that moved on; what they would have allowed is not known."""
        if paths.size == 0:
            return
        out, native = env.buffers, env.native
        lead = (native.n_paths, native.accounts_per_path)
        flat = np.concatenate((out.final_account.reshape(native.num_envs, -1), out.final_portfolio), axis=1)
        self.replay.end(paths, flat.reshape(*lead, -1)[paths])


def random_allowed(mask: Bool, rng: np.random.Generator) -> Int64:
    """A uniform draw among the allowed levels of each contract: (..., L) bool -> (...,)."""
    return np.asarray(np.where(mask, rng.random(mask.shape), -1.0).argmax(axis=-1), np.int64)
