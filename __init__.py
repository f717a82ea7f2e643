"""Reinforcement-learning agents for perpetual futures, from history to a live account."""

__version__ = "0.1.0"

from perpgym import envs as envs  # registers perpgym/Perp-v0
