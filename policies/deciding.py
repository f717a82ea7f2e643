"""What any trained policy can be asked: the deterministic action of accounts at bars that were encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

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

    def forget(self, memory: torch.Tensor, bars: int = 1) -> torch.Tensor:
        """(..., Z) what is left of it when so many bars have passed."""
        ...


# (context, account, memory, mask) -> actions and the memory in which they were taken
Act = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]
]


def predict_remembering(
    policy: Any,
    observation: Any,
    state: tuple[NDArray[Any], ...] | None,
    episode_start: NDArray[np.bool_] | None,
    action_masks: NDArray[np.bool_] | None,
    act: Act,
) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
    """SB3's ``predict`` of a recurrent policy whose state is its :class:`Remembering` memory.

    Args:
        policy: SB3's, and :class:`Remembering`.
        observation: of the env, of one account or of N.
        state: what the last call returned; None at the beginning.
        episode_start: (N,) which accounts begin an episode.
        action_masks: (N, m), of the env's discrete actions; None allows all.
        act: what the policy does with them.

    Returns:
        Actions, and the state for the next call: ((N, Z) float32,).

    Raises:
        ValueError: the state is that of other accounts.
    """
    policy.set_training_mode(False)
    tensors, is_batch = policy.obs_to_tensor(observation)
    with torch.no_grad():
        context, account = policy.features_extractor.read(tensors)
        memory = account.new_zeros(len(account), policy.memory_size)
        if state is not None:
            before = torch.as_tensor(state[0])
            if before.numel() != memory.numel():
                raise ValueError(
                    f"the state is of shape {tuple(before.shape)}, {len(account)} accounts have one of "
                    f"{tuple(memory.shape)}: pass what the last call for these accounts returned, or None"
                )
            memory.copy_(before.reshape(memory.shape))
        if episode_start is not None:
            memory[torch.as_tensor(episode_start, dtype=torch.bool, device=policy.device)] = 0.0
        mask = None
        if action_masks is not None:
            mask = torch.as_tensor(action_masks, device=policy.device).reshape(len(account), -1)
        actions, memory = act(context, account, memory, mask)
    chosen = actions.cpu().numpy().reshape(-1, *(policy.action_space.shape or ()))
    return (chosen if is_batch else chosen[0]), (policy.forget(memory).cpu().numpy(),)
