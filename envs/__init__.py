"""The money: kernel, execution, margin, risk overlay and the environments built on them."""

import gymnasium as gym

from perpgym.envs.config import EnvConfig
from perpgym.envs.perp import PerpEnv
from perpgym.envs.reasons import reasons
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.spaces import CONTRACT_LEDGER
from perpgym.envs.vector import PerpVecEnv

if "perpgym/Perp-v0" not in gym.registry:
    gym.register(
        id="perpgym/Perp-v0",
        entry_point="perpgym.envs.perp:PerpEnv",
        vector_entry_point="perpgym.envs.perp:make_vector_env",
        disable_env_checker=True,
    )

__all__ = ["CONTRACT_LEDGER", "EnvConfig", "PerpEnv", "PerpVecEnv", "RiskLimits", "reasons"]
