"""Tensors to tensors: encoders, heads, actor-critic. Knows no optimiser and no env."""

from perpgym.policies.actor_critic import PerpActorCriticPolicy
from perpgym.policies.config import PolicyConfig
from perpgym.policies.market_encoder import ENCODERS, EncoderRecipe

__all__ = ["ENCODERS", "EncoderRecipe", "PerpActorCriticPolicy", "PolicyConfig"]
