"""What an agent may do: four kinds of action, their spaces, and the action that asks for an exposure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

ActionKind = Literal["target", "band", "ladder", "heads"]
# in the order of the codes in envs.orders
ACTION_KINDS: tuple[ActionKind, ...] = ("target", "band", "ladder", "heads")

# numbers of an action for each contract
ACTION_DIM: dict[str, int] = {"target": 1, "band": 2, "ladder": 1, "heads": 4}

# the first of ``heads``' four numbers; the others are the indices of size, stop and style
DECISIONS: tuple[str, ...] = ("hold", "long", "short", "flat")


def choices_per_contract(
    action: ActionKind, ladder: Sequence[float], sizes: Sequence[float], stops: Sequence[Any],
    styles: Sequence[str],
) -> tuple[int, ...]:  # fmt: skip
    """How many choices each number of a contract's action has; empty for continuous actions."""
    if action == "ladder":
        return (len(ladder),)
    if action == "heads":
        return (len(DECISIONS), len(sizes), len(stops), len(styles))
    return ()


def action_space(action: ActionKind, n_contracts: int, choices: Sequence[int] = ()) -> gym.Space[Any]:
    """The space of one account's action, contract after contract.

    Args:
        action: the kind.
        n_contracts: A.
        choices: of one contract, see :func:`choices_per_contract`.

    Returns:
        Box(-1, 1, (A * action_dim,), float32); Discrete for a ladder on one contract, else MultiDiscrete.
    """
    if action in ("target", "band"):
        return gym.spaces.Box(-1.0, 1.0, (n_contracts * ACTION_DIM[action],), np.float32)
    if action == "ladder" and n_contracts == 1:
        return gym.spaces.Discrete(choices[0])
    return gym.spaces.MultiDiscrete(np.tile(np.array(choices, np.int64), n_contracts))


def exposure_to_action(
    exposure: NDArray[np.floating], *, action: ActionKind, max_exposure: float, levels: Sequence[float] = ()
) -> NDArray[np.float32]:
    """The action that asks for this exposure, or for the nearest one that can be asked for.

    Args:
        exposure: (...,) signed notional over equity.
        action: the env's action kind.
        max_exposure: the env's range.
        levels: of ``ladder``, its levels; of ``heads``, its sizes; in units of ``max_exposure``.

    Returns:
        (..., action_dim) float32: in [-1, 1]; for ``band`` the width is zero; indices of choices for
        ``ladder`` and ``heads``, the latter with the first stop and style.
    """
    share = np.clip(np.asarray(exposure, dtype=np.float64) / max_exposure, -1.0, 1.0)
    if action == "target":
        return share[..., None].astype(np.float32)
    if action == "band":
        return np.stack([share, np.full_like(share, -1.0)], axis=-1).astype(np.float32)
    grid = np.asarray(levels, np.float64)
    if action == "ladder":
        nearest = np.abs(share[..., None] - grid).argmin(axis=-1)
        return np.asarray(nearest[..., None], np.float32)
    is_flat = np.abs(share) < 0.5 * grid.min()
    decision = np.where(is_flat, DECISIONS.index("flat"), np.where(share > 0.0, 1, 2))
    size = np.abs(np.abs(share)[..., None] - grid).argmin(axis=-1)
    first = np.zeros_like(size)
    return np.stack([decision, size, first, first], axis=-1).astype(np.float32)
