"""The control: Stable-Baselines3's own PPO with its default settings on the single env."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from judges import Eyes, Judge
from numpy.typing import NDArray
from play import Act, Actions, Agent, Stretches
from stable_baselines3 import PPO
from training import Progress, Run, Watch

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv
from perpgym.envs.buffers import StepBuffers

# two minutes of one thread
STOCK_STEPS = 300_000


Observed = dict[str, Any]
Action = NDArray[np.float32]


class EndsForGood(gym.Wrapper[Observed, Action, Observed, Action]):
    """What ``training.FiniteHorizon`` is to a batch: what is sold at the end has no value after."""

    def step(self, action: Action) -> tuple[Observed, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info


class PlainColumns(gym.ObservationWrapper[NDArray[np.float32], Action, Observed]):
    """Features of the newest bar, columns of account and portfolio side by side, as an MLP reads them."""

    def __init__(self, env: gym.Env[Observed, Action]) -> None:
        super().__init__(env)
        first, _ = env.reset(seed=0)
        size = self.observation(first).size
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def observation(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        parts = (observation["market"][-1], observation["account"], observation["portfolio"])
        return np.concatenate([part.ravel() for part in parts])


def follow_stock(model: PPO) -> Agent:
    """Act with the mean of SB3's policy; needs windows."""

    def agent(stretches: Stretches) -> Act:
        del stretches

        def act(step: int, out: StepBuffers) -> Actions:
            del step
            assert out.market is not None
            parts = (out.market[:, -1], out.account, out.portfolio)
            columns = np.concatenate([part.reshape(len(out.bar), -1) for part in parts], axis=1)
            actions, _ = model.predict(columns, deterministic=True)
            return np.asarray(actions, np.float32)

        return act

    return agent


def single_env(tape: Tape, config: EnvConfig) -> PlainColumns:
    """The single env of a problem, with the end that ours gets there."""
    env = PerpEnv(tape, config=config)
    return PlainColumns(EndsForGood(env) if config.terminal == "liquidate" else env)


def train_stock(
    tape: Tape, env: EnvConfig, judge: Judge, *, steps: int, seed: int, progress: Progress
) -> Run:
    """Train to the end of ``steps``; the last weights count. Arguments as of ``training.train``."""
    torch.set_num_threads(1)
    model = PPO("MlpPolicy", single_env(tape, env), seed=seed, device="cpu")
    agent = follow_stock(model)
    watch = Watch(lambda: judge(agent, Eyes("target", with_windows=True)), steps, 20, progress)
    model.learn(steps, callback=watch)
    watch.look()
    return watch.run
