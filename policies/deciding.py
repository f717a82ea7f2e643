"""What any trained policy can be asked: the deterministic action of accounts at bars that were encoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch

from perpgym.policies.features import PerpFeatures


class Policy(Protocol):
    """A policy that decides from a bar's context and an account's state."""

    @property
    def features_extractor(self) -> PerpFeatures:
        """What encodes bars."""
        ...

    @property
    def receptive_field(self) -> int:
        """R, bars."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Its weights."""
        ...

    def decide(
        self, context: torch.Tensor, state: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Deterministic actions, in the env's action space.

        Args:
            context: (..., C); leading axes broadcast with those of ``state``.
            state: (..., S) raw account columns, then portfolio columns.
            mask: (..., choices) bool, what is allowed, as ``PerpVecEnv.action_masks`` gives it; None allows
                all. Continuous actions have none.

        Returns:
            (..., action_dim) float32.
        """
        ...

    def answers(self, context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., n) what the decision rests on, numbers of size one that move a little with the context."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A policy that remembers something of each account; its ``decide`` reads that behind the state.

    Attributes:
        memory_size: Z, columns of a memory; a row of zeros remembers nothing.
    """

    @property
    def memory_size(self) -> int:
        """Z."""
        ...

    def remember(self, context: torch.Tensor, state: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """(..., Z) what holds for the decision at hand; ``state`` (..., S), ``memory`` (..., Z) of before."""
        ...

    def forget(self, memory: torch.Tensor) -> torch.Tensor:
        """(..., Z) what is left of it when the bar has passed."""
        ...
