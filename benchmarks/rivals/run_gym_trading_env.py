"""Runs in gym-trading-env's own environment: SyncVectorEnv, and a bare loop over its envs.

python run_gym_trading_env.py MARKET.npz ACCOUNTS
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from gym_envs import serve_gym_envs
from gym_trading_env.environments import TradingEnv


def main(market_file: str) -> None:
    """Build the envs on the market of the file, which has as many accounts as its action tape, and serve."""
    market = np.load(market_file)
    frame = pd.DataFrame({name: market[name] for name in ("open", "high", "low", "close", "volume")})
    frame.index = pd.to_datetime(market["open_time_ms"], unit="ms")
    features = market["features"]
    columns = pd.DataFrame(features, index=frame.index).add_prefix("feature_")
    frame = pd.concat([frame, columns], axis=1)
    levels, window, fee = market["levels"].tolist(), int(market["window"]), float(market["fee"])

    def make() -> TradingEnv:
        return TradingEnv(
            frame,
            positions=levels,
            windows=window,
            trading_fees=fee,
            borrow_interest_rate=1e-5,
            initial_position=0.0,
            portfolio_initial_value=1e6,
            verbose=0,
        )

    serve_gym_envs(make, market["actions"], features.shape[1])


if __name__ == "__main__":
    main(sys.argv[1])
