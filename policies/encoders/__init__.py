"""Causal encoders of finite receptive field: each bar is encoded once."""
