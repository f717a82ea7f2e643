"""Hydra YAML only; a package so that an installed perpgym finds its configs."""
