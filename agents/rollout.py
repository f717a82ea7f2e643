"""One rollout of P paths with K accounts each: what was seen, done and earned, and its minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


class Weights(NamedTuple):
    """How minibatches weigh advantages: against their path's mean or not, less a center, over a spread."""

    is_relative: bool = False
    center: float = 0.0
    spread: float = 1.0

    def of(self, advantages: torch.Tensor) -> torch.Tensor:
        """(P, T, K) weighed."""
        if self.is_relative:
            advantages = advantages - advantages.mean(dim=2, keepdim=True)
        return (advantages - self.center) / self.spread

    def normalising(self, weighed: torch.Tensor) -> Weights:
        """The same, with mean 0 and deviation 1 over what these gave."""
        return self._replace(center=float(weighed.mean()), spread=float(weighed.std()) + 1e-8)


class Segment(NamedTuple):
    """Consecutive bars of one path: from ``first_step`` on, it decides from bar ``first_bar`` on."""

    path: int
    first_step: int
    first_bar: int


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """Whole stretches of G paths, with the T decisions of each of their K accounts.

    Attributes:
        first_bar: (S,) int64, one row to encode for each segment of the paths; the first G rows are the
            paths' first segments.
        slot: (G, T) int64, where in the (S * T,) encoded bars each decision's bar stands; None if every
            path is a single segment, so that row g holds path g's bars in order.
        length: (S,) int64, decisions that the rollout took along each row.
        state: (G, T, K, S) float32, raw account state.
        actions: (G, T, K, a) float32, before clipping.
        log_prob, advantages, returns: (G, T, K) float32.
        embedding: (G, T, M) of the bars decided at, where the rollout kept them; None means encode them.
        masks: (G, T, K, m) bool, the choices that were allowed; None where nothing can be forbidden.
    """

    first_bar: torch.Tensor
    slot: torch.Tensor | None
    length: torch.Tensor
    state: torch.Tensor
    actions: torch.Tensor
    log_prob: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    embedding: torch.Tensor | None
    masks: torch.Tensor | None

    def arrange(self, encoded: torch.Tensor) -> torch.Tensor:
        """(S, T, C) contexts of the rows -> (G, T, C) contexts of the decisions."""
        return encoded if self.slot is None else encoded.flatten(0, 1)[self.slot]


class PathRollout:
    """Buffers of one rollout, path first, on the policy's device; money and ends stay on the host.

    The signature is that of SB3's rollout buffers, plus the number of paths.

    Args:
        buffer_size: T, steps of a rollout.
        observation_space: of the env, with index observations.
        action_space: Box (a,), or Discrete or MultiDiscrete, whose masks are kept.
        device: of the tensors.
        gae_lambda, gamma: of the advantage estimator.
        n_envs: N = P * K accounts.
        n_paths: P.
        n_extra: columns of a state behind what the env shows, which whoever acts writes.
    """

    minibatch_class: type[Minibatch] = Minibatch

    def __init__(
        self,
        buffer_size: int,
        observation_space: Any,
        action_space: Any,
        device: torch.device | str = "cpu",
        gae_lambda: float = 0.95,
        gamma: float = 0.99,
        n_envs: int = 1,
        *,
        n_paths: int,
        n_extra: int = 0,
    ) -> None:
        self.n_steps, self.n_paths, self.n_accounts = buffer_size, n_paths, n_envs // n_paths
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.device = torch.device(device)
        self.account_size = int(np.prod(observation_space["account"].shape))
        self.observed_size = self.account_size + int(np.prod(observation_space["portfolio"].shape))
        state_size = self.observed_size + n_extra
        lead = (n_paths, buffer_size)
        self.state = torch.zeros(n_paths, buffer_size + 1, self.n_accounts, state_size, device=device)
        self.actions = torch.zeros(*lead, self.n_accounts, _size(action_space), device=device)
        self.masks: torch.Tensor | None = None
        if n_choices := count_choices(action_space):
            self.masks = torch.ones(*lead, self.n_accounts, n_choices, dtype=torch.bool, device=device)
        self.log_prob = torch.zeros(*lead, self.n_accounts, device=device)
        self.values = torch.zeros(n_paths, buffer_size + 1, self.n_accounts, device=device)
        self.advantages = torch.zeros_like(self.log_prob)
        self.weights = Weights()
        self.reward = np.zeros((buffer_size, n_envs), np.float32)
        self.terminated = np.zeros((buffer_size, n_envs), np.bool_)
        self.truncated = np.zeros((buffer_size, n_envs), np.bool_)
        # (P, T + 1, M), only where the policy's loss does not move the encoders
        self.embedding: torch.Tensor | None = None
        self.segments: list[Segment] = []

    @property
    def nbytes(self) -> int:
        """Bytes of everything that grows with the rollout."""
        kept = [value for value in vars(self).values() if isinstance(value, torch.Tensor | np.ndarray)]
        return sum(value.nbytes for value in kept)

    def keep_embeddings(self, size: int) -> None:
        """Make room for a rollout's (P, T + 1, M) embeddings, which its updates then need not repeat."""
        self.embedding = torch.zeros(self.n_paths, self.n_steps + 1, size, device=self.device)

    def start(self, bars: NDArray[np.int64]) -> None:
        """Begin a rollout with path p at the close of ``bars[p]``."""
        self.segments = [Segment(path, 0, int(bar)) for path, bar in enumerate(bars)]

    def jump(self, path: int, step: int, bar: int) -> None:
        """From ``step`` on, the path decides from ``bar`` on."""
        self.segments.append(Segment(path, step, bar))

    def state_writer(self, account: Float32, portfolio: Float32) -> Callable[[int], None]:
        """A function of the step, 0 ... T, that keeps the account states then seen.

        Args:
            account, portfolio: (N, A, Ca) and (N, Cp) float32, which the env writes in place.
        """
        shape = (self.n_paths, self.n_accounts, -1)
        seen = [torch.from_numpy(columns).view(shape) for columns in (account, portfolio)]  # P K .
        account_at = self.state[..., : self.account_size].unbind(1)  # T+1 of P K .
        portfolio_at = self.state[..., self.account_size : self.observed_size].unbind(1)

        def write(step: int) -> None:
            account_at[step].copy_(seen[0])
            portfolio_at[step].copy_(seen[1])

        return write

    def finish(self, final_value: Float64) -> None:
        """Turn rewards and values into advantages and value targets.

        Args:
            final_value: (T, N), values of the observations at which accounts were truncated; 0 elsewhere.
        """
        value = self._by_step(self.values)  # T+1 N
        next_value = np.where(self.truncated, final_value, value[1:])
        next_value[self.terminated] = 0.0
        ends = self.terminated | self.truncated
        advantages = gae(self.reward, value[:-1], next_value, ends, self.gamma, self.gae_lambda)
        self.advantages.copy_(self._by_path(advantages))
        self.weights = Weights()

    @property
    def returns(self) -> torch.Tensor:
        """(P, T, K) targets of the values; not kept: they would be a twentieth of a rollout."""
        return self.advantages + self.values[:, :-1]

    def weigh_advantages(self, *, path_baseline: bool, normalise: bool) -> None:
        """Say what minibatches make of the advantages; the rollout's own stay as they are.

        Args:
            path_baseline: take from each the mean of its path's K accounts at that step (Mao et al. 2019).
                They meet the same market, whatever they do: the mean of the others is a baseline that knows
                what the market did next; including the account itself only scales it by 1 - 1/K.
            normalise: to mean 0 and deviation 1 over the whole rollout, as SB3 does over a minibatch.
        """
        self.weights = weights = Weights(is_relative=path_baseline)
        if normalise:
            # the one moment before the epochs at which the host waits for the device
            self.weights = weights.normalising(weights.of(self.advantages))

    def explained_variance(self) -> float:
        """1 - Var(returns - values) / Var(returns); nan if the returns do not vary."""
        variance = float(self.returns.var())
        return float("nan") if variance == 0.0 else 1.0 - float(self.advantages.var()) / variance

    def _by_step(self, tensor: torch.Tensor) -> Float64:
        """(P, T, K) on the device -> (T, N) on the host."""
        return tensor.transpose(0, 1).reshape(tensor.shape[1], -1).cpu().numpy().astype(np.float64)

    def _by_path(self, array: Float64) -> torch.Tensor:
        """(T, N) on the host -> (P, T, K) on the host."""
        return torch.from_numpy(array).view(-1, self.n_paths, self.n_accounts).transpose(0, 1)

    def minibatches(self, paths_per_batch: int, shuffle: np.random.Generator) -> Iterator[Minibatch]:
        """All paths once, in random groups as equal as possible and not above ``paths_per_batch``."""
        n_batches = -(-self.n_paths // paths_per_batch)
        for group in np.array_split(shuffle.permutation(self.n_paths), n_batches):
            rows, slot = self._rows(group)
            paths = torch.from_numpy(group).to(self.device)
            yield self.minibatch_class(
                first_bar=torch.tensor([row.first_bar for row in rows], device=self.device),
                length=torch.tensor(self._lengths(rows), device=self.device),
                slot=None if slot is None else torch.from_numpy(slot).to(self.device),
                **self._columns(paths),
            )

    def _columns(self, paths: torch.Tensor) -> dict[str, Any]:
        """What a minibatch holds of these paths' decisions, by its attributes' names."""
        advantages = self.advantages[paths]
        return {
            "state": self.state[paths, :-1],
            "actions": self.actions[paths],
            "log_prob": self.log_prob[paths],
            "advantages": self.weights.of(advantages),
            "returns": advantages + self.values[paths, :-1],
            "embedding": None if self.embedding is None else self.embedding[paths, :-1],
            "masks": None if self.masks is None else self.masks[paths],
        }

    def _lengths(self, rows: list[Segment]) -> list[int]:
        """Decisions of each segment: it ends where the path's next one begins; rows are in order of time."""
        end = dict.fromkeys((row.path for row in rows), self.n_steps)
        lengths = []
        for row in reversed(rows):
            lengths.append(end[row.path] - row.first_step)
            end[row.path] = row.first_step
        return lengths[::-1]

    def _rows(self, group: NDArray[np.int64]) -> tuple[list[Segment], NDArray[np.int64] | None]:
        """The segments of a group of paths, and the (G, T) slots of the group's decisions in them."""
        rows = [self.segments[path] for path in group]
        position = {int(path): index for index, path in enumerate(group)}
        later = [s for s in self.segments[self.n_paths :] if s.path in position]
        if not later:
            return rows, None
        steps = np.arange(self.n_steps)
        slot = np.arange(len(group))[:, None] * self.n_steps + steps  # G T
        # in order of time, so that a later jump overwrites what an earlier one claimed
        for row, segment in enumerate(later, start=len(group)):
            claimed = steps[segment.first_step :]
            slot[position[segment.path], claimed] = row * self.n_steps + claimed - segment.first_step
        return rows + later, slot


def count_choices(space: spaces.Space[Any]) -> int:
    """Columns of a discrete action's mask; 0 for a continuous one."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return int(space.nvec.sum()) if isinstance(space, spaces.MultiDiscrete) else 0


def _size(space: spaces.Space[Any]) -> int:
    """Numbers of one action."""
    return int(np.prod(space.shape)) if space.shape else 1


def gae(
    reward: Float32, value: Float64, next_value: Float64, ends: Bool, gamma: float, gae_lambda: float
) -> Float64:
    """Generalised advantage estimation (Schulman et al. 2016, eqs. 11-16).

    Args:
        reward: (T, N).
        value: (T, N), V of the observation before each step.
        next_value: (T, N), V of the observation after it and before any restart; 0 where terminated.
        ends: (T, N), where an episode ended: what comes after belongs to another.
        gamma, gae_lambda: discount and trace decay.

    Returns:
        (T, N): delta_t = r_t + gamma V(s_t+1) - V(s_t); A_t = delta_t + gamma lambda A_t+1 within an episode.
    """
    advantages = reward + gamma * next_value - value
    decay = np.where(ends, 0.0, gamma * gae_lambda)
    for step in range(len(reward) - 2, -1, -1):
        advantages[step] += decay[step] * advantages[step + 1]
    return advantages
