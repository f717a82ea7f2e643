"""PPO of two levels: a manager over options of several bars, a worker at every bar, on one encoder."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from perpgym.agents.hierarchical_config import HierarchicalPPOConfig, check_actions, with_hierarchy
from perpgym.agents.hierarchical_objective import HierarchicalLoss, HierarchicalObjective, LevelSettings
from perpgym.agents.hierarchical_rollout import HierarchicalMinibatch, HierarchicalRollout
from perpgym.agents.option_driver import OptionDriver
from perpgym.agents.ppo import PerpPPO
from perpgym.agents.ppo_loss import KL, STATISTICS, epoch_statistics
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.hierarchy import PerpHierarchicalPolicy

__all__ = ["HierarchicalPPO", "HierarchicalPPOConfig"]


class HierarchicalPPO(PerpPPO):
    """Options (Sutton, Precup and Singh 1999) learnt by proximal policy optimisation on both levels.

    The manager chooses a target exposure for every contract and a risk budget, which hold for k bars, k drawn
    uniformly, or until a risk event; the worker acts at every bar, given the choice and the bars left. The
    manager's advantages are those of an SMDP (:func:`perpgym.agents.smdp.smdp_gae`) of the raw reward. Each
    level has its own normalisation, clipping, entropy and KL stop; the encoders learn from forecasts where
    there are any (``policy.forecast_bars``), else from both levels.
    ``docs/algorithms/hierarchical_ppo.md`` lists every detail.

    ``predict`` is that of a recurrent policy: pass the state that it returned, or options never last.

    Args:
        policy: the policy class.
        env: as of :class:`PerpPPO`.
        config: of the algorithm.
        policy_kwargs: as of :class:`PerpPPO`; what the env determines is filled in.
        **kwargs: of :class:`PerpPPO`.
    """

    policy: PerpHierarchicalPolicy
    rollout_buffer: HierarchicalRollout
    objective: HierarchicalObjective
    config: HierarchicalPPOConfig
    config_class = HierarchicalPPOConfig
    rollout_class = HierarchicalRollout
    objective_class = HierarchicalObjective

    def __init__(
        self,
        policy: type[PerpHierarchicalPolicy],
        env: PerpVecEnv | SB3PerpVecEnv | None,
        *,
        config: HierarchicalPPOConfig | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        config = self.own_config(config)
        native = env.native if isinstance(env, SB3PerpVecEnv) else env
        policy_kwargs = with_hierarchy(policy_kwargs, config.hierarchy)
        if isinstance(native, PerpVecEnv):
            policy_kwargs |= hierarchy_kwargs(native)
        super().__init__(policy, env, config=config, policy_kwargs=policy_kwargs, **kwargs)

    def _rollout_kwargs(self) -> dict[str, Any]:
        n_assets = len(self.native.tape.contracts)
        hierarchy = self.config.hierarchy
        return {
            **super()._rollout_kwargs(),
            "n_extra": n_assets + 2,
            "counts": (len(hierarchy.targets),) * n_assets + (len(hierarchy.budgets),),
            "manager_lambda": self.config.manager_gae_lambda,
        }

    def _take_env(self) -> None:
        native = self.native
        wanted = hierarchy_kwargs(native)
        # what an exposure is cut to does not depend on levels that nobody picks
        check_actions(
            self.policy.own_settings(), wanted if native.config.choices else {"action": wanted["action"]}
        )
        super()._take_env()
        shape = (native.n_paths, native.accounts_per_path, self.policy.options.size)
        self.option = torch.zeros(shape, device=self.device)

    def _after_reset(self) -> None:
        super()._after_reset()
        self.option.zero_()

    def restore_env(self, state: dict[str, Any]) -> None:
        """As of :class:`PerpPPO`; accounts that are put somewhere are in no option."""
        super().restore_env(state)
        self.option.zero_()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "option"]

    def own_state(self) -> dict[str, Any]:
        """The generator of the exploration, and the options in which accounts are."""
        return {**super().own_state(), "option": self.option}

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`own_state`."""
        super().restore_own_state(state)
        self.option.copy_(state["option"])

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        """See :meth:`PerpHierarchicalPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    # --- rollout ---

    @property
    def is_warming_up(self) -> bool:
        """Whether the manager's choices are drawn evenly."""
        return self.num_timesteps < self.config.warmup_steps

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        """As of :class:`PerpPPO`, with options."""
        self._was_scripted = self.is_warming_up
        self.driver_factory = partial(
            OptionDriver,
            option=self.option,
            is_scripted=self._was_scripted,
            shaping=self.config.worker_shaping,
        )
        is_whole = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if is_whole:
            self._record_options()
        return is_whole

    def _record_options(self) -> None:
        """How long options lasted, and what they granted, over the rollout's steps."""
        rollout, config = self.rollout_buffer, self.config.hierarchy
        decided = rollout.decided[:, :-1]
        option = rollout.state[:, :-1, :, rollout.observed_size :]
        exposure = rollout.state[:, 1:, :, self.policy.options.exposure_columns].abs()  # P T K A
        budget = option[..., -2]
        self.logger.record("options/bars_per_decision", decided.numel() / max(1, int(decided.sum())))
        self.logger.record("options/budget", float(budget.mean()))
        # limits may admit nothing: of a budget of 0 there is no share
        is_granted = budget > 0.0
        if is_granted.any():
            used = exposure.amax(-1)[is_granted] / (self.native.config.max_exposure * budget[is_granted])
            self.logger.record("options/budget_used", float(used.mean()))
        self.logger.record("options/target", float(option[..., :-2].mean()))
        self.logger.record("options/target_size", float(option[..., :-2].abs().mean()))
        # after every bar, whether a decision is due though bars are left and the episode goes on
        due, goes_on = rollout.decided[:, 1:], ~rollout.ends
        called_back = due & goes_on & (option[..., -1] > 1.5)
        self.logger.record("options/called_back", float(called_back.sum()) / max(1, int(due.sum())))
        self.logger.record("options/longest", config.max_bars, exclude="tensorboard")

    # --- update ---

    def train(self) -> None:
        """``n_epochs`` passes over the rollout; a level whose KL exceeds its limit learns no more in it."""
        started = time.perf_counter()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        rollout, config = self.rollout_buffer, self.config
        per_path = rollout.n_steps * rollout.n_accounts
        paths_per_batch = max(1, self.batch_size // per_path)
        rollout.weigh_advantages(path_baseline=config.path_baseline, normalise=self.normalize_advantage)
        rollout.weigh_decisions(
            path_baseline=config.manager_path_baseline, normalise=self.normalize_advantage
        )
        if config.popart:
            self._rescale()
        limits = {"worker": config.target_kl, "manager": config.manager_target_kl}
        learning = {"worker": True, "manager": not self._was_scripted}
        statistics: dict[str, list[torch.Tensor]] = {"worker": [], "manager": []}
        option_losses: list[torch.Tensor] = []
        for _ in range(self.n_epochs):
            was_learning = dict(learning)
            of_epoch = self._hierarchical_epoch(paths_per_batch, learning, option_losses)
            self._n_updates += 1
            for level, limit in limits.items():
                if was_learning[level] and level in of_epoch:
                    statistics[level].append(of_epoch[level])
                    if limit is not None and float(of_epoch[level][KL]) > 1.5 * limit:
                        learning[level] = False
            if not any(learning.values()):
                break
        if self.forecast_task is not None:
            self._update_forecasts(self.forecast_task, paths_per_batch)
        self._record(torch.stack(statistics["worker"]), rollout)
        self._record_manager(statistics["manager"], option_losses)
        self.logger.record("time/update_seconds", time.perf_counter() - started)
        self._is_resumable = True

    def _rescale(self) -> None:
        rollout = self.rollout_buffer
        self.policy.value_head.rescale(rollout.returns.reshape(-1, 1))
        self.policy.option_value_head.rescale(rollout.option_returns.reshape(-1, 1))
        decided = rollout.decided[:, :-1]
        if decided.any():
            self.policy.manager_value_head.rescale(rollout.option_returns[decided].unsqueeze(-1))

    def _hierarchical_epoch(
        self, paths_per_batch: int, learning: dict[str, bool], option_losses: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """One pass over the rollout; (6,) statistics of each level, the manager's only if it decided."""
        losses: list[HierarchicalLoss] = []
        for batch in self.rollout_buffer.minibatches(paths_per_batch, self.shuffle):
            loss = self.levels_loss(cast(HierarchicalMinibatch, batch), learning)
            self.descent.step(loss.total)
            losses.append(loss)
            option_losses.append(loss.option)
        worker = epoch_statistics(
            [loss.worker.terms for loss in losses],
            [loss.worker.log_ratio.flatten() for loss in losses],
            self._clip_range(),
        )
        decided = [loss.manager for loss in losses if loss.manager.log_ratio.numel()]
        found = {"worker": worker}
        if decided:
            terms, log_ratios = [loss.terms for loss in decided], [loss.log_ratio for loss in decided]
            found["manager"] = epoch_statistics(terms, log_ratios, self.config.manager_clip_range)
        return found

    def levels_loss(self, batch: HierarchicalMinibatch, learning: dict[str, bool]) -> HierarchicalLoss:
        """Both levels' losses, with the settings that hold at this moment of the run."""
        ent_coef = self.entropy_schedule(self._current_progress_remaining)
        return self.objective.losses(
            batch,
            self.rollout_buffer.n_steps,
            LevelSettings(self._clip_range(), ent_coef, learning["worker"]),
            LevelSettings(self.config.manager_clip_range, self.config.manager_ent_coef, learning["manager"]),
        )

    def _record_manager(self, statistics: list[torch.Tensor], option_losses: list[torch.Tensor]) -> None:
        self.logger.record("manager/option_value_loss", float(torch.stack(option_losses).mean()))
        self.logger.record("manager/is_scripted", float(self._was_scripted))
        if statistics:
            means = torch.stack(statistics).mean(0).tolist()
            for name, value in zip(STATISTICS, means, strict=True):
                self.logger.record(f"manager/{name}", value)


def hierarchy_kwargs(env: PerpVecEnv) -> dict[str, Any]:
    """What a hierarchical policy must know of the env's actions."""
    config = env.config
    return {
        "action": config.action,
        "levels": config.ladder if config.action == "ladder" else config.head_sizes,
        "choices": config.choices,
    }
