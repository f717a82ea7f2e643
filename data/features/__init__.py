"""Causal features of finite memory, computed once per tape."""
