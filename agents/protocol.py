"""What every agent can do, trained or not: turn what is known at a close into an action."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from perpgym.data.tape import Tape


class Agent(Protocol):
    """A policy that a backtest or a live runner can drive."""

    name: str

    def act(
        self,
        tape: Tape,
        bar: int,
        account: NDArray[np.float32],
        portfolio: NDArray[np.float32],
        masks: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Decide at the close of ``bar``, from nothing later than it.

        Args:
            tape: the market.
            bar: index on the tape of the newest closed bar.
            account: (n, A, Ca) float32, columns ``envs.spaces.ACCOUNT_COLUMNS``.
            portfolio: (n, Cp) float32, columns ``envs.spaces.PORTFOLIO_COLUMNS``.
            masks: (n, M) bool, ``PerpVecEnv.action_masks`` of a discrete action; an agent that asks for a
                wish may ignore them, the env cuts what cannot be had.

        Returns:
            (n, action_dim) float32: in [-1, 1], or indices of choices.
        """
        ...
