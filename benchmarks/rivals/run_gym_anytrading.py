"""Runs in gym-anytrading's own environment: its stocks env with our columns, as its page says to add them.

python run_gym_anytrading.py MARKET.npz ACCOUNTS

It knows two actions, so that levels above 0 are Buy and the others Sell, which is flat there.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
from gym_anytrading.envs import StocksEnv
from gym_envs import serve_gym_envs


def main(market_file: str) -> None:
    """Build the envs on the market of the file, which has as many accounts as its action tape, and serve."""
    market = np.load(market_file)
    names = ("open", "high", "low", "close", "volume")
    frame = pd.DataFrame({name.capitalize(): market[name] for name in names})
    prices, features = market["close"].astype(np.float32), market["features"]
    window, fee = int(market["window"]), float(market["fee"])

    class Env(StocksEnv):  # type: ignore[misc]
        def _process_data(self) -> tuple[Any, Any]:
            return prices, features

    def make() -> Env:
        env = Env(frame, window_size=window, frame_bound=(window, len(frame)))
        env.trade_fee_bid_percent = env.trade_fee_ask_percent = fee
        return env

    is_buy = market["levels"][market["actions"]] > 0.0
    serve_gym_envs(make, is_buy.astype(np.int64), features.shape[1])


if __name__ == "__main__":
    main(sys.argv[1])
