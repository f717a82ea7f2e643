"""What every agent can do, trained or not: turn what is known at a close into an action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from perpgym.data.contract import Contract
from perpgym.data.tape import Tape


class Agent(Protocol):
    """A policy that a backtest or a live runner can drive."""

    name: str

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Decide at the close of ``bar``, from nothing later than it.

        Args:
            tape: the market.
            bar: index on the tape of the newest closed bar.
            account: (n, A, Ca) float32, columns ``envs.spaces.ACCOUNT_COLUMNS``.
            portfolio: (n, Cp) float32, columns ``envs.spaces.PORTFOLIO_COLUMNS``.

        Returns:
            (n, action_dim) float32 in [-1, 1].
        """
        ...


@runtime_checkable
class MaskedAgent(Protocol):
    """An agent that chooses among what is allowed, and must be told what that is."""

    name: str
    reads_masks: bool

    def act(
        self,
        tape: Tape,
        bar: int,
        account: NDArray[np.float32],
        portfolio: NDArray[np.float32],
        masks: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """As an :class:`Agent`, within ``masks``, (n, choices), of ``PerpVecEnv.action_masks``."""
        ...


class LiveAgent(Agent, Protocol):
    """An agent that can trade live: on the newest bars alone, and on from where its program ended."""

    def lookback_bars(self, contracts: Sequence[Contract], bar_ms: int) -> int:
        """How many valid bars it reads, the newest included; with fewer it would decide otherwise."""
        ...

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """What the next decision depends on beside what it is shown, for a journal."""
        ...

    def load_state(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Continue where :meth:`state_dict` was taken, at the same bar or as many later as have passed."""
        ...
