"""Replay of stretches: what accounts did on consecutive bars, drawn so that each bar is encoded once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class StretchBatch:
    """G stretches of s decisions of K accounts each, and where each decision's target stands.

    Attributes:
        first_bar: (G,) int64, the bar of each stretch's first decision.
        state: (G, s, K, S) float32, raw account state at the decision.
        action: (G, s, K, A) int64.
        reward: (G, s, K) float32, sum of gamma^j r_j over the m <= n bars up to the target's observation.
        discount: (G, s, K) float32: gamma^m, 0 where the account ended before.
        next_offset: (G, s) int64, bars from the stretch's first decision to the target's observation.
        next_state: (G, s, K, S) float32, raw account state there.
        next_mask: (G, s, K, A, L) bool, levels allowed there.
        is_decision: (G, s) bool, False where the episode had ended.
        length: (G,) int64, bars that the episode has booked from the stretch's first decision on.
    """

    first_bar: torch.Tensor
    state: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    next_offset: torch.Tensor
    next_state: torch.Tensor
    next_mask: torch.Tensor
    is_decision: torch.Tensor
    length: torch.Tensor

    def of_one_account(self, rng: np.random.Generator) -> StretchBatch:
        """The same stretches with one account each, drawn uniformly: K = 1."""
        n_stretches, _bars, n_accounts = self.reward.shape
        row = torch.arange(n_stretches, device=self.reward.device)
        chosen = torch.from_numpy(rng.integers(n_accounts, size=n_stretches)).to(row.device)
        parts = ("state", "action", "reward", "discount", "next_state", "next_mask")
        return replace(self, **{name: getattr(self, name)[row, :, chosen].unsqueeze(2) for name in parts})


class StretchReplay:
    """A ring of observations and what followed them, one row a path, on the host.

    A row holds the path's observations in order. Where an episode is truncated, its final observation stands
    between the last decision and the next episode's first, so that a target can be bootstrapped there. An
    account that ends early, and begins again on the same path, has a reward and no target.

    Args:
        n_paths, n_accounts: P and K.
        capacity: observations a path.
        state_size: S.
        n_branches, n_levels: A and L of the ladder.
    """

    def __init__(
        self, *, n_paths: int, n_accounts: int, capacity: int, state_size: int, n_branches: int, n_levels: int
    ) -> None:
        if capacity < 2:
            raise ValueError(f"capacity must be at least 2 observations a path, was {capacity}")
        lead = (n_paths, capacity)
        self.n_paths, self.n_accounts, self.capacity = n_paths, n_accounts, capacity
        self.bar = np.zeros(lead, np.int64)
        self.state = np.zeros((*lead, n_accounts, state_size), np.float32)
        self.mask = np.ones((*lead, n_accounts, n_branches, n_levels), np.bool_)
        self.action = np.zeros((*lead, n_accounts, n_branches), np.uint8)
        self.reward = np.zeros((*lead, n_accounts), np.float32)
        self.terminated = np.zeros((*lead, n_accounts), np.bool_)
        # counted from the run's start, never wrapped: of each observation's episode, the first and the final
        # one; the latter is -1 while the episode runs
        self.first = np.zeros(lead, np.int64)
        self.final = np.full(lead, -1, np.int64)
        # the next observation of each path, and its episode's first
        self.head = np.zeros(n_paths, np.int64)
        self.episode = np.zeros(n_paths, np.int64)

    def __len__(self) -> int:
        """Decisions of accounts that can be drawn, but for the final observations among them."""
        return int(np.minimum(self.head, self.capacity).sum()) * self.n_accounts

    @property
    def bytes_per_decision(self) -> float:
        """Memory that a decision of one account takes."""
        arrays = (self.bar, self.state, self.mask, self.action, self.reward, self.terminated, self.first)
        size = sum(array.nbytes for array in arrays) + self.final.nbytes
        return size / (self.n_paths * self.capacity * self.n_accounts)

    def observe(self, bar: Int64, state: Float32, mask: Bool) -> None:
        """Keep what every path sees now.

        Args:
            bar: (P,).
            state: (P, K, S).
            mask: (P, K, A, L).
        """
        place = (np.arange(self.n_paths), self.head % self.capacity)
        self.bar[place], self.state[place], self.mask[place] = bar, state, mask
        self.first[place], self.final[place] = self.episode, -1
        self.head += 1

    def book(self, action: NDArray[np.integer], reward: NDArray[np.floating], terminated: Bool) -> None:
        """Keep what was done at the newest observation and what it brought.

        Args:
            action: (P, K, A).
            reward, terminated: (P, K).
        """
        place = (np.arange(self.n_paths), (self.head - 1) % self.capacity)
        self.action[place], self.reward[place], self.terminated[place] = action, reward, terminated

    @property
    def awaits_observation(self) -> bool:
        """Whether nothing was seen since the run began or its env was reset."""
        return bool((self.head == self.episode).all())

    def newest(self) -> tuple[Float32, Bool]:
        """(P, K, S) states and (P, K, A, L) masks of the newest observations."""
        place = (np.arange(self.n_paths), (self.head - 1) % self.capacity)
        return self.state[place], self.mask[place]

    def end(self, paths: Int64, state: Float32) -> None:
        """Keep the final observation of episodes that the last booked bar ended; it allows every level.

        Args:
            paths: (n,) whose episodes ended.
            state: (n, K, S) of their final observations.
        """
        for row, path in enumerate(paths):
            newest = int(self.head[path])
            place = newest % self.capacity
            self.bar[path, place] = self.bar[path, (newest - 1) % self.capacity] + 1
            self.state[path, place], self.mask[path, place] = state[row], True
            self.first[path, place] = self.episode[path]
            self._close(int(path), newest)

    def cut(self) -> None:
        """The env was reset: the newest observations are the last of their episodes."""
        for path in range(self.n_paths):
            if self.head[path] > self.episode[path]:
                self._close(path, int(self.head[path]) - 1)

    def _close(self, path: int, final: int) -> None:
        since = max(int(self.episode[path]), final - self.capacity + 1)
        self.final[path, np.arange(since, final + 1) % self.capacity] = final
        self.head[path] = self.episode[path] = final + 1

    def sample(
        self,
        batch_size: int,
        stretch_bars: int,
        *,
        n_step: int,
        gamma: float,
        rng: np.random.Generator,
        device: torch.device | str = "cpu",
    ) -> StretchBatch:
        """Draw stretches, each around an observation that is drawn uniformly.

        Args:
            batch_size: decisions of accounts; max(1, batch_size // (s * K)) stretches are drawn.
            stretch_bars: s; 1 draws single bars.
            n_step: n, bars of reward before the bootstrap; fewer where the episode ends.
            gamma: discount a bar.
            rng: of the draws.
            device: of the batch.

        Raises:
            ValueError: nothing can be drawn yet: every path needs an observation after its first.
        """
        count = max(1, batch_size // (stretch_bars * self.n_accounts))
        path, start, final = self._draw(count, stretch_bars, rng)
        offset = np.arange(stretch_bars)
        at = start[:, None] + offset  # G s
        target = np.minimum(at + n_step, final[:, None])  # G s
        reward, discount = self._returns(path, at, target[..., None], n_step, gamma)
        now, then = self._places(at), self._places(np.maximum(target, at))
        rows = path[:, None]

        def on_device(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        return StretchBatch(
            first_bar=on_device(self.bar[path, start % self.capacity]),
            state=on_device(self.state[rows, now]),
            action=on_device(self.action[rows, now].astype(np.int64)),
            reward=on_device(reward),
            discount=on_device(discount),
            next_offset=on_device(np.maximum(target, at) - start[:, None]),
            next_state=on_device(self.state[rows, then]),
            next_mask=on_device(self.mask[rows, then]),
            is_decision=on_device(at < final[:, None]),
            length=on_device(final - start),
        )

    def _draw(self, count: int, stretch_bars: int, rng: np.random.Generator) -> tuple[Int64, Int64, Int64]:
        """(G,) paths, first observations, and the last observations that targets may use: later ones."""
        path, start, final = self._draw_around_any(count, stretch_bars, rng)
        # a reset may have left an episode with one observation, which is no decision
        while (empty := start >= final).any():
            again = self._draw_around_any(int(empty.sum()), stretch_bars, rng)
            path[empty], start[empty], final[empty] = again
        return path, start, final

    def _draw_around_any(
        self, count: int, stretch_bars: int, rng: np.random.Generator
    ) -> tuple[Int64, Int64, Int64]:
        oldest, every = np.maximum(self.head - self.capacity, 0), np.arange(self.n_paths)
        # a final observation whose decisions have been overwritten
        while (is_left := self.final[every, oldest % self.capacity] == oldest).any():
            oldest += is_left
        # an observation that nothing follows yet is no decision
        known = np.maximum(self.head - 1 - oldest, 0)
        if known.sum() == 0:
            raise ValueError("nothing to draw yet: the replay holds no decision that an observation follows")
        path = rng.choice(self.n_paths, count, p=known / known.sum())
        anchor = oldest[path] + (rng.random(count) * known[path]).astype(np.int64)
        place = anchor % self.capacity
        final = np.where(self.final[path, place] < 0, self.head[path] - 1, self.final[path, place])
        # a final observation is drawn for the decision before it
        start = np.minimum(anchor, final - 1) - rng.integers(0, stretch_bars, count)
        start = np.minimum(start, final - stretch_bars)
        start = np.maximum(start, np.maximum(self.first[path, place], oldest[path]))
        return path, start, final

    def _places(self, at: Int64) -> Int64:
        return at % self.capacity

    def _returns(
        self, path: Int64, at: Int64, target: Int64, n_step: int, gamma: float
    ) -> tuple[Float32, Float32]:
        """(G, s, K) discounted sums of reward up to the targets, and the discounts of what comes after.

        ``target`` (G, s, 1) where all accounts have the same, else (G, s, K).
        """
        rows = path[:, None]
        total = np.zeros((*at.shape, self.n_accounts), np.float32)
        discount = np.ones_like(total)
        for step in range(n_step):
            place = self._places(at + step)
            is_before = (at + step)[..., None] < target
            total += np.where(is_before, discount * self.reward[rows, place], 0.0)
            lives = gamma * ~self.terminated[rows, place]
            discount *= np.where(is_before, lives, 1.0).astype(np.float32)
        return total, discount

    # --- resuming ---

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`state_dict`."""
        for name, value in state.items():
            getattr(self, name)[...] = value
