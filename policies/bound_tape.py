"""The tape as tensors beside the network, for observations that are bar indices."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.data.tape import Tape


@dataclass(frozen=True, kw_only=True)
class BoundTape:
    """Raw columns of a tape on one device; memory-mapped pages stay shared on the CPU.

    Attributes:
        tape: the tape itself.
        market: (T, A * F) float32, raw.
        risk: (T, A * K) float32, raw.
        first_clock: bars since the epoch of bar 0.
        is_valid: (T, A) bool, where a contract's columns are whole; None where there is one contract, which
            nobody looks at before.
    """

    tape: Tape
    market: torch.Tensor
    risk: torch.Tensor
    first_clock: int
    is_valid: torch.Tensor | None = None

    @classmethod
    def of(cls, tape: Tape, device: torch.device) -> BoundTape:
        """Put a tape on a device."""
        return cls(
            tape=tape,
            market=_columns(tape.features, device),
            risk=_columns(tape.risk, device),
            first_clock=int(tape.epoch_bar(np.array(0))),
            is_valid=torch.tensor(tape.is_valid, device=device) if len(tape.contracts) > 1 else None,
        )

    def stretches(
        self, first_bar: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Consecutive bars from each of several places.

        Args:
            first_bar: (S,) int64, index on the tape of each stretch's first bar.
            length: L. Bars before the tape's first or after its last repeat the edge: the caller reads no
                embedding that depends on them.

        Returns:
            market (S, L, A * F), risk (S, L, A * K), both NaN where one of several contracts is not valid;
            clock (S,) int64: bars since the epoch of the first bar.
        """
        bars = first_bar.unsqueeze(1) + torch.arange(length, device=first_bar.device)  # S L
        bars = bars.clamp_(0, self.market.shape[0] - 1)
        market, risk = self.market[bars], self.risk[bars]
        if self.is_valid is not None:
            is_valid = self.is_valid[bars]
            market, risk = without_invalid(market, is_valid), without_invalid(risk, is_valid)
        return market, risk, first_bar + self.first_clock


def without_invalid(columns: torch.Tensor, is_valid: torch.Tensor) -> torch.Tensor:
    """Columns (..., A * F) with NaN, the encoders' sign, where a contract, (..., A) bool, is not valid."""
    by_contract = columns.reshape(*is_valid.shape, -1)  # ... A F
    return by_contract.masked_fill(~is_valid.unsqueeze(-1), torch.nan).flatten(-2)


def _columns(columns: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    flat = np.ascontiguousarray(columns, dtype=np.float32).reshape(columns.shape[0], -1)
    with warnings.catch_warnings():
        # torch warns of every read-only array that it could be written through; a tape never is
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(flat).to(device)
