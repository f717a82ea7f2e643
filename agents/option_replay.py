"""A replay of stretches that also keeps options: what came of the worker's bars, and of whole options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.agents.replay import Bool, Float32, Int64, StretchReplay


@dataclass(frozen=True, kw_only=True)
class Following:
    """What came of decisions up to the observation at which their target stands.

    Attributes:
        reward: (G, s, K) float32, sum of gamma^j r_j over the m bars until there.
        discount: (G, s, K) float32: gamma^m, of the realised m; 0 where the account ended before.
        offset: (G, s, K) int64, bars from the stretch's first decision to there.
        state: (G, s, K, S + Z) float32, raw account state and the option there.
        mask: (G, s, K, A, L) bool, levels allowed there.
        is_due: (G, s, K) bool, whether the manager decides there.
    """

    reward: torch.Tensor
    discount: torch.Tensor
    offset: torch.Tensor
    state: torch.Tensor
    mask: torch.Tensor
    is_due: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class OptionBatch:
    """G stretches of s bars of K accounts: the worker's decision at each, the manager's where it decided.

    Attributes:
        first_bar, is_decision, length: as of :class:`perpgym.agents.replay.StretchBatch`.
        state: (G, s, K, S + Z) float32, with the option in force.
        action, choice: (G, s, K, A) int64, of the worker, and of the manager where an option began.
        begins: (G, s, K) bool, where an option began of which the manager's target is known.
        worker: after at most n bars, within the option or at its end.
        manager: at the end of the option, or at the first bar at which the worker explored: what a random
            level costs is not what the option is worth. Of no use but where ``begins``.
    """

    first_bar: torch.Tensor
    state: torch.Tensor
    action: torch.Tensor
    choice: torch.Tensor
    is_decision: torch.Tensor
    begins: torch.Tensor
    length: torch.Tensor
    worker: Following
    manager: Following


class OptionReplay(StretchReplay):
    """A :class:`StretchReplay` whose states end with the option in force.

    An observation is kept with the option that came over from the bar before; where the manager then begins
    another one, it takes its place.

    Args:
        option_size: Z.
        state_size: S, without the option.
        **sizes: of ``StretchReplay``.
    """

    def __init__(self, *, option_size: int, state_size: int, **sizes: int) -> None:
        super().__init__(state_size=state_size + option_size, **sizes)
        self.observed_size, self.option_size = state_size, option_size
        self.due = np.zeros(self.reward.shape, np.bool_)
        self.explored = np.zeros(self.reward.shape, np.bool_)
        self.choice = np.zeros(self.action.shape, np.uint8)

    def observe_due(self, due: Bool) -> None:
        """Keep for whom the manager decides at the next observation, (P, K); call before ``observe``."""
        place = (np.arange(self.n_paths), self.head % self.capacity)
        self.due[place], self.explored[place] = due, False

    def newest_due(self) -> Bool:
        """(P, K), of the newest observations."""
        return self.due[np.arange(self.n_paths), (self.head - 1) % self.capacity]

    def explore(self, is_random: Bool) -> None:
        """Keep for whom the worker's level at the newest observation is random, (P, K)."""
        self.explored[np.arange(self.n_paths), (self.head - 1) % self.capacity] = is_random

    def begin(self, due: Bool, option: Float32, choice: NDArray[np.integer]) -> None:
        """Put new options into the newest observations.

        Args:
            due: (P, K), n of them true: for whom.
            option: (n, Z).
            choice: (n, A), of the manager.
        """
        path, account = np.nonzero(due)
        place = (self.head[path] - 1) % self.capacity
        self.state[path, place, account, self.observed_size :] = option
        self.choice[path, place, account] = choice

    def end(self, paths: Int64, state: Float32) -> None:
        """As of ``StretchReplay``, from states without options: there the manager would decide."""
        place = (paths, self.head[paths] % self.capacity)
        self.due[place], self.explored[place] = True, False
        none = np.zeros((*state.shape[:-1], self.option_size), np.float32)
        super().end(paths, np.concatenate((state, none), axis=-1))

    def sample_options(
        self,
        batch_size: int,
        stretch_bars: int,
        *,
        n_step: int,
        max_bars: int,
        gamma: float,
        rng: np.random.Generator,
        device: torch.device | str = "cpu",
    ) -> OptionBatch:
        """Draw stretches as ``sample`` does.

        Args:
            batch_size, stretch_bars, gamma, rng, device: as of ``sample``.
            n_step: bars of reward before the worker's bootstrap; fewer where the option ends.
            max_bars: no option lasts longer.

        Raises:
            ValueError: nothing can be drawn yet.
        """
        count = max(1, batch_size // (stretch_bars * self.n_accounts))
        path, start, final = self._draw(count, stretch_bars, rng)
        at = start[:, None] + np.arange(stretch_bars)  # G s
        rows, place = path[:, None], self._places(at)
        is_decision = at < final[:, None]
        over, left, is_known = self._ends(path, at, final, max_bars)  # G s K
        target = np.minimum(at[..., None] + n_step, over)

        def on_device(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        def following(until: Int64, horizon: int) -> Following:
            until = np.maximum(until, at[..., None])
            there = (path[:, None, None], self._places(until), np.arange(self.n_accounts))
            reward, discount = self._returns(path, at, until, horizon, gamma)
            return Following(
                reward=on_device(reward),
                discount=on_device(discount),
                offset=on_device(until - start[:, None, None]),
                state=on_device(self.state[there]),
                mask=on_device(self.mask[there]),
                # where an option is left at once, it is in force
                is_due=on_device(self.due[there] & (until > at[..., None])),
            )

        return OptionBatch(
            first_bar=on_device(self.bar[path, start % self.capacity]),
            state=on_device(self.state[rows, place]),
            action=on_device(self.action[rows, place].astype(np.int64)),
            choice=on_device(self.choice[rows, place].astype(np.int64)),
            is_decision=on_device(is_decision),
            begins=on_device(self.due[rows, place] & is_decision[..., None] & is_known),
            length=on_device(final - start),
            worker=following(target, n_step),
            manager=following(left, max_bars),
        )

    def _ends(self, path: Int64, at: Int64, final: Int64, max_bars: int) -> tuple[Int64, Int64, Bool]:
        """Where the options in force at ``at`` end, where an option that begins there is left, and whether.

        Returns:
            (G, s, K) each: the end, or what is known of the option does; the end, or the first bar at which
            the worker explored; whether the latter is known.
        """
        rows, last = path[:, None], final[:, None]
        over = np.broadcast_to(last[..., None], (*at.shape, self.n_accounts)).copy()
        is_known = np.zeros(over.shape, np.bool_)
        # from far to near, so that the nearest stays
        for ahead in range(max_bars, 0, -1):
            then = at + ahead
            is_end = (then <= last)[..., None] & self.due[rows, self._places(then)]
            over = np.where(is_end, then[..., None], over)
            is_known |= is_end
        left = over.copy()
        for ahead in range(max_bars - 1, -1, -1):
            then = (at + ahead)[..., None]
            is_cut = (then < over) & self.explored[rows, self._places(at + ahead)]
            left = np.where(is_cut, then, left)
            is_known |= is_cut
        return over, left, is_known
