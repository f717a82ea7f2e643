"""Stable-Baselines3's face on PerpVecEnv: the VecEnv contract, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from perpgym.envs.spaces import LEDGER
from perpgym.envs.vector import PerpVecEnv


class SB3PerpVecEnv(VecEnv):
    """Adapter with ``terminal_observation`` and ``TimeLimit.truncated``, as SB3's algorithms expect them.

    ``native`` is the wrapped env; algorithms that know it call ``native.step_into`` and skip the copies.
    Every finished episode reports ``episode`` (return ``r``, length ``l``) as SB3's ``VecMonitor`` does.

    Attributes:
        buffers: what the newest step wrote.
        returns, lengths: (N,) of the running episodes.
    """

    def __init__(self, native: PerpVecEnv) -> None:
        self.native = native
        self.buffers = native.make_buffers()
        self._actions: NDArray[np.float32] = np.zeros((native.num_envs, native.action_dim), np.float32)
        self.returns = np.zeros(native.num_envs)
        self.lengths = np.zeros(native.num_envs, np.int64)
        super().__init__(native.num_envs, native.single_observation_space, native.single_action_space)

    def reset(self) -> dict[str, NDArray[Any]]:
        """Start every path anew; the seed given to ``seed()`` is used once."""
        seed = self._seeds[0]
        self.native.reset_into(self.buffers, seed)
        self.returns[:], self.lengths[:] = 0.0, 0
        self._reset_seeds()
        self._reset_options()
        return self.native.observation(self.buffers)

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Remember the actions."""
        self._actions = np.ascontiguousarray(actions, np.float32).reshape(self.num_envs, -1)

    def step_wait(self) -> VecEnvStepReturn:
        """Book one bar and report in SB3's form."""
        out = self.buffers
        self.native.step_into(self._actions, out)
        self.returns += out.reward
        self.lengths += 1
        done = out.terminated | out.truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            final = self.native.final_observation(out)
            for i in np.flatnonzero(done):
                infos[i] = {
                    "terminal_observation": {k: v[i] for k, v in final.items()},
                    "TimeLimit.truncated": bool(out.truncated[i]),
                    "episode": {"r": float(self.returns[i]), "l": int(self.lengths[i]), "t": 0.0},
                    "equity": float(out.ledger[i, LEDGER["equity"]]),
                }
            self.returns[done], self.lengths[done] = 0.0, 0
        return self.native.observation(out), out.reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The batch env's attribute, once an account."""
        if attr_name == "render_mode":
            return [None for _ in self._get_indices(indices)]
        return [getattr(self.native, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: accounts of a batch share every setting."""
        raise NotImplementedError("accounts of a PerpVecEnv share every setting; build a new env instead")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of the batch env once; its result for every account, of masks each account's own."""
        result = getattr(self.native, method_name)(*args, **kwargs)
        is_by_account = method_name == "action_masks"
        return [result[i] if is_by_account else result for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """False throughout, except that the adapter already monitors episodes."""
        return [wrapper_class.__name__ in ("Monitor", "VecMonitor") for _ in self._get_indices(indices)]

    def _get_indices(self, indices: int | Iterable[int] | None) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices
