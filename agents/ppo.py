"""PPO that encodes each bar once: SB3's PPO with its own rollout and update over whole stretches of tape."""

from __future__ import annotations

import time
from dataclasses import dataclass
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
from perpgym.agents.forecast import ForecastTask
from perpgym.agents.rollout import Minibatch, PathRollout
from perpgym.agents.training_state import restore_training_state, training_state
from perpgym.data.bars import CLOSE
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.actor_critic import PerpActorCriticPolicy

# mean over a minibatch, in the order in which ``PerpPPO.loss`` stacks them
_STATISTICS = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
_KL = _STATISTICS.index("approx_kl")


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of the algorithm; names and meanings are SB3's.

    Attributes:
        learning_rate: of Adam.
        anneal_learning_rate: linearly to zero over ``total_timesteps``.
        n_steps: T, steps of each account in a rollout.
        batch_size: samples of a minibatch, made of whole paths: max(1, batch_size // (T * K)) of them.
        n_epochs: passes over a rollout.
        gamma: discount a bar.
        gae_lambda: decay of the advantage trace.
        clip_range: of the probability ratio.
        normalize_advantage: over the whole rollout. Over a minibatch of a few correlated paths the mean would
            subtract the market's own move.
        ent_coef, vf_coef: weights of entropy bonus and value loss.
        max_grad_norm: of all gradients together.
        forecast_coef: weight of the loss of the policy's forecasts; 0 where it makes none.
        path_baseline: measure each advantage against the mean of its path's accounts at the same bar, which
            takes out the market's own move; needs at least two accounts a path.
        target_kl: no further epoch once the mean KL of an epoch exceeds 1.5 times this; None for no limit.
    """

    learning_rate: float = 3e-4
    anneal_learning_rate: bool = False
    n_steps: int = 128
    batch_size: int = 2_048
    n_epochs: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    forecast_coef: float = 0.0
    path_baseline: bool = False
    target_kl: float | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("learning_rate", 0.0, 1.0),
            ("n_steps", 2, 10**6),
            ("batch_size", 1, 10**9),
            ("n_epochs", 1, 1_000),
            ("gamma", 0.0, 1.0),
            ("gae_lambda", 0.0, 1.0),
            ("clip_range", 1e-6, 10.0),
            ("ent_coef", 0.0, 100.0),
            ("vf_coef", 0.0, 100.0),
            ("forecast_coef", 0.0, 1e4),
            ("max_grad_norm", 1e-9, 1e9),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low:g} and {high:g}, was {getattr(self, name)}")
        if self.target_kl is not None and not self.target_kl > 0:
            raise ValueError(f"target_kl must be positive, was {self.target_kl}; null for no limit")


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
        rate = config.learning_rate
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=_Annealed(rate) if config.anneal_learning_rate else rate,
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
        mine = ("forecast_task", "noise", "shuffle", "episode_return", "episode_length", "_no_infos")
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

        if not collect(self.policy, env.native, env.buffers, rollout_buffer, self.noise, on_step):
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
        if self.config.path_baseline:
            rollout.subtract_path_baseline()
        if self.normalize_advantage:
            rollout.normalise_advantages()
        statistics: list[torch.Tensor] = []
        for _ in range(self.n_epochs):
            epoch = [self._update(batch) for batch in rollout.minibatches(paths_per_batch, self.shuffle)]
            statistics.append(torch.stack(epoch).mean(0))
            self._n_updates += 1
            # the one moment of an epoch at which the host waits for the device
            if self.target_kl is not None and float(statistics[-1][_KL]) > 1.5 * self.target_kl:
                break
        if self.forecast_task is not None:
            self._update_forecasts(self.forecast_task, paths_per_batch)
        self._record(torch.stack(statistics), rollout)
        self.logger.record("time/update_seconds", time.perf_counter() - started)
        self._is_resumable = True

    def _update(self, batch: Minibatch) -> torch.Tensor:
        """One step of Adam; returns (6,) detached statistics in the order of ``_STATISTICS``."""
        loss, statistics = self.loss(batch)
        self._descend(loss)
        return statistics

    def _descend(self, loss: torch.Tensor) -> None:
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        optimizer.step()

    def _update_forecasts(self, task: ForecastTask, paths_per_batch: int) -> None:
        """One pass of the forecasts' own loss, which alone moves the encoders.

        A phase of its own, after the policy's (Cobbe et al. 2021): forecasts that moved during the policy's
        epochs would move the actions, and be taken for a change of policy.
        """
        rollout, losses = self.rollout_buffer, []
        for batch in rollout.minibatches(paths_per_batch, self.shuffle):
            rollout.tokens += len(batch.first_bar) * self.policy.tokens(rollout.n_steps)
            encoded = self.policy.stretch_context(batch.first_bar, rollout.n_steps)  # S T C
            forecast = self.policy.features_extractor.forecasts(encoded)  # S T H
            loss = task.loss(forecast, batch.first_bar, batch.length)
            self._descend(self.config.forecast_coef * loss)
            losses.append(loss.detach())
        self.logger.record("train/forecast_loss", float(torch.stack(losses).mean()))

    def loss(self, batch: Minibatch) -> tuple[torch.Tensor, torch.Tensor]:
        """PPO's loss of a minibatch: Schulman et al. 2017, eqs. 7 and 9, as SB3 weighs them.

        Returns:
            The loss, and (6,) detached statistics in the order of ``_STATISTICS``.
        """
        rollout = self.rollout_buffer
        rollout.tokens += len(batch.first_bar) * self.policy.tokens(rollout.n_steps)
        encoded = self.policy.stretch_context(batch.first_bar, rollout.n_steps)  # S T 2D
        now = self.policy.evaluate_states(batch.arrange(encoded), batch.state, batch.actions)
        log_ratio = now.log_prob - batch.log_prob  # G T K
        ratio = log_ratio.exp()
        clip = self._clip_range()
        clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
        policy_loss = -torch.minimum(batch.advantages * ratio, batch.advantages * clipped).mean()
        value_loss = torch.nn.functional.mse_loss(now.values, batch.returns)
        loss = policy_loss + self.vf_coef * value_loss - self.ent_coef * now.entropy
        with torch.no_grad():
            # the low-variance estimator k3 of Schulman, http://joschu.net/blog/kl-approx.html
            approx_kl = (ratio - 1.0 - log_ratio).mean()
            clip_fraction = ((ratio - 1.0).abs() > clip).float().mean()
            statistics = torch.stack((loss, policy_loss, value_loss, -now.entropy, approx_kl, clip_fraction))
        return loss, statistics

    def _clip_range(self) -> float:
        return float(self.clip_range(self._current_progress_remaining))  # type: ignore[operator]

    def _record(self, statistics: torch.Tensor, rollout: PathRollout) -> None:
        """SB3's keys, and the tokens encoded for each account step, in rollout and all epochs."""
        for name, value in zip(_STATISTICS, statistics.mean(0).tolist(), strict=True):
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/explained_variance", rollout.explained_variance())
        self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))
        self.logger.record("train/clip_range", self._clip_range())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/tokens_per_step", rollout.tokens / rollout.reward.size)

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


class _Annealed:
    """Linear decay to zero; a class, because SB3 pickles schedules."""

    def __init__(self, initial: float) -> None:
        self.initial = initial

    def __call__(self, progress_remaining: float) -> float:
        # the last rollout runs past the total: less than nothing would climb the loss
        return max(progress_remaining, 0.0) * self.initial
