"""Ways to step many of a rival's Gymnasium envs: a bare loop, and SyncVectorEnv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from serve import serve


def serve_gym_envs(make: Callable[[], gym.Env[Any, Any]], actions: Any, columns: int) -> None:
    """Build the accounts' envs and serve rounds on the faster way, which the other end chooses.

    Args:
        make: one account's env, whose observation is (window, features), the market's columns first.
        actions: (S, accounts) int64, the action tape in the env's own numbers.
        columns: of the market, for the parity check.
    """
    accounts = actions.shape[1]
    envs = [make() for _ in range(accounts)]
    vector = gym.vector.SyncVectorEnv([make] * accounts, copy=False)
    observation, _ = envs[0].reset(seed=0)
    # copies of what step returns, as SyncVectorEnv keeps them
    kept = np.zeros((accounts, *observation.shape), np.float32)

    def reset() -> None:
        vector.reset(seed=0)
        for env in envs:
            env.reset(seed=0)

    def loop(steps: int) -> None:
        for step in range(steps):
            row = actions[step % len(actions)].tolist()
            for i, env in enumerate(envs):
                kept[i] = env.step(row[i])[0]

    def sync(steps: int) -> None:
        for step in range(steps):
            vector.step(actions[step % len(actions)])

    serve(observation[:, :columns], reset, {"loop over envs": loop, "SyncVectorEnv": sync})
