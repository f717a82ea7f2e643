"""Tensors to tensors: encoders, heads, actor-critic. Knows no optimiser and no env."""
