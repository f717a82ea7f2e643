"""Train an agent on a problem, judge it while it learns, keep when it passed which share of the optimum."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from judges import Eyes, Judge, Score
from numpy.typing import NDArray
from play import follow_policy
from stable_baselines3.common.callbacks import BaseCallback

from perpgym.agents.algorithms import make_algorithm
from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.data.features.scaler import Scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.actions import ActionKind
from perpgym.envs.buffers import StepBuffers
from perpgym.policies import PolicyConfig
from perpgym.policies.deciding import Policy

THRESHOLDS = (0.90, 0.95, 0.98)
# features of these tapes are of size one
_FEATURE_CLIP = 6.0

# told how many of all steps are done, and the score
Progress = Callable[[int, int, Score], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How our PPO trains.

    Attributes:
        action: of the env.
        ppo, policy: algorithm and network.
        n_paths, accounts_per_path: of the batch env.
        steps: of all accounts together.
        is_spread: before each rollout, start the paths evenly along the tape, at the same bar of every
            stretch and its mirror image; a rollout is an episode.
    """

    action: ActionKind
    ppo: PPOConfig
    policy: PolicyConfig
    n_paths: int = 32
    accounts_per_path: int = 8
    steps: int = 2_000_000
    is_spread: bool = False


class FiniteHorizon(PerpVecEnv):
    """Episodes end for good where they are cut off: what is sold there has no value after."""

    def step_into(self, actions: NDArray[np.float32], out: StepBuffers) -> None:
        super().step_into(actions, out)
        out.terminated[:] |= out.truncated
        out.truncated[:] = False


@dataclass(kw_only=True)
class Run:
    """One seed's training.

    Attributes:
        score: of the last weights, with nothing selected.
        steps: of all accounts together.
        seconds: processor time of the one thread, without the time spent on judging.
        reached: by threshold, (steps, seconds) when the mean action first scored so much.
        failed: names of the problem's conditions that it did not meet.
    """

    score: Score = field(default=Score(float("nan"), float("nan")))
    steps: int = 0
    seconds: float = 0.0
    reached: dict[float, tuple[int, float]] = field(default_factory=dict)
    failed: tuple[str, ...] = ()

    def note(self, score: Score, steps: int, seconds: float) -> None:
        """Keep a score on the way, or the last."""
        self.score, self.steps, self.seconds = score, steps, seconds
        for threshold in THRESHOLDS:
            if score.fraction >= threshold and threshold not in self.reached:
                self.reached[threshold] = (steps, seconds)


class Watch(BaseCallback):
    """Judge the policy between rollouts, about ``checks`` times a run, off the clock."""

    def __init__(self, judge: Callable[[], Score], steps: int, checks: int, progress: Progress) -> None:
        super().__init__()
        self.run = Run()
        self._judge, self._steps, self._progress = judge, steps, progress
        self._every = max(1, steps // checks)
        self._next = 0
        self._started = self._judging = 0.0

    def _on_training_start(self) -> None:
        self._started = time.process_time()

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next:
            self._next += self._every
            self.look()

    def look(self) -> None:
        """Judge now."""
        begun = time.process_time()
        score = self._judge()
        self.run.note(score, self.num_timesteps, begun - self._started - self._judging)
        self._judging += time.process_time() - begun
        self._progress(self.num_timesteps, self._steps, score)

    def _on_step(self) -> bool:
        return True


class SpreadPaths(BaseCallback):
    """Before each rollout, place fresh accounts evenly along the tape; see ``Settings.is_spread``."""

    def __init__(self) -> None:
        super().__init__()
        self._rollouts = 0

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, PerpPPO)
        env = self.model.native
        length, pitch = env.config.episode_bars, len(env.tape) // env.n_paths
        # the last stretch of a pitch is left out: it would end beyond the tape
        place = length * (self._rollouts % (pitch // length - 1))
        starts = pitch * np.arange(env.n_paths) + place
        self.model.restore_env(env.state_dict() | {"path_bar": starts, "path_end": starts + length})
        self._rollouts += 1

    def _on_step(self) -> bool:
        return True


def train(
    tape: Tape, env: EnvConfig, judge: Judge, settings: Settings, *, seed: int, progress: Progress
) -> Run:
    """Train to the end of the steps; the last weights count.

    Args:
        tape: to train on; the judge's only where no chance is in it.
        env: of this action.
        judge: scores the mean action.
        settings: of the training.
        seed: of weights, exploration, minibatches and starts.
        progress: told of every score.
    """
    torch.set_num_threads(1)
    # a value beyond the end would be a guess that training never corrects
    kind = FiniteHorizon if env.terminal == "liquidate" else PerpVecEnv
    n_paths, accounts = settings.n_paths, settings.accounts_per_path
    model = make_algorithm(
        settings.ppo,
        kind(tape, n_paths=n_paths, accounts_per_path=accounts, config=env, seed=seed),
        policy=settings.policy,
        market_scaler=unit_scaler(tape.features.shape[2]),
        risk_scaler=unit_scaler(tape.risk.shape[2]),
        seed=seed,
        device="cpu",
    )
    agent = follow_policy(cast(Policy, model.policy))
    watch = Watch(lambda: judge(agent, Eyes(settings.action)), settings.steps, 40, progress)
    callbacks: list[BaseCallback] = [SpreadPaths()] if settings.is_spread else []
    model.learn(settings.steps, callback=[*callbacks, watch])
    watch.look()
    return watch.run


def unit_scaler(columns: int) -> Scaler:
    return Scaler(
        center=np.zeros(columns, np.float32),
        scale=np.ones(columns, np.float32),
        clip=np.full(columns, _FEATURE_CLIP, np.float32),
    )
