"""The libraries' own algorithms on paths of a shared tape: the controls that ours must beat."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import torch
from sb3_contrib import TQC, MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.common.vec_env import VecEnv

from perpgym.agents.path_algorithm import EpisodeMonitor, PathAlgorithm, bind_policy
from perpgym.agents.stock_config import (
    A2CConfig,
    MaskablePPOConfig,
    RecurrentPPOConfig,
    SACConfig,
    StockConfig,
    TQCConfig,
)
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.stock import StockPolicy

_REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class _Begun(BaseCallback):
    """Told of a rollout's steps before any other callback."""

    def _on_step(self) -> bool:
        cast(StockAlgorithm, self.model)._is_resumable = False
        return True


class StockAlgorithm(PathAlgorithm):
    """Stands before a library's algorithm, whose rollouts and updates stay as they are.

    What is added is what every run of perpgym has: a batch env, a tape that the policy reads, and a
    checkpoint from which a run goes on bit for bit. ``docs/algorithms/controls.md`` says how they are used.

    Args:
        policy: of :mod:`perpgym.policies.stock`.
        env: index observations; ``PerpVecEnv`` or its ``as_sb3()``.
        config: of the algorithm; None for the library's defaults.
        policy_kwargs: ``config`` (PolicyConfig), ``market_scaler`` and ``risk_scaler`` of the policy.
        tensorboard_log, stats_window_size, verbose, seed, device: SB3's.
    """

    config_class: ClassVar[type[StockConfig]]

    def __init__(
        self,
        policy: type[StockPolicy],
        env: PerpVecEnv | SB3PerpVecEnv | None,
        *,
        config: StockConfig | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        stats_window_size: int = 100,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.config = config = self.own_config(config)
        cast(Any, super()).__init__(
            policy,
            env,
            **config.arguments(),
            policy_kwargs={**config.policy_arguments(), **(policy_kwargs or {})},
            tensorboard_log=tensorboard_log,
            stats_window_size=stats_window_size,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    @property
    def steps_per_rollout(self) -> int:
        """Decisions of all accounts between two callbacks at the start of a rollout."""
        if isinstance(self, OnPolicyAlgorithm):
            return self.n_steps * self.n_envs
        # SB3 has turned the number into a pair with its unit
        return int(cast(Any, self).train_freq.frequency) * self.n_envs

    # --- how SB3 builds and saves it ---

    def _setup_model(self) -> None:
        super()._setup_model()  # type: ignore[safe-super]
        if self.env is not None:
            self._take_env()

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Train on another env with the same number of accounts."""
        super().set_env(env, force_reset)
        self._take_env()

    def _take_env(self) -> None:
        bind_policy(cast(StockPolicy, self.policy), self.native)
        assert isinstance(self.env, SB3PerpVecEnv)
        # SB3's face counts its episodes itself: these are its own arrays
        self.monitor = EpisodeMonitor(0)
        self.monitor.returns, self.monitor.lengths = self.env.returns, self.env.lengths

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "monitor"]

    # --- when it can be resumed ---

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> Any:
        """The library's own; from its first step on, the run cannot be resumed until an update is over."""
        self._is_resumable = True
        both = CallbackList([_Begun(), callback])
        # init_callback would initialise the other one a second time
        both.model = both.callbacks[0].model = cast(BaseAlgorithm, self)
        found = cast(Any, super()).collect_rollouts(env, both, *args, **kwargs)
        if isinstance(found, RolloutReturn) and found.continue_training:
            # before learning starts no update follows
            self._is_resumable = self.num_timesteps <= cast(Any, self).learning_starts
        return found

    def train(self, *args: Any, **kwargs: Any) -> None:
        """The library's own."""
        cast(Any, super()).train(*args, **kwargs)
        self._is_resumable = True

    # --- resuming ---

    def learner_state(self) -> dict[str, Any]:
        """Every network and optimiser that SB3's ``save`` knows of, and its loose tensors."""
        tensors = self._get_torch_save_params()[1]
        return {
            "parameters": self.get_parameters(),
            "tensors": {name: getattr(self, name).detach().clone() for name in tensors},
        }

    def restore_learner_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`learner_state`."""
        self.set_parameters(state["parameters"])
        for name, value in state["tensors"].items():
            getattr(self, name).data.copy_(value)

    def own_state(self) -> dict[str, Any]:
        """The last step's flags, an LSTM's state, the replay, and generators."""
        state: dict[str, Any] = {
            "episode_starts": np.asarray(self._last_episode_starts),
            "episode_num": self._episode_num,
            "action_space_rng": self.action_space.np_random.bit_generator.state,
        }
        if (memory := getattr(self, "_last_lstm_states", None)) is not None:
            state["lstm"] = [list(pair) for pair in memory]
        if (replay := getattr(self, "replay_buffer", None)) is not None:
            state["replay"] = _replay_state(replay)
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`own_state`."""
        self._last_episode_starts = state["episode_starts"]
        self._episode_num = state["episode_num"]
        self.action_space.np_random.bit_generator.state = state["action_space_rng"]
        if "lstm" in state:
            pairs = [tuple(tensor.to(self.device) for tensor in pair) for pair in state["lstm"]]
            cast(Any, self)._last_lstm_states = RNNStates(*pairs)
        if "replay" in state:
            _restore_replay(cast(Any, self).replay_buffer, state["replay"])
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)


class StockA2C(StockAlgorithm, A2C):
    """``stable_baselines3.A2C``."""

    stock = "stable_baselines3.A2C"
    config_class = A2CConfig


class StockMaskablePPO(StockAlgorithm, MaskablePPO):
    """``sb3_contrib.MaskablePPO``, for ``action=ladder`` and ``heads``."""

    stock = "sb3_contrib.MaskablePPO"
    config_class = MaskablePPOConfig


class StockRecurrentPPO(StockAlgorithm, RecurrentPPO):
    """``sb3_contrib.RecurrentPPO``."""

    stock = "sb3_contrib.RecurrentPPO"
    config_class = RecurrentPPOConfig


class StockSAC(StockAlgorithm, SAC):
    """``stable_baselines3.SAC``, for continuous actions."""

    stock = "stable_baselines3.SAC"
    config_class = SACConfig


class StockTQC(StockAlgorithm, TQC):
    """``sb3_contrib.TQC``, for continuous actions."""

    stock = "sb3_contrib.TQC"
    config_class = TQCConfig


def _replay_state(replay: DictReplayBuffer) -> dict[str, Any]:
    """The part of SB3's replay that has been filled."""
    state: dict[str, Any] = {"pos": replay.pos, "full": replay.full}
    for name in _REPLAYED:
        held = getattr(replay, name)
        if isinstance(held, dict):
            state[name] = {key: column[: replay.size()] for key, column in held.items()}
        else:
            state[name] = held[: replay.size()]
    return state


def _restore_replay(replay: DictReplayBuffer, state: dict[str, Any]) -> None:
    replay.pos, replay.full = state["pos"], state["full"]
    for name in _REPLAYED:
        held, saved = getattr(replay, name), state[name]
        pairs = [(held[key], saved[key]) for key in saved] if isinstance(held, dict) else [(held, saved)]
        for column, values in pairs:
            column[: len(values)] = values
