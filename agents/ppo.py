"""PPO that encodes each bar once: SB3's PPO with its own rollout and update over whole stretches of tape."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from perpgym.agents.collect import DriverFactory, FlatDriver, collect
from perpgym.agents.descent import Descent
from perpgym.agents.forecast import ForecastTask
from perpgym.agents.objective import Objective
from perpgym.agents.path_algorithm import EpisodeMonitor, PathAlgorithm, bind_policy
from perpgym.agents.ppo_config import PPOConfig
from perpgym.agents.ppo_loss import KL, STATISTICS, PPOLoss, epoch_statistics
from perpgym.agents.rollout import Minibatch, PathRollout
from perpgym.agents.schedule import Schedule
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.action_heads import GaussianActions
from perpgym.policies.actor_critic import PerpActorCriticPolicy

__all__ = ["PPOConfig", "PerpPPO"]


class PerpPPO(PathAlgorithm, PPO):
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

    stock = "stable_baselines3.PPO"
    config: PPOConfig
    policy: PerpActorCriticPolicy
    rollout_buffer: PathRollout  # type: ignore[assignment]
    config_class = PPOConfig
    rollout_class: type[PathRollout] = PathRollout
    objective_class: type[Objective] = Objective
    driver_factory: DriverFactory = staticmethod(FlatDriver)

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
        self.config = config = self.own_config(config)
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
            rollout_buffer_class=self.rollout_class,  # type: ignore[arg-type]
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
            self.rollout_buffer_kwargs = self._rollout_kwargs()
        super()._setup_model()
        seed = torch.seed() if self.seed is None else self.seed
        # own generators: nothing that a callback draws changes the run
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.shuffle = np.random.default_rng(seed)
        self.descent = Descent(self.policy.optimizer, self.max_grad_norm)
        self.entropy_schedule = Schedule(self.config.ent_coef, self.config.ent_coef_schedule)
        self.objective = self.objective_class(self.policy, self.config)
        if self.env is not None:
            self._take_env()

    def _rollout_kwargs(self) -> dict[str, Any]:
        """What the rollout must know beside what SB3 tells it."""
        return {"n_paths": self.native.n_paths}

    def _take_env(self) -> None:
        bind_policy(self.policy, self.native)
        if not self.policy.has_own_encoders:
            self.rollout_buffer.keep_embeddings(self.policy.features_extractor.embedding_size)
        self.forecast_task = self._make_forecast_task()
        self.monitor = EpisodeMonitor(self.native.num_envs)

    def _make_forecast_task(self) -> ForecastTask | None:
        """What the forecasts are trained on; None without them.

        Raises:
            ValueError: a setting of agent, policy and env contradicts another.
        """
        native, horizons = self.native, self.policy.config.forecast_bars
        if self.config.compares_accounts and native.accounts_per_path < 2:
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
        return ForecastTask.of_env(native, horizons, self.device)

    @property
    def steps_per_rollout(self) -> int:
        """Decisions of all accounts in a rollout."""
        return self.n_steps * self.n_envs

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
        mine = [
            "descent",
            "driver_factory",
            "entropy_schedule",
            "forecast_task",
            "noise",
            "objective",
            "shuffle",
        ]
        return [*super()._excluded_save_params(), *mine, "monitor"]

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
            infos = self.monitor.infos(env.buffers, dones)
            if infos is not self.monitor.nothing:
                self._update_info_buffer(infos, dones)
            callback.update_locals(
                {"self": self, "env": env, "rewards": env.buffers.reward, "dones": dones, "infos": infos}
            )
            return callback.on_step()

        self.objective.tokens = 0
        if not collect(
            self.objective, env.native, env.buffers, rollout_buffer, self.noise, on_step, self.driver_factory
        ):
            return False
        self._last_obs = env.native.observation(env.buffers)
        self.logger.record("time/rollout_seconds", time.perf_counter() - started)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

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
        if isinstance(self.policy.action_heads, GaussianActions):
            self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))
        self.logger.record("train/clip_range", self._clip_range())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/ent_coef", self.entropy_schedule(self._current_progress_remaining))
        self.logger.record("train/tokens_per_step", self.objective.tokens / rollout.reward.size)

    # --- resuming ---

    def own_state(self) -> dict[str, Any]:
        """The generator of the exploration."""
        return {"noise": self.noise.get_state()}

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`own_state`."""
        self.noise.set_state(state["noise"].cpu())
