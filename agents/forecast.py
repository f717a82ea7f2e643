"""Targets and loss of the forecasts that the policy's heads read."""

from __future__ import annotations

import numpy as np
import torch

from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape


class ForecastTask:
    """Supervised targets from bars that the rollout has booked, and nothing later.

    The target of bar t and horizon h is what a long of constant size earned over bars t + 1 ... t + h, price
    change less funding, over its typical deviation: log returns times ``scale`` / sqrt(h).
    """

    def __init__(
        self, tape: Tape, horizons: tuple[int, ...], scale: float, device: torch.device | str
    ) -> None:
        """Sum up the tape once.

        Args:
            tape: of one contract.
            horizons: bars.
            scale: one over the deviation of a bar's log return.
            device: of the targets.
        """
        self.horizons = horizons
        self._scale = [scale * horizon**-0.5 for horizon in horizons]
        self._earned = torch.from_numpy(_earned_by_a_long(tape)).to(device)  # T

    def targets(
        self, first_bar: torch.Tensor, length: torch.Tensor, n_steps: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets of stretches of decisions.

        Args:
            first_bar: (S,) int64, bar of each stretch's first decision.
            length: (S,) int64, decisions of the stretch: it has booked bars up to ``first_bar + length``.
            n_steps: T, decisions for which there is room.

        Returns:
            (S, T, H) float32 targets, and (S, T, H) bool, where the whole horizon was booked; 0 elsewhere.
        """
        offset = torch.arange(n_steps, device=first_bar.device)
        last = self._earned.shape[0] - 1
        now = self._earned[(first_bar.unsqueeze(1) + offset).clamp_(max=last)]  # S T
        values, known = [], []
        for horizon, scale in zip(self.horizons, self._scale, strict=True):
            is_booked = offset + horizon <= length.unsqueeze(1)  # S T
            later = self._earned[(first_bar.unsqueeze(1) + offset + horizon).clamp_(max=last)]  # S T
            values.append(torch.where(is_booked, (later - now) * scale, 0.0).float())
            known.append(is_booked)
        return torch.stack(values, dim=-1), torch.stack(known, dim=-1)  # S T H

    def loss(self, forecast: torch.Tensor, first_bar: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Huber's loss (1964), because returns have fat tails; the mean over what is known.

        Args:
            forecast: (S, T, H).
            first_bar, length: as in :meth:`targets`.
        """
        targets, known = self.targets(first_bar, length, forecast.shape[1])
        error = torch.nn.functional.smooth_l1_loss(forecast, targets, reduction="none")  # S T H
        return (error * known).sum() / known.sum().clamp(min=1)


def _earned_by_a_long(tape: Tape) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(T,) log returns of the mark less funding, summed up to the close of each bar."""
    price = np.log(tape.mark[:, 0, CLOSE])
    paid = np.concatenate(([0.0], np.cumsum(tape.stamp_rate)))[tape.stamp_start[0]]  # T+1
    return np.asarray(price - price[0] - (paid[1:] - paid[0]), dtype=np.float64)
