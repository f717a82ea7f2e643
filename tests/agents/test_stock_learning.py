"""Each control finds the side of a market that only rises, and the other side of one that only falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perpgym.agents.algorithms import make_algorithm
from perpgym.agents.asking import Asking
from perpgym.agents.stock_config import (
    A2CConfig,
    MaskablePPOConfig,
    RecurrentPPOConfig,
    SACConfig,
    StockConfig,
    TQCConfig,
)
from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.policies import PolicyConfig

LAST_BAR = PolicyConfig(
    encoder="mlp", d_model=8, n_layers=1, n_heads=2, risk_hidden=0, policy_hidden=(16,), value_hidden=(16,),
)  # fmt: skip
_CLIPPED = {"n_steps": 16, "batch_size": 64, "n_epochs": 4, "learning_rate": 0.01, "gamma": 0.5}
_REPLAYING = {
    "learning_starts": 64, "batch_size": 32, "buffer_size": 2_000, "learning_rate": 0.01, "gamma": 0.5,
    "ent_coef": 0.01,
}  # fmt: skip
CONTROLS: dict[str, tuple[StockConfig, str, int]] = {
    "a2c": (A2CConfig(gamma=0.5, learning_rate=0.003), "target", 3_200),
    "maskable_ppo": (MaskablePPOConfig(**_CLIPPED), "ladder", 1_024),
    "recurrent_ppo": (RecurrentPPOConfig(**_CLIPPED, lstm_hidden_size=8), "target", 1_024),
    "sac": (SACConfig(**_REPLAYING), "target", 1_600),
    "tqc": (TQCConfig(**_REPLAYING, n_quantiles=5), "target", 1_600),
}


@pytest.mark.parametrize("drift", [0.002, -0.002])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_learns_the_side_that_pays(make_tape: Callable[..., Tape], name: str, drift: float) -> None:
    config, action, steps = CONTROLS[name]
    tape = make_tape(30_000.0 * np.exp(drift * np.arange(400)), funding_rate=0.0, volume=1e7)
    env_config: Any = EnvConfig(
        action=action, max_exposure=1.0, window_bars=1, episode_bars=50, reward_scale=500.0, max_drawdown=1.0,
        half_spread_bps=0.0, impact_coefficient=0.0, taker_rate=0.0,
    )  # fmt: skip
    env = PerpVecEnv(tape, n_paths=4, accounts_per_path=2, config=env_config)
    model = make_algorithm(
        config, env, policy=LAST_BAR, seed=0, device="cpu", market_scaler=fit_scaler(tape.features, 0, 400),
        risk_scaler=fit_scaler(tape.risk, 0, 400),
    )  # fmt: skip
    agent, asking = TrainedAgent(model.trained), Asking(env_config)
    account = np.zeros((1, 1, len(ACCOUNT_NAMES)), np.float32)
    portfolio = np.zeros((1, len(PORTFOLIO_NAMES)), np.float32)

    def mean_exposure() -> float:
        taken = [asking.exposures(agent.act(tape, bar, account, portfolio), account) for bar in range(50, 90)]
        return float(np.mean(taken))

    before = mean_exposure()
    model.learn(steps)
    side = np.sign(drift)
    assert side * mean_exposure() > max(0.3, side * before)
