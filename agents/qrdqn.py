"""QR-DQN that encodes each bar once: sb3-contrib's, with a replay and an update over whole stretches."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import QRDQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from perpgym.agents.descent import Descent
from perpgym.agents.explore import Explorer, random_allowed
from perpgym.agents.forecast import ForecastTask
from perpgym.agents.path_algorithm import EpisodeMonitor, PathAlgorithm, bind_policy
from perpgym.agents.qrdqn_config import QRDQNConfig
from perpgym.agents.quantile_loss import QuantileObjective
from perpgym.agents.replay import StretchBatch, StretchReplay
from perpgym.agents.schedule import Schedule
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.quantile import PerpQuantilePolicy, ladder_shape
from perpgym.policies.quantile_net import PerpQuantileNet

__all__ = ["PerpQRDQN", "QRDQNConfig"]

# what SB3 counts beside the steps of every algorithm
_COUNTERS = ("exploration_rate", "_n_calls", "_episode_num")

_EMPTY = StretchReplay(n_paths=1, n_accounts=1, capacity=2, state_size=1, n_branches=1, n_levels=1)


class PerpQRDQN(PathAlgorithm, QRDQN):
    """Quantile-regression DQN (Dabney et al. 2018) over the ladder, on paths of a shared tape.

    ``learn``, ``save``, ``load``, ``predict``, callbacks, the exploration schedule and TensorBoard are SB3's.
    A round encodes each path's bars in one pass before it steps; an update encodes each stretch once for both
    its bars and its accounts. ``docs/algorithms/qrdqn.md`` lists every detail.

    Args:
        policy: the policy class.
        env: index observations and ``action="ladder"``; ``PerpVecEnv`` or its ``as_sb3()``.
        config: of the algorithm.
        policy_kwargs: ``config`` (PolicyConfig), ``market_scaler`` and ``risk_scaler`` of the policy.
        tensorboard_log: folder, None for none.
        stats_window_size: episodes that ``rollout/ep_rew_mean`` averages.
        verbose: 0 silent, 1 prints SB3's tables.
        seed: of weights, exploration, replay and the env.
        device: torch's name, ``auto`` takes the accelerator if there is one.
    """

    stock = "sb3_contrib.QRDQN"
    config: QRDQNConfig
    policy: PerpQuantilePolicy  # type: ignore[assignment]
    quantile_net: PerpQuantileNet  # type: ignore[assignment]
    quantile_net_target: PerpQuantileNet  # type: ignore[assignment]
    replay_buffer: StretchReplay | None  # type: ignore[assignment]
    config_class: ClassVar[type[QRDQNConfig]] = QRDQNConfig
    # names in TensorBoard of what an objective reports beside its total
    reported: ClassVar[tuple[str, ...]] = ("train/loss", "train/forecast_loss", "train/target")

    def __init__(
        self,
        policy: type[PerpQuantilePolicy],
        env: PerpVecEnv | SB3PerpVecEnv | None,
        *,
        config: QRDQNConfig | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        stats_window_size: int = 100,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.config = config = self.own_config(config)
        # QR-DQN's own constructor takes one ladder; several contracts have one each
        super(QRDQN, self).__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=Schedule(config.learning_rate, config.learning_rate_schedule),
            buffer_size=config.buffer_size,
            learning_starts=config.learning_starts,
            batch_size=config.batch_size,
            tau=config.tau,
            gamma=config.gamma,
            train_freq=config.train_freq,
            gradient_steps=config.gradient_steps,
            replay_buffer_class=StretchReplay,  # type: ignore[arg-type]
            policy_kwargs={"n_quantiles": config.n_quantiles, "alpha": config.alpha, **(policy_kwargs or {})},
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Discrete, spaces.MultiDiscrete),
            support_multi_env=True,
        )
        self.exploration_initial_eps = config.exploration_initial_eps
        self.exploration_final_eps = config.exploration_final_eps
        self.exploration_fraction = config.exploration_fraction
        self.exploration_rate = config.exploration_initial_eps
        self.target_update_interval = config.target_update_interval
        self.max_grad_norm = config.max_grad_norm
        self._n_calls = 0
        if _init_setup_model:
            self._setup_model()

    @property
    def steps_per_rollout(self) -> int:
        """Decisions of all accounts in a rollout."""
        return cast(TrainFreq, self.train_freq).frequency * self.n_envs

    # --- how SB3 builds, saves and loads it ---

    def _setup_model(self) -> None:
        if self.replay_buffer is None:
            # SB3 would make one in its own way; a model without an env predicts and keeps nothing
            self.replay_buffer = self._make_replay() if self.env is not None else _EMPTY
        OffPolicyAlgorithm._setup_model(self)
        self._create_aliases()
        self.batch_norm_stats, self.batch_norm_stats_target = [], []
        self.exploration_schedule = LinearSchedule(
            self.exploration_initial_eps, self.exploration_final_eps, self.exploration_fraction
        )
        seed = torch.seed() if self.seed is None else self.seed
        # own generators: nothing that a callback draws changes the run
        self.noise = np.random.default_rng([seed, 0])
        self.shuffle = np.random.default_rng([seed, 1])
        norm = math.inf if self.max_grad_norm is None else self.max_grad_norm
        self.descent = Descent(self.policy.optimizer, norm)
        if self.env is not None:
            self._take_env()

    def _make_replay(self) -> StretchReplay:
        return StretchReplay(**self._replay_sizes())

    def _replay_sizes(self) -> dict[str, int]:
        native = self.native
        branches, levels = ladder_shape(self.action_space)
        observed = cast(spaces.Dict, native.single_observation_space)
        account, portfolio = (int(np.prod(observed[name].shape or ())) for name in ("account", "portfolio"))
        return {
            "n_paths": native.n_paths,
            "n_accounts": native.accounts_per_path,
            "capacity": max(2, self.buffer_size // native.num_envs),
            "state_size": account + portfolio,
            "n_branches": branches,
            "n_levels": levels,
        }

    def _take_env(self) -> None:
        bind_policy(self.policy, self.native)
        self.monitor = EpisodeMonitor(self.native.num_envs)
        self.explorer = self._make_explorer()
        self.objective = self._make_objective(self._make_forecast_task())

    def _make_explorer(self) -> Explorer:
        return Explorer(self.policy, self.replay, self.noise, self._chance)

    def _make_objective(self, forecasts: ForecastTask | None) -> Any:
        return QuantileObjective(self.policy, self.config, forecasts)

    def _make_forecast_task(self) -> ForecastTask | None:
        """What the forecasts are trained on; None without them.

        Raises:
            ValueError: there are forecasts and nothing trains them, or the reverse.
        """
        horizons = self.policy.config.forecast_bars
        if bool(horizons) != (self.config.forecast_coef > 0.0):
            raise ValueError(
                f"forecast_coef is {self.config.forecast_coef:g} and the policy's forecast_bars are "
                f"{list(horizons)}: encoders that forecast learn from that alone, so set both, or "
                "forecast_coef=0 and forecast_bars=[]"
            )
        return ForecastTask.of_env(self.native, horizons, self.device) if horizons else None

    @property
    def replay(self) -> StretchReplay:
        """What is learnt from."""
        assert self.replay_buffer is not None
        return self.replay_buffer

    @classmethod
    def _wrap_env(cls, env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = super()._wrap_env(env, verbose, monitor_wrapper)
        # SB3's own refusal names a class, not a setting
        ladder_shape(wrapped.action_space)
        return wrapped

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Train on another env, with the same number of accounts and paths; the replay starts empty."""
        super().set_env(env, force_reset)
        self.replay_buffer = self._make_replay()
        self._take_env()

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "descent",
            "explorer",
            "monitor",
            "noise",
            "objective",
            "shuffle",
        ]

    def _after_reset(self) -> None:
        super()._after_reset()
        self.replay.cut()

    # --- acting ---

    def collect_rollouts(  # type: ignore[override]
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: StretchReplay,
        action_noise: Any = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Encode every path's bars once, then step all accounts ``train_freq`` times; see SB3."""
        # the replay is the explorer's
        del action_noise, replay_buffer
        assert isinstance(env, SB3PerpVecEnv)
        self.policy.set_training_mode(False)
        self._is_resumable = True
        callback.on_rollout_start()
        self._is_resumable = False
        ended_before, steps = self._episode_num, train_freq.frequency
        for step, dones in enumerate(self.explorer.steps(env, steps)):
            self.num_timesteps += env.num_envs
            infos = self.monitor.infos(env.buffers, dones)
            if infos is not self.monitor.nothing:
                self._update_info_buffer(infos, dones)
                self._count_episodes(int(dones.sum()), log_interval)
            callback.update_locals(
                {"self": self, "env": env, "rewards": env.buffers.reward, "dones": dones, "infos": infos}
            )
            if not callback.on_step():
                return RolloutReturn((step + 1) * env.num_envs, self._episode_num - ended_before, False)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
        self._last_obs = env.native.observation(env.buffers)
        callback.on_rollout_end()
        # before learning starts no update follows
        self._is_resumable = self.num_timesteps <= learning_starts
        return RolloutReturn(steps * env.num_envs, self._episode_num - ended_before, True)

    def _count_episodes(self, ended: int, log_interval: int | None) -> None:
        before = self._episode_num
        self._episode_num += ended
        if log_interval is not None and self._episode_num // log_interval > before // log_interval:
            self.dump_logs()

    def _chance(self) -> float:
        """How often a level is random now."""
        return 1.0 if self.num_timesteps < self.learning_starts else self.exploration_rate

    # --- update ---

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """``gradient_steps`` updates on stretches of the replay."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        losses = []
        for _ in range(gradient_steps):
            loss = self.objective.loss(self.draw(batch_size))
            self.descent.step(loss.total)
            losses.append(torch.stack(loss[1:]))
        self._n_updates += gradient_steps
        self._record_tokens()
        self._is_resumable = True
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in zip(self.reported, torch.stack(losses).mean(0).tolist(), strict=True):
            self.logger.record(name, value)

    def _record_tokens(self) -> None:
        """What a decision cost in all, acting and learning."""
        tokens = self.explorer.tokens + self.objective.tokens
        self.logger.record("train/tokens_per_step", tokens / max(self.explorer.decisions, 1))
        self.explorer.tokens = self.explorer.decisions = self.objective.tokens = 0

    def draw(self, batch_size: int) -> StretchBatch:
        """A batch of the replay."""
        config = self.config
        how: dict[str, Any] = {
            "n_step": config.n_step, "gamma": self.gamma, "rng": self.shuffle, "device": self.device
        }  # fmt: skip
        if config.minibatch == "stretches":
            return self.replay.sample(batch_size, config.stretch_bars, **how)
        rows = self.replay.sample(batch_size * self.replay.n_accounts, 1, **how)
        return rows.of_one_account(self.shuffle)

    # --- predicting ---

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """SB3's ``predict``; ``action_masks`` as sb3-contrib's MaskablePPO takes them, None allows all.

        Not deterministic, it explores as often as training does now, one account by itself.
        """
        levels, state = self.policy.predict(observation, state, episode_start, action_masks=action_masks)
        if not deterministic:
            branches, count = ladder_shape(self.action_space)
            rng = self.action_space.np_random
            shape = (levels.size // branches, branches, count)
            mask = np.ones(shape, np.bool_) if action_masks is None else action_masks.reshape(shape)
            is_random = (rng.random(shape[0]) < self.exploration_rate)[:, None]
            drawn = np.where(is_random, random_allowed(mask, rng), levels.reshape(shape[:2]))
            levels = drawn.reshape(levels.shape)
        return levels, state

    # --- resuming ---

    def own_state(self) -> dict[str, Any]:
        """The replay, the exploration, and when the target network moves."""
        return {
            "replay": self.replay.state_dict(),
            "noise": self.noise.bit_generator.state,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`own_state`."""
        self.replay.load_state_dict(state["replay"])
        self.noise.bit_generator.state = state["noise"]
        for name in _COUNTERS:
            setattr(self, name, state[name])
