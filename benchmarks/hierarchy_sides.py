"""The sides of ``hppo_vs_ppo``: two levels and one, on the same network, env and update."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.logger import configure
from training_sides import ACCOUNTS, CONFIG, NETWORKS

from perpgym.agents.algorithms import make_algorithm
from perpgym.agents.hierarchical_ppo import HierarchicalPPOConfig
from perpgym.agents.path_algorithm import PathAlgorithm
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.actions import ActionKind

# of 64 accounts
_PATHS = 8


def side(tape: Tape, action: ActionKind, *, is_hierarchical: bool) -> PathAlgorithm:
    """PerpPPO or HierarchicalPPO with the settings of ``bench_train.py``."""
    network = NETWORKS["transformer"]
    env = PerpVecEnv(
        tape,
        n_paths=_PATHS,
        accounts_per_path=ACCOUNTS // _PATHS,
        config=EnvConfig(action=action, window_bars=network.receptive_field),
        seed=0,
    )
    shared: dict[str, Any] = {
        "n_steps": CONFIG.n_steps, "batch_size": CONFIG.batch_size, "n_epochs": CONFIG.n_epochs
    }  # fmt: skip
    model = make_algorithm(
        HierarchicalPPOConfig(**shared) if is_hierarchical else CONFIG,
        env,
        policy=network,
        market_scaler=fit_scaler(tape.features, 0, len(tape)),
        risk_scaler=fit_scaler(tape.risk, 0, len(tape)),
        seed=0,
        device="cpu",
    )
    model.set_logger(configure(None, []))
    return model
