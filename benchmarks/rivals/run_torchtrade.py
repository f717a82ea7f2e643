"""Runs in torchtrade's own environment: its batched futures env, stepped with and without resets.

python run_torchtrade.py MARKET.npz ACCOUNTS
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pandas as pd
import torch
from serve import serve
from torchtrade.envs.offline.vectorized_sequential import (
    VectorizedSequentialTradingEnv,
    VectorizedSequentialTradingEnvConfig,
)


def main(market_file: str, accounts: int) -> None:
    """Build the batched env on the market of the file and serve rounds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    market = np.load(market_file)
    frame = pd.DataFrame({name: market[name] for name in ("open", "high", "low", "close", "volume")})
    frame.insert(0, "timestamp", pd.to_datetime(market["open_time_ms"], unit="ms"))
    columns = pd.DataFrame(market["features"]).add_prefix("features_")
    window = int(market["window"])
    env = VectorizedSequentialTradingEnv(
        pd.concat([frame, columns], axis=1),
        VectorizedSequentialTradingEnvConfig(
            num_envs=accounts,
            time_frames="1Hour",
            execute_on="1Hour",
            window_sizes=window,
            initial_cash=1_000_000,
            transaction_fee=float(market["fee"]),
            leverage=2,
            action_levels=market["levels"].tolist(),
            seed=0,
        ),
        feature_preprocessing_fn=lambda bars: bars.reset_index(),
    )
    tape = torch.from_numpy(market["actions"])
    state = env.reset()
    key = next(name for name in state.keys() if name.startswith("market_data"))  # noqa: SIM118

    def reset() -> None:
        nonlocal state
        state = env.reset()

    @torch.no_grad()
    def step(steps: int) -> None:
        nonlocal state
        for number in range(steps):
            state["action"] = tape[number % len(tape)]
            state = env.step(state)["next"]

    @torch.no_grad()
    def step_and_maybe_reset(steps: int) -> None:
        nonlocal state
        for number in range(steps):
            state["action"] = tape[number % len(tape)]
            _, state = env.step_and_maybe_reset(state)

    serve(state[key][0].numpy(), reset, {"step": step, "step_and_maybe_reset": step_and_maybe_reset})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
