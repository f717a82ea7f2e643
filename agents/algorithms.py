"""Which algorithm and which policy belong to which settings."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from stable_baselines3.common.policies import BasePolicy

from perpgym.agents.hierarchical_ppo import HierarchicalPPO, HierarchicalPPOConfig
from perpgym.agents.hierarchical_qrdqn import HierarchicalQRDQN, HierarchicalQRDQNConfig
from perpgym.agents.path_algorithm import AgentConfig, PathAlgorithm
from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.agents.qrdqn import PerpQRDQN, QRDQNConfig
from perpgym.agents.stock import StockA2C, StockMaskablePPO, StockRecurrentPPO, StockSAC, StockTQC
from perpgym.agents.stock_config import (
    A2CConfig,
    MaskablePPOConfig,
    RecurrentPPOConfig,
    SACConfig,
    TQCConfig,
)
from perpgym.data.features.scaler import Scaler
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.actor_critic import PerpActorCriticPolicy
from perpgym.policies.config import PolicyConfig
from perpgym.policies.hierarchical_quantile import HierarchicalQuantilePolicy
from perpgym.policies.hierarchy import PerpHierarchicalPolicy
from perpgym.policies.quantile import PerpQuantilePolicy
from perpgym.policies.stock import (
    StockA2CPolicy,
    StockMaskablePolicy,
    StockRecurrentPolicy,
    StockSACPolicy,
    StockTQCPolicy,
)


class Algorithm(NamedTuple):
    """Classes that belong together."""

    algorithm: type[PathAlgorithm]
    policy: type[BasePolicy]


ALGORITHMS: dict[type[AgentConfig], Algorithm] = {
    PPOConfig: Algorithm(PerpPPO, PerpActorCriticPolicy),
    HierarchicalPPOConfig: Algorithm(HierarchicalPPO, PerpHierarchicalPolicy),
    QRDQNConfig: Algorithm(PerpQRDQN, PerpQuantilePolicy),
    HierarchicalQRDQNConfig: Algorithm(HierarchicalQRDQN, HierarchicalQuantilePolicy),
    A2CConfig: Algorithm(StockA2C, StockA2CPolicy),
    MaskablePPOConfig: Algorithm(StockMaskablePPO, StockMaskablePolicy),
    RecurrentPPOConfig: Algorithm(StockRecurrentPPO, StockRecurrentPolicy),
    SACConfig: Algorithm(StockSAC, StockSACPolicy),
    TQCConfig: Algorithm(StockTQC, StockTQCPolicy),
}


def make_algorithm(
    config: AgentConfig,
    env: PerpVecEnv,
    *,
    policy: PolicyConfig,
    market_scaler: Scaler,
    risk_scaler: Scaler,
    seed: int,
    device: torch.device | str,
) -> PathAlgorithm:
    """The algorithm that these settings are of, ready to learn.

    Args:
        config: one of ``ALGORITHMS``.
        env: index observations.
        policy: the network's shape.
        market_scaler, risk_scaler: fitted on the training period.
        seed: of weights, exploration and env.
        device: torch's name.

    Raises:
        ValueError: the env's actions are not those of the algorithm.
    """
    classes = ALGORITHMS[type(config)]
    build = cast(Any, classes.algorithm)
    kwargs = {"config": policy, "market_scaler": market_scaler, "risk_scaler": risk_scaler}
    model: PathAlgorithm = build(
        classes.policy, env, config=config, policy_kwargs=kwargs, seed=seed, device=device
    )
    return model
