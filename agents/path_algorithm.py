"""What every algorithm on paths of a shared tape has in common: its env, and what episodes report."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from perpgym.data.tape import Tape
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.envs.vector import PerpVecEnv


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


def native_of(env: VecEnv | None) -> PerpVecEnv:
    """The batch env under SB3's face."""
    assert isinstance(env, SB3PerpVecEnv)
    return env.native


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
