"""PPO that encodes each bar once: SB3's PPO with its own rollout and update over whole stretches of tape."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from perpgym.agents.checkpoint import read_checkpoint, write_checkpoint
from perpgym.agents.collect import collect
from perpgym.agents.descent import Descent
from perpgym.agents.forecast import ForecastTask
from perpgym.agents.objective import Objective
from perpgym.agents.ppo_config import PPOConfig
from perpgym.agents.ppo_loss import KL, STATISTICS, PPOLoss, epoch_statistics
from perpgym.agents.rollout import Minibatch, PathRollout
from perpgym.agents.schedule import Schedule
from perpgym.agents.training_state import restore_training_state, training_state
from perpgym.data.bars import CLOSE
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.actor_critic import PerpActorCriticPolicy

__all__ = ["PPOConfig", "PerpPPO"]


class PerpPPO(PPO):
    """Proximal policy optimisation (Schulman et al. 2017) over paths of a shared tape.

    ``learn``, ``save``, ``load``, ``predict``, callbacks and TensorBoard are SB3's. A rollout encodes each
    path's T + 1 bars in one pass before it steps; a minibatch holds whole paths and encodes each once for
    all its accounts. ``docs/algorithms/ppo.md`` lists every detail.

    Args:
        policy: the policy class.
        env: index observations; ``PerpVecEnv`` or its ``as_sb3()``.
        config: of the algorithm.
        policy_kwargs: ``config`` (PolicyConfig), ``market_scaler`` and ``risk_scaler`` of the policy.
        tensorboard_log: folder, None for none.
        stats_window_size: episodes that ``rollout/ep_rew_mean`` averages.
        verbose: 0 silent, 1 prints SB3's tables.
        seed: of weights, exploration, minibatches and the env.
        device: torch's name, ``auto`` takes the accelerator if there is one.
    """

    policy: PerpActorCriticPolicy
    rollout_buffer: PathRollout  # type: ignore[assignment]

    def __init__(
        self,
        policy: type[PerpActorCriticPolicy],
        env: PerpVecEnv | SB3PerpVecEnv | None,
        *,
        config: PPOConfig | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        stats_window_size: int = 100,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.config = config = config or PPOConfig()
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=Schedule(config.learning_rate, config.learning_rate_schedule),
            n_steps=config.n_steps,
            batch_size=config.n_steps,  # replaced below: SB3 would warn about remainders that do not arise
            n_epochs=config.n_epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_range,
            normalize_advantage=config.normalize_advantage,
            ent_coef=config.ent_coef,
            vf_coef=config.vf_coef,
            max_grad_norm=config.max_grad_norm,
            rollout_buffer_class=PathRollout,  # type: ignore[arg-type]
            target_kl=config.target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.batch_size = config.batch_size
        if _init_setup_model:
            self._setup_model()

    # --- how SB3 builds, saves and loads it ---

    def _setup_model(self) -> None:
        if self.env is not None:
            self.rollout_buffer_kwargs = {"n_paths": self.native.n_paths}
        super()._setup_model()
        seed = torch.seed() if self.seed is None else self.seed
        # own generators: nothing that a callback draws changes the run
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.shuffle = np.random.default_rng(seed)
        self.descent = Descent(self.policy.optimizer, self.max_grad_norm)
        self.entropy_schedule = Schedule(self.config.ent_coef, self.config.ent_coef_schedule)
        self.objective = Objective(self.policy, self.config)
        self._is_resumable = True
        if self.env is not None:
            self._take_env()

    def _take_env(self) -> None:
        native = self.native
        reach = self.policy.receptive_field
        if native.config.window_bars < reach:
            raise ValueError(
                f"the policy sees {reach} bars, the env only provides for {native.config.window_bars}: "
                f"set window_bars={reach} in the env's config"
            )
        self.policy.bind(native.tape)
        if not self.policy.has_own_encoders:
            self.rollout_buffer.keep_embeddings(self.policy.features_extractor.embedding_size)
        self.forecast_task = self._make_forecast_task()
        self.episode_return = np.zeros(native.num_envs)
        self.episode_length = np.zeros(native.num_envs, np.int64)
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(native.num_envs)]

    def _make_forecast_task(self) -> ForecastTask | None:
        """What the forecasts are trained on; None without them.

        Raises:
            ValueError: a setting of agent, policy and env contradicts another.
        """
        native, horizons = self.native, self.policy.config.forecast_bars
        if self.config.path_baseline and native.accounts_per_path < 2:
            raise ValueError(
                "path_baseline compares the accounts of a path, there is 1: "
                "set accounts_per_path to 2 or more, or path_baseline=False"
            )
        if self.config.forecast_coef == 0.0:
            return None
        if not horizons or min(horizons) > self.n_steps:
            raise ValueError(
                f"forecast_coef={self.config.forecast_coef} trains forecasts over at most "
                f"n_steps={self.n_steps} bars, the policy's forecast_bars are {list(horizons)}: "
                "give it one, e.g. [8], or set forecast_coef=0"
            )
        return ForecastTask(native.tape, horizons, 1.0 / _deviations(native), self.device)

    @property
    def native(self) -> PerpVecEnv:
        """The batch env under SB3's face."""
        assert isinstance(self.env, SB3PerpVecEnv)
        return self.env.native

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """SB3's hook that turns what the user passed into a VecEnv."""
        del verbose, monitor_wrapper
        if isinstance(env, PerpVecEnv):
            env = env.as_sb3()
        if not isinstance(env, SB3PerpVecEnv):
            raise TypeError(
                f"PerpPPO trains on PerpVecEnv or PerpVecEnv.as_sb3(), this was {type(env).__name__}; "
                "for any other env, or a wrapped one, use stable_baselines3.PPO"
            )
        if env.native.with_windows:
            raise ValueError(
                "PerpPPO reads the market from the tape: build PerpVecEnv with with_windows=False"
            )
        return env

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Train on another env, with the same number of accounts and paths."""
        super().set_env(env, force_reset)
        if self.native.n_paths != self.rollout_buffer.n_paths:
            raise ValueError(
                f"the model was built for {self.rollout_buffer.n_paths} paths, the env has "
                f"{self.native.n_paths}: use PerpPPO.load(path, env)"
            )
        self._take_env()

    def _excluded_save_params(self) -> list[str]:
        mine = ["descent", "entropy_schedule", "forecast_task", "noise", "objective", "shuffle"]
        mine += ["episode_return", "episode_length", "_no_infos"]
        return [*super()._excluded_save_params(), *mine]

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        if self._last_obs is not before:  # SB3 has reset the env
            self.episode_return[:], self.episode_length[:] = 0.0, 0
        return result

    # --- rollout ---

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        """Encode every path's stretch once, then step all accounts ``n_rollout_steps`` times.

        Returns:
            False if a callback asked to stop.
        """
        assert isinstance(env, SB3PerpVecEnv)
        assert n_rollout_steps == rollout_buffer.n_steps
        started = time.perf_counter()
        self.policy.set_training_mode(False)
        self._is_resumable = True
        callback.on_rollout_start()
        self._is_resumable = False

        def on_step(dones: NDArray[np.bool_]) -> bool:
            self.num_timesteps += env.num_envs
            infos = self._episode_infos(env.buffers, dones)
            if infos is not self._no_infos:
                self._update_info_buffer(infos, dones)
            callback.update_locals(
                {"self": self, "env": env, "rewards": env.buffers.reward, "dones": dones, "infos": infos}
            )
            return callback.on_step()

        self.objective.tokens = 0
        if not collect(self.objective, env.native, env.buffers, rollout_buffer, self.noise, on_step):
            return False
        self._last_obs = env.native.observation(env.buffers)
        self.logger.record("time/rollout_seconds", time.perf_counter() - started)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _episode_infos(self, out: StepBuffers, dones: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """What ``VecMonitor`` would report: return and length of every episode that ended."""
        self.episode_return += out.reward
        self.episode_length += 1
        if not dones.any():
            return self._no_infos
        infos: list[dict[str, Any]] = [{} for _ in range(dones.size)]
        for i in np.flatnonzero(dones):
            infos[i] = {
                "episode": {"r": float(self.episode_return[i]), "l": int(self.episode_length[i]), "t": 0.0},
                "TimeLimit.truncated": bool(out.truncated[i]),
            }
        self.episode_return[dones], self.episode_length[dones] = 0.0, 0
        return infos

    # --- update ---

    def train(self) -> None:
        """``n_epochs`` passes over the rollout in minibatches of whole paths."""
        started = time.perf_counter()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        rollout = self.rollout_buffer
        per_path = rollout.n_steps * rollout.n_accounts
        paths_per_batch = max(1, self.batch_size // per_path)
        rollout.weigh_advantages(path_baseline=self.config.path_baseline, normalise=self.normalize_advantage)
        if self.config.popart:
            self.policy.value_head.rescale(rollout.returns.reshape(-1, 1))
        statistics: list[torch.Tensor] = []
        for _ in range(self.n_epochs):
            statistics.append(self._epoch(paths_per_batch))
            self._n_updates += 1
            # the one moment of an epoch at which the host waits for the device
            if self.target_kl is not None and float(statistics[-1][KL]) > 1.5 * self.target_kl:
                break
        if self.forecast_task is not None:
            self._update_forecasts(self.forecast_task, paths_per_batch)
        self._record(torch.stack(statistics), rollout)
        self.logger.record("time/update_seconds", time.perf_counter() - started)
        self._is_resumable = True

    def _epoch(self, paths_per_batch: int) -> torch.Tensor:
        """One pass over the rollout; returns (6,) statistics in the order of ``STATISTICS``."""
        terms, log_ratios = [], []
        for batch in self.rollout_buffer.minibatches(paths_per_batch, self.shuffle):
            loss = self.loss(batch)
            self.descent.step(loss.total)
            terms.append(loss.terms)
            log_ratios.append(loss.log_ratio.flatten())
        return epoch_statistics(terms, log_ratios, self._clip_range())

    def loss(self, batch: Minibatch) -> PPOLoss:
        """PPO's loss of a minibatch, with the settings that hold at this moment of the run."""
        ent_coef = self.entropy_schedule(self._current_progress_remaining)
        return self.objective.loss(
            batch, self.rollout_buffer.n_steps, clip_range=self._clip_range(), ent_coef=ent_coef
        )

    def _update_forecasts(self, task: ForecastTask, paths_per_batch: int) -> None:
        """One pass of the forecasts' own loss, which alone moves the encoders.

        A phase of its own, after the policy's (Cobbe et al. 2021): forecasts that moved during the policy's
        epochs would move the actions, and be taken for a change of policy.
        """
        rollout, losses = self.rollout_buffer, []
        for batch in rollout.minibatches(paths_per_batch, self.shuffle):
            encoded = self.objective.stretch_contexts(batch, rollout.n_steps)  # S T C
            forecast = self.policy.features_extractor.split(encoded).forecasts  # S T H
            loss = task.loss(forecast, batch.first_bar, batch.length)
            self.descent.step(self.config.forecast_coef * loss)
            losses.append(loss.detach())
        self.logger.record("train/forecast_loss", float(torch.stack(losses).mean()))

    def _clip_range(self) -> float:
        return float(self.clip_range(self._current_progress_remaining))  # type: ignore[operator]

    def _record(self, statistics: torch.Tensor, rollout: PathRollout) -> None:
        """SB3's keys, and the tokens encoded for each account step, in rollout and all epochs."""
        for name, value in zip(STATISTICS, statistics.mean(0).tolist(), strict=True):
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/explained_variance", rollout.explained_variance())
        self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))
        self.logger.record("train/clip_range", self._clip_range())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/ent_coef", self.entropy_schedule(self._current_progress_remaining))
        self.logger.record("train/tokens_per_step", self.objective.tokens / rollout.reward.size)

    # --- resuming ---

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

    def restore_env(self, state: dict[str, Any]) -> None:
        """Put the env where ``PerpVecEnv.state_dict`` was taken, and observe it."""
        assert isinstance(self.env, SB3PerpVecEnv)
        self.native.load_state_dict(state)
        self.native.observe_into(self.env.buffers)
        self._last_obs = self.native.observation(self.env.buffers)


def _deviations(env: PerpVecEnv) -> NDArray[np.float64]:
    """(A,) deviation of each contract's log return per bar over the env's period, where it is valid."""
    returns = np.diff(np.log(env.tape.mark[env.first_bar : env.end_bar, :, CLOSE]), axis=0)  # n A
    is_valid = env.tape.is_valid[env.first_bar + 1 : env.end_bar]
    out = np.ones(returns.shape[1])
    for asset in range(out.size):
        # a contract that the period does not know has no target either
        if is_valid[:, asset].any():
            out[asset] = max(float(returns[is_valid[:, asset], asset].std()), 1e-12)
    return out
