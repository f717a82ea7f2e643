"""A small hierarchy and a rollout of it, for tests."""

from __future__ import annotations

from typing import Any

from perpgym.agents.hierarchical_ppo import HierarchicalPPO, HierarchicalPPOConfig
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.policies import PolicyConfig
from perpgym.policies.hierarchy import PerpHierarchicalPolicy
from perpgym.policies.options import HierarchyConfig

SMALL = PolicyConfig(
    d_model=8, n_heads=2, band=4, risk_hidden=0, policy_hidden=(16,), value_hidden=(16,), log_std_init=-1.0
)
HEADS = EnvConfig(action="heads", window_bars=SMALL.receptive_field, episode_bars=37)
SETTINGS = HierarchicalPPOConfig(
    n_steps=16, batch_size=64, n_epochs=2, hierarchy=HierarchyConfig(min_bars=2, max_bars=5)
)
N_PATHS, ACCOUNTS = 3, 4


def build(
    tape: Tape,
    settings: HierarchicalPPOConfig = SETTINGS,
    env: EnvConfig = HEADS,
    seed: int = 0,
    accounts: int = ACCOUNTS,
    limits: RiskLimits | None = None,
) -> HierarchicalPPO:
    return HierarchicalPPO(
        PerpHierarchicalPolicy,
        PerpVecEnv(tape, n_paths=N_PATHS, accounts_per_path=accounts, config=env, seed=seed, limits=limits),
        config=settings,
        policy_kwargs={
            "config": SMALL,
            "market_scaler": fit_scaler(tape.features, 0, 300),
            "risk_scaler": fit_scaler(tape.risk, 0, 300),
        },
        seed=seed,
        device="cpu",
    )


def roll(model: HierarchicalPPO, rollouts: int = 1) -> None:
    """Collect without learning."""
    model._setup_learn(10**9)
    for _ in range(rollouts):
        model.collect_rollouts(model.env, Quiet(model), model.rollout_buffer, model.n_steps)  # type: ignore[arg-type]


def Quiet(model: HierarchicalPPO) -> Any:  # noqa: N802 - SB3's callback of nothing
    from stable_baselines3.common.callbacks import CallbackList

    callback = CallbackList([])
    callback.init_callback(model)
    return callback
