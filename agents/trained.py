"""A trained policy as an Agent: deterministic actions, each bar of the tape encoded once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.agents.artifact import Artifact
from perpgym.data.tape import Tape
from perpgym.policies.bound_tape import BoundTape
from perpgym.policies.deciding import Policy, Remembering


class TrainedAgent:
    """Acts with what the policy decides: the mean of its Gaussian, clipped, or the level worth most.

    Embeddings are computed lazily for ``chunk_bars`` consecutive bars; causality makes them the same as one
    bar at a time. They are dropped when another tape is shown or the weights move. What a policy remembers of
    its accounts is kept from bar to bar.
    """

    reads_masks = True

    def __init__(self, source: Artifact | Policy, name: str = "agent", chunk_bars: int = 1_024) -> None:
        """Wrap a policy.

        Args:
            source: an artifact, whose tapes are checked, or a bare policy.
            name: for tables and figures.
            chunk_bars: bars encoded at once.
        """
        self.name = name
        self.policy = source.policy if isinstance(source, Artifact) else source
        self._artifact = source if isinstance(source, Artifact) else None
        self._chunk_bars = chunk_bars
        self._bound: BoundTape | None = None
        self._weights = -1
        self._context = torch.empty(0)  # n 2D, of the bars from _first on
        self._first = 0
        # (n, Z) of a policy that remembers: in force at the last bar that was asked for, and for the next one
        self.in_force = self.memory = torch.empty(0)
        self._next_bar = -1

    @torch.no_grad()
    def act(
        self,
        tape: Tape,
        bar: int,
        account: NDArray[np.float32],
        portfolio: NDArray[np.float32],
        masks: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Decide at the close of ``bar``; see :class:`perpgym.agents.protocol.MaskedAgent`.

        Raises:
            ValueError: the tape does not fit the artifact, or fewer than R bars lie up to ``bar``.
        """
        context = self._context_of(tape, bar)  # 2D
        flat = np.concatenate((account.reshape(len(account), -1), portfolio), axis=1)
        state = torch.from_numpy(flat).to(context.device)
        mask = None if masks is None else torch.from_numpy(masks).to(context.device)
        if isinstance(self.policy, Remembering):
            state = self._remember(self.policy, bar, context, state)
        decided = self.policy.decide(context, state, mask)  # n a
        actions: NDArray[np.float32] = decided.cpu().numpy()
        return actions

    def _remember(
        self, policy: Remembering, bar: int, context: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        """(n, S + Z) states with what is remembered, which a gap in the bars or other accounts wipe out."""
        if bar != self._next_bar or len(self.memory) != len(state):
            self.memory = state.new_zeros(len(state), policy.memory_size)
        self.in_force = memory = policy.remember(context, state, self.memory)
        self.memory, self._next_bar = policy.forget(memory), bar + 1
        return torch.cat((state, memory), dim=-1)

    def _context_of(self, tape: Tape, bar: int) -> torch.Tensor:
        # torch counts in-place changes: an update of the weights makes the cache stale
        weights = sum(parameter._version for parameter in self.policy.parameters())
        if self._bound is None or self._bound.tape is not tape:
            if self._artifact is not None:
                self._artifact.check_tape(tape)
            self._bound = BoundTape.of(tape, self.policy.device)
            self._weights = -1
        offset = bar - self._first
        if weights != self._weights or not 0 <= offset < len(self._context):
            self._encode(self._bound, bar)
            self._weights, offset = weights, 0
        return self._context[offset]

    def _encode(self, bound: BoundTape, bar: int) -> None:
        earliest = bound.tape.first_valid_bar + self.policy.receptive_field - 1
        if not earliest <= bar < len(bound.tape):
            last = len(bound.tape) - 1
            raise ValueError(f"the policy can decide at bars {earliest} to {last} of this tape, not at {bar}")
        first = torch.tensor([bar], device=self.policy.device)
        n_bars = min(self._chunk_bars, len(bound.tape) - bar)
        self._context = self.policy.features_extractor.stretch_context(first, n_bars, bound)[0]
        self._first = bar
