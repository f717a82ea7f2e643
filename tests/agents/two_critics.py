"""Networks, an env and settings for tests of QR-DQN; a small hierarchical one, and what its replay holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from perpgym.agents.hierarchical_qrdqn import HierarchicalQRDQN, HierarchicalQRDQNConfig
from perpgym.agents.qrdqn import PerpQRDQN
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies import PolicyConfig
from perpgym.policies.hierarchical_quantile import HierarchicalQuantilePolicy
from perpgym.policies.options import HierarchyConfig

SMALL = PolicyConfig(
    d_model=8, n_layers=1, n_heads=2, band=4, risk_hidden=0, policy_hidden=(16,), value_hidden=(16,)
)
LAST_BAR = PolicyConfig(
    encoder="mlp", d_model=16, n_layers=1, risk_hidden=0, policy_hidden=(32,), value_hidden=(32,)
)
FREE = {
    "action": "ladder", "max_exposure": 1.0, "half_spread_bps": 0.0, "impact_coefficient": 0.0,
    "taker_rate": 0.0, "max_drawdown": 1.0, "episode_bars": 60,
}  # fmt: skip
SETTINGS = {
    "learning_starts": 64, "buffer_size": 8_000, "batch_size": 64, "stretch_bars": 8, "n_quantiles": 8,
    "target_update_interval": 256, "popart": True, "exploration_fraction": 0.5,
}  # fmt: skip
HIERARCHY = HierarchyConfig(budgets=(0.25, 1.0), min_bars=2, max_bars=5)


def make_env(tape: Tape, policy: PolicyConfig = SMALL, **env: Any) -> PerpVecEnv:
    config = EnvConfig(**FREE | {"window_bars": policy.receptive_field} | env)
    return PerpVecEnv(tape, n_paths=4, accounts_per_path=2, config=config)


def make_model(
    tape: Tape, policy: PolicyConfig = SMALL, env: dict[str, Any] | None = None, **config: Any
) -> HierarchicalQRDQN:
    return HierarchicalQRDQN(
        HierarchicalQuantilePolicy,
        make_env(tape, policy, **(env or {})),
        config=HierarchicalQRDQNConfig(**{"hierarchy": HIERARCHY} | SETTINGS | config),
        policy_kwargs=network(tape, policy),
        seed=0,
        device="cpu",
    )


def network(tape: Tape, policy: PolicyConfig) -> dict[str, Any]:
    return {
        "config": policy,
        "market_scaler": fit_scaler(tape.features, 0, len(tape)),
        "risk_scaler": fit_scaler(tape.risk, 0, len(tape)),
    }


@torch.no_grad()
def speak_clearly(model: PerpQRDQN) -> None:
    """A fresh network says nearly the same of every level, and its target the same as itself."""
    for number, net in enumerate((model.quantile_net, model.quantile_net_target)):
        for level, (_value, advantage) in enumerate(net._pairs()):
            rng = torch.Generator().manual_seed(2 * number + level)
            torch.nn.init.normal_(advantage[-1].weight, generator=rng)  # type: ignore[arg-type]
    for weight in model.quantile_net_target.features_extractor.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=rng)


def held(model: HierarchicalQRDQN) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, Z) options, (n,) due and (n,) levels of every decision in the replay, one path after the other."""
    replay = model.options_replay
    number = np.arange(replay.capacity)[None]
    is_decision = (number < replay.head[:, None] - 1) & (number != replay.final)
    options = replay.state[..., replay.observed_size :]
    return options[is_decision], replay.due[is_decision], replay.action[is_decision]
