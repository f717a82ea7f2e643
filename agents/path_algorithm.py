"""What every algorithm on paths of a shared tape has in common: its env, its checkpoints, its episodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from perpgym.agents.artifact import TrainedPolicy
from perpgym.agents.budget import Budget
from perpgym.agents.checkpoint import read_checkpoint, write_checkpoint
from perpgym.agents.training_state import restore_training_state, training_state
from perpgym.data.tape import Tape
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.envs.vector import PerpVecEnv


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Settings of an algorithm; ``agents.algorithms`` knows which class belongs to which settings."""


class ReadsTape(Protocol):
    """A policy that is shown bar indices."""

    @property
    def receptive_field(self) -> int:
        """R, bars."""
        ...

    def bind(self, tape: Tape) -> None:
        """Let bar indices refer to ``tape``."""
        ...


def wrap_env(env: Any, algorithm: str, stock: str) -> SB3PerpVecEnv:
    """SB3's face of a batch env with index observations.

    Args:
        env: what the user passed.
        algorithm: name of the class, for the error.
        stock: the library's class for any other env.

    Raises:
        TypeError: it is no ``PerpVecEnv``.
        ValueError: it shows windows.
    """
    if isinstance(env, PerpVecEnv):
        env = env.as_sb3()
    if not isinstance(env, SB3PerpVecEnv):
        raise TypeError(
            f"{algorithm} trains on PerpVecEnv or PerpVecEnv.as_sb3(), this was {type(env).__name__}; "
            f"for any other env, or a wrapped one, use {stock}"
        )
    if env.native.with_windows:
        raise ValueError(
            f"{algorithm} reads the market from the tape: build PerpVecEnv with with_windows=False"
        )
    return env


def bind_policy(policy: ReadsTape, env: PerpVecEnv) -> None:
    """Let the policy read the env's tape.

    Raises:
        ValueError: the env may start where the policy's window does not fit.
    """
    if env.config.window_bars < policy.receptive_field:
        raise ValueError(
            f"the policy sees {policy.receptive_field} bars, the env only provides for "
            f"{env.config.window_bars}: set window_bars={policy.receptive_field} in the env's config"
        )
    policy.bind(env.tape)


class EpisodeMonitor:
    """What SB3's ``VecMonitor`` reports, without its copies: return and length of every finished episode."""

    def __init__(self, n_accounts: int) -> None:
        self.returns = np.zeros(n_accounts)
        self.lengths = np.zeros(n_accounts, np.int64)
        self.nothing: list[dict[str, Any]] = [{} for _ in range(n_accounts)]

    def restart(self) -> None:
        """Forget the running episodes."""
        self.returns[:], self.lengths[:] = 0.0, 0

    def infos(self, out: StepBuffers, dones: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """SB3's infos of the step just booked; ``nothing`` itself where no episode ended."""
        self.returns += out.reward
        self.lengths += 1
        if not dones.any():
            return self.nothing
        infos: list[dict[str, Any]] = [{} for _ in range(dones.size)]
        for i in np.flatnonzero(dones):
            infos[i] = {
                "episode": {"r": float(self.returns[i]), "l": int(self.lengths[i]), "t": 0.0},
                "TimeLimit.truncated": bool(out.truncated[i]),
            }
        self.returns[dones], self.lengths[dones] = 0.0, 0
        return infos


class PathAlgorithm(BaseAlgorithm):
    """Stands before one of SB3's algorithms: takes a batch env, and goes on with a run that was stopped.

    Attributes:
        stock: the library's own class, for any other env.
        config_class: of its settings.
        config: settings.
        shuffle: draws minibatches.
        monitor: counts episodes.
        budget: processor time that it may take; None, as everywhere but in a comparison, for no limit.
    """

    stock: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    config: AgentConfig
    shuffle: np.random.Generator
    monitor: EpisodeMonitor
    budget: Budget | None = None
    # between an update and the next rollout
    _is_resumable = True

    @classmethod
    def own_config(cls, config: Any) -> Any:
        """The settings that were given, or the defaults.

        Raises:
            TypeError: they are another algorithm's.
        """
        config = cls.config_class() if config is None else config
        if not isinstance(config, cls.config_class):
            raise TypeError(
                f"{cls.__name__} takes a {cls.config_class.__name__}, was a {type(config).__name__}"
            )
        return config

    @property
    def native(self) -> PerpVecEnv:
        """The batch env under SB3's face."""
        assert isinstance(self.env, SB3PerpVecEnv)
        return self.env.native

    @property
    def trained(self) -> TrainedPolicy:
        """The policy, as whoever runs it knows it."""
        return cast(TrainedPolicy, self.policy)

    @property
    def steps_per_rollout(self) -> int:
        """Decisions of all accounts between two moments at which the run can be resumed."""
        raise NotImplementedError

    @classmethod
    def _wrap_env(cls, env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """SB3's hook that turns what the user passed into a VecEnv."""
        del verbose, monitor_wrapper
        return wrap_env(env, cls.__name__, cls.stock)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        if self._last_obs is not before:
            self._after_reset()
        return result

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        if self.budget is not None:
            # whichever ends the run first
            left = max(0.0, 1.0 - self.budget.share)
            self._current_progress_remaining = min(self._current_progress_remaining, left)

    def _after_reset(self) -> None:
        """SB3 has reset the env."""
        self.monitor.restart()

    def save_checkpoint(self, path: Path) -> None:
        """Write all that the next rollout depends on.

        Args:
            path: the file; replaced whole or not at all.

        Raises:
            OSError: the disk is full; a previous checkpoint at ``path`` is intact.
            RuntimeError: called within a rollout or its update, which cannot be resumed.
        """
        if not self._is_resumable:
            raise RuntimeError(
                "a run can be resumed between an update and the next rollout: call save_checkpoint in a "
                "callback's _on_rollout_start, or after learn() has come to its end"
            )
        write_checkpoint(path, training_state(self))

    def load_checkpoint(self, path: Path) -> None:
        """Continue the run that wrote ``path``, bit for bit.

        Then call ``learn`` with the steps that are left and ``reset_num_timesteps=False``.

        Raises:
            DamagedFileError: the file is not what was written.
            ValueError: it belongs to another configuration, network or tape.
        """
        restore_training_state(self, read_checkpoint(path))

    def learner_state(self) -> dict[str, Any]:
        """Weights, optimiser and the generator of minibatches, as plain data."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.policy.optimizer.state_dict(),
            "shuffle": self.shuffle.bit_generator.state,
        }

    def restore_learner_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`learner_state`."""
        self.policy.load_state_dict(state["policy"])
        self.policy.optimizer.load_state_dict(state["optimizer"])
        self.shuffle.bit_generator.state = state["shuffle"]

    def own_state(self) -> dict[str, Any]:
        """What this algorithm's next rollout depends on beside weights, env and counters, as plain data."""
        raise NotImplementedError

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`own_state`."""
        raise NotImplementedError

    def restore_env(self, state: dict[str, Any]) -> None:
        """Put the env where ``PerpVecEnv.state_dict`` was taken, and observe it."""
        assert isinstance(self.env, SB3PerpVecEnv)
        self.native.load_state_dict(state)
        self.native.observe_into(self.env.buffers)
        self._last_obs = self.native.observation(self.env.buffers)
