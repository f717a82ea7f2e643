"""What a training run consists of between two rollouts: enough to continue it bit for bit."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from perpgym.policies.config import PolicyConfig

if TYPE_CHECKING:
    from perpgym.agents.path_algorithm import PathAlgorithm

_COUNTERS = ("num_timesteps", "_total_timesteps", "_n_updates", "_current_progress_remaining")


def training_state(model: PathAlgorithm) -> dict[str, Any]:
    """Weights, optimiser, generators, env, counters and statistics, as plain data."""
    return {
        "identity": _identity(model),
        **model.learner_state(),
        "env": model.native.state_dict(),
        "own": model.own_state(),
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": np.random.get_state(legacy=False),  # noqa: NPY002 - SB3 and callbacks draw from it
        "episode_return": model.monitor.returns,
        "episode_length": model.monitor.lengths,
        "episodes": [dict(episode) for episode in model.ep_info_buffer or ()],
        "seconds": None if model.budget is None else model.budget.spent,
        **{name: getattr(model, name) for name in _COUNTERS},
    }


def restore_training_state(model: PathAlgorithm, state: dict[str, Any]) -> None:
    """The inverse of :func:`training_state`, on a model built with the same arguments.

    Raises:
        ValueError: the state belongs to another configuration, network, period or tape.
    """
    for name, mine in _identity(model).items():
        theirs = state["identity"].get(name)
        if theirs != mine:
            raise ValueError(
                f"the checkpoint's {name} is {theirs}, this run's is {mine}: "
                "resume with the configuration and the data of the saved run"
            )
    model.restore_learner_state(state)
    model.restore_env(state["env"])
    model.restore_own_state(state["own"])
    torch.set_rng_state(state["torch_rng"].cpu())
    np.random.set_state(state["numpy_rng"])  # noqa: NPY002
    model.monitor.returns[:] = state["episode_return"]
    model.monitor.lengths[:] = state["episode_length"]
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    if model.budget is not None:
        model.budget.go_on_from(state["seconds"] or 0.0)
    for name in _COUNTERS:
        setattr(model, name, state[name])


def _identity(model: PathAlgorithm) -> dict[str, Any]:
    """What must not change between a run and its continuation."""
    env = model.native
    return {
        "config": asdict(model.config),
        "policy_config": cast(PolicyConfig, model.policy.config).to_json(),
        "paths": [env.n_paths, env.accounts_per_path],
        "env_config": asdict(env.config),
        "limits": asdict(env.limits),
        "period": [env.first_bar, env.end_bar],
        "data_hash": env.tape.data_hash,
    }
