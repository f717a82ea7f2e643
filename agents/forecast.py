"""Targets and loss of the forecasts that the policy's heads read."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape


class ForecastTask:
    """Supervised targets from bars that the rollout has booked, and nothing later.

    The target of bar t and horizon h is what a long of constant size earned over bars t + 1 ... t + h, price
    change less funding, over its typical deviation: log returns times ``scale`` / sqrt(h). Of several
    contracts each has its own; there is none where it is not valid.
    """

    def __init__(
        self,
        tape: Tape,
        horizons: tuple[int, ...],
        scale: float | NDArray[np.float64],
        device: torch.device | str,
    ) -> None:
        """Sum up the tape once.

        Args:
            tape: of A contracts.
            horizons: bars.
            scale: one over the deviation of a bar's log return, of all contracts or (A,) of each.
            device: of the targets.
        """
        self.horizons = horizons
        of_contracts = np.broadcast_to(np.asarray(scale, np.float64), len(tape.contracts))
        self._scale = torch.tensor(of_contracts, device=device)  # A
        self._earned = torch.from_numpy(_earned_by_a_long(tape)).to(device)  # T A
        self._is_valid = torch.tensor(tape.is_valid, device=device)  # T A

    def targets(
        self, first_bar: torch.Tensor, length: torch.Tensor, n_steps: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets of stretches of decisions.

        Args:
            first_bar: (S,) int64, bar of each stretch's first decision.
            length: (S,) int64, decisions of the stretch: it has booked bars up to ``first_bar + length``.
            n_steps: T, decisions for which there is room.

        Returns:
            (S, T, A * H) float32 targets, contract by contract, and (S, T, A * H) bool, where the contract is
            valid and the whole horizon was booked; 0 elsewhere.
        """
        offset = torch.arange(n_steps, device=first_bar.device)
        last = self._earned.shape[0] - 1
        bars = (first_bar.unsqueeze(1) + offset).clamp_(max=last)  # S T
        now, is_valid = self._earned[bars], self._is_valid[bars]  # S T A
        values, known = [], []
        for horizon in self.horizons:
            is_booked = (offset + horizon <= length.unsqueeze(1)).unsqueeze(-1)  # S T 1
            later = self._earned[(first_bar.unsqueeze(1) + offset + horizon).clamp_(max=last)]  # S T A
            is_known = is_booked & is_valid  # S T A
            earned = (later - now) * (self._scale * horizon**-0.5)
            values.append(torch.where(is_known, earned, 0.0).float())
            known.append(is_known)
        return torch.stack(values, dim=-1).flatten(2), torch.stack(known, dim=-1).flatten(2)  # S T A*H

    def loss(self, forecast: torch.Tensor, first_bar: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Huber's loss (1964), because returns have fat tails; the mean over what is known.

        Args:
            forecast: (S, T, A * H).
            first_bar, length: as in :meth:`targets`.
        """
        targets, known = self.targets(first_bar, length, forecast.shape[1])
        error = torch.nn.functional.smooth_l1_loss(forecast, targets, reduction="none")  # S T A*H
        return (error * known).sum() / known.sum().clamp(min=1)


def _earned_by_a_long(tape: Tape) -> NDArray[np.float64]:
    """(T, A) log returns of the mark less funding, summed up to the close of each bar."""
    price = np.log(tape.mark[:, :, CLOSE])
    paid = np.concatenate(([0.0], np.cumsum(tape.stamp_rate)))[tape.stamp_start.T]  # T+1 A
    return np.asarray(price - price[0] - (paid[1:] - paid[0]), dtype=np.float64)
