"""Tensors to tensors: encoders, heads, actor-critic. Knows no optimiser and no env."""

from perpgym.policies.actor_critic import PerpActorCriticPolicy
from perpgym.policies.config import PolicyConfig

__all__ = ["PerpActorCriticPolicy", "PolicyConfig"]
