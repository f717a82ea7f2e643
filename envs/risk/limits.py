"""The limits of the risk overlay, the same in training, evaluation and live."""

from __future__ import annotations

from dataclasses import dataclass

from perpgym.data.checks import check_number


@dataclass(frozen=True, kw_only=True)
class RiskLimits:
    """What an account may never do, whatever its policy asks for. None switches a limit off.

    Attributes:
        max_leverage: |notional| over equity; an exposure that drifts above it is cut back to it.
        max_notional: quote, |notional| of the position.
        max_daily_loss: fraction of equity at the last UTC midnight; once lost, the account is flat until the
            next midnight.
        drawdown_start: fraction of peak equity from which admitted exposure shrinks linearly, to nothing at
            the env's ``max_drawdown``.
    """

    max_leverage: float = 3.0
    max_notional: float | None = None
    max_daily_loss: float | None = 0.10
    drawdown_start: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_leverage", "max_notional", "max_daily_loss", "drawdown_start"):
            if getattr(self, name) is not None or name == "max_leverage":
                check_number(name, getattr(self, name))
        if not 0 < self.max_leverage <= 150:
            raise ValueError(
                f"max_leverage must lie between 0 and 150 (notional over equity), was {self.max_leverage}"
            )
        if self.max_notional is not None and not self.max_notional > 0:
            raise ValueError(f"max_notional must be positive (quote), was {self.max_notional}; null for none")
        for name in ("max_daily_loss", "drawdown_start"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(
                    f"{name} must lie between 0 and 1 (a fraction of equity), was {value}; null for none"
                )
