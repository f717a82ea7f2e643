"""What a step is worth: settings of the reward, resolved to the numbers that the kernel applies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape


@dataclass(frozen=True, kw_only=True)
class LogReturn:
    """Log equity return of a step, less a price for its risk, times a fixed scale.

    Attributes:
        scale: multiplies the log return; None is one over the deviation of the mark's log return per bar over
            the training period, so that a unit exposure earns rewards of unit size on any contract.
        risk_aversion: gamma; log return g is worth g - (gamma - 1) / 2 * g**2, the second-order expansion of
            power utility. 1 is log growth, whose optimal exposures draw down by half.
        equity_floor: the log return is floored at this one's logarithm, fraction of equity.
    """

    scale: float | None = None
    risk_aversion: float = 1.0
    equity_floor: float = 0.01

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale > 0:
            raise ValueError(
                f"reward scale must be positive, was {self.scale}; null derives it from the data"
            )

    def resolve(self, tape: Tape, start_bar: int, end_bar: int) -> float:
        """The scale, from bars ``start_bar`` up to ``end_bar`` where it is derived."""
        if self.scale is not None:
            return self.scale
        returns = np.diff(np.log(tape.mark[start_bar:end_bar, 0, CLOSE]))
        deviation = float(returns.std())
        return 1.0 / deviation if deviation > 0 else 1.0
