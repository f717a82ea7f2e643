"""Runs in gym-trading-env's own environment: SyncVectorEnv, and a bare loop over its envs.

python run_gym_trading_env.py MARKET.npz ACCOUNTS
"""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pandas as pd
from gym_trading_env.environments import TradingEnv
from serve import serve


def main(market_file: str, accounts: int) -> None:
    """Build the envs on the market of the file and serve rounds."""
    market = np.load(market_file)
    frame = pd.DataFrame({name: market[name] for name in ("open", "high", "low", "close", "volume")})
    frame.index = pd.to_datetime(market["open_time_ms"], unit="ms")
    features = market["features"]
    columns = pd.DataFrame(features, index=frame.index).add_prefix("feature_")
    frame = pd.concat([frame, columns], axis=1)
    levels, tape, window = market["levels"].tolist(), market["actions"], int(market["window"])

    def make() -> TradingEnv:
        return TradingEnv(
            frame,
            positions=levels,
            windows=window,
            trading_fees=float(market["fee"]),
            borrow_interest_rate=1e-5,
            initial_position=0.0,
            portfolio_initial_value=1e6,
            verbose=0,
        )

    envs = [make() for _ in range(accounts)]
    # copies of what step returns, as SyncVectorEnv keeps them
    kept = np.zeros((accounts, window, features.shape[1] + 2), np.float32)
    vector = gym.vector.SyncVectorEnv([make] * accounts, copy=False)

    def reset() -> None:
        vector.reset(seed=0)
        for env in envs:
            env.reset(seed=0)

    def loop(steps: int) -> None:
        for step in range(steps):
            actions = tape[step % len(tape)].tolist()
            for i, env in enumerate(envs):
                kept[i] = env.step(actions[i])[0]

    def sync(steps: int) -> None:
        for step in range(steps):
            vector.step(tape[step % len(tape)])

    observation, _ = envs[0].reset(seed=0)
    serve(observation[:, : features.shape[1]], reset, {"loop over envs": loop, "SyncVectorEnv": sync})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
