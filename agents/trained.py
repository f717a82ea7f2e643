"""A trained policy as an Agent: deterministic actions, each bar encoded once, and how sure it is of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.agents.artifact import Artifact
from perpgym.agents.asking import Asking
from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.policies.bound_tape import BoundTape
from perpgym.policies.deciding import Policy, Remembering


class TrainedAgent:
    """Acts with what the policy decides: the mean of its Gaussian, clipped, or the level worth most.

    Embeddings are computed lazily for ``chunk_bars`` consecutive bars; causality makes them the same as one
    bar at a time. They are dropped when another tape is shown or the weights move. What a policy remembers of
    its accounts is kept from bar to bar.

    A policy with ``head_dropout`` also says how uncertain it is: its decision is taken ``samples`` times
    more, each time without some of the features that its heads read. Which ones depends on the bar's time
    alone, so the same decision is always as uncertain.

    Attributes:
        uncertainty: (n, A) of the newest decision, signed notional over equity: the standard deviation of the
            exposures asked for; zero without dropout.
    """

    reads_masks = True

    def __init__(
        self,
        source: Artifact | Policy,
        name: str = "agent",
        chunk_bars: int = 1_024,
        *,
        config: EnvConfig | None = None,
        samples: int = 16,
        abstain_above: float | None = None,
    ) -> None:
        """Wrap a policy.

        Args:
            source: an artifact, whose tapes are checked, or a bare policy.
            name: for tables and figures.
            chunk_bars: bars encoded at once.
            config: what actions mean; None takes the artifact's, and a bare policy then knows no uncertainty.
            samples: decisions of which the uncertainty is the spread.
            abstain_above: a contract whose uncertainty is larger is not traded; None for no limit.

        Raises:
            ValueError: it should abstain, and cannot tell how uncertain it is.
        """
        self.name = name
        self.policy = source.policy if isinstance(source, Artifact) else source
        self._artifact = source if isinstance(source, Artifact) else None
        config = source.env_config if config is None and isinstance(source, Artifact) else config
        is_measured = config is not None and self.policy.features_extractor.head_dropout > 0.0
        self._asking = Asking(config) if config is not None and is_measured else None
        self._samples, self.abstain_above = samples, abstain_above
        if abstain_above is not None and self._asking is None:
            raise ValueError(
                f"abstain_above is {abstain_above:g}, but a policy with head_dropout=0 does not know how "
                "uncertain it is: train it with policy.head_dropout above 0, or ask an ensemble"
            )
        self.uncertainty = np.zeros((0, 0))
        self._chunk_bars = chunk_bars
        self._bound: BoundTape | None = None
        # kept, because walking the modules of a policy at every bar is slow
        self._parameters = tuple(self.policy.parameters())
        self._weights = -1
        self._context = torch.empty(0)  # n 2D, of the bars from _first on
        self._first = 0
        # (n, Z) of a policy that remembers: what there was at the last bar that was asked for, and what was
        # in force in its decision
        self.before = self.in_force = torch.empty(0)
        self._bar = -1
        self._is_restored = False

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
        # by time: the same bar stands elsewhere on a tape of the newest bars
        now = int(tape.epoch_bar(np.array(bar)))
        before = self._memory_at(now, len(state))
        decided, memory = self._decide(context, state, before, mask)
        actions: NDArray[np.float32] = decided.cpu().numpy()
        self.before, self.in_force, self._bar, self._is_restored = before, memory, now, False
        if self._asking is None:
            self.uncertainty = np.zeros(account.shape[:2])
            return actions
        with self.policy.features_extractor.dropping((self._samples, 1), seed=int(tape.open_time_ms[bar])):
            many = (self._samples, -1, -1)
            dropped, _ = self._decide(context, state.expand(many), before.expand(many), mask)  # m n a
        asked = [self._asking.exposures(one, account) for one in dropped.cpu().numpy()]
        self.uncertainty = np.std(asked, axis=0)
        if self.abstain_above is None:
            return actions
        return self._asking.hold_where(self.uncertainty > self.abstain_above, account, actions)

    def _decide(
        self, context: torch.Tensor, state: torch.Tensor, before: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(..., a) actions and (..., Z) what is remembered now, of states (..., S) and what was (..., Z)."""
        if not isinstance(self.policy, Remembering):
            return self.policy.decide(context, state, mask), before
        memory = self.policy.remember(context, state, before)
        return self.policy.decide(context, torch.cat((state, memory), dim=-1), mask), memory

    def _memory_at(self, bar: int, n_accounts: int) -> torch.Tensor:
        """(n, Z) what is remembered of before.

        A bar that is asked for again is decided as it was. Other accounts wipe the memory out, and so does a
        gap in the bars, but for one of a program that was away.
        """
        size = self.policy.memory_size if isinstance(self.policy, Remembering) else 0
        passed = bar - self._bar
        if self.before.shape == (n_accounts, size):
            if passed == 0:
                return self.before
            if isinstance(self.policy, Remembering) and (passed == 1 or (passed > 1 and self._is_restored)):
                return self.policy.forget(self.in_force, passed)
        return torch.zeros(n_accounts, size, device=self.policy.device)

    def lookback_bars(self, contracts: Sequence[Contract], bar_ms: int) -> int:
        """R; see :class:`perpgym.agents.protocol.LiveAgent`."""
        return self.policy.receptive_field

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """What the next decision depends on beside what it is shown, for a journal."""
        parts = {"before": self.before, "in_force": self.in_force}
        arrays: dict[str, NDArray[np.generic]] = {
            n: t.detach().cpu().numpy().copy() for n, t in parts.items()
        }
        return {**arrays, "bar": np.array(self._bar, np.int64)}

    def load_state(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Continue where :meth:`state_dict` was taken, at the same bar or as many later as have passed."""
        self.before, self.in_force = (
            torch.from_numpy(np.array(state[name], np.float32)).to(self.policy.device)
            for name in ("before", "in_force")
        )
        self._bar, self._is_restored = int(state["bar"]), True

    def _context_of(self, tape: Tape, bar: int) -> torch.Tensor:
        # torch counts in-place changes: an update of the weights makes the cache stale
        weights = sum(parameter._version for parameter in self._parameters)
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
