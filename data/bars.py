"""Raw market data of one contract, aligned on one clock: what every source yields and features read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perpgym.data.contract import Contract

OPEN, HIGH, LOW, CLOSE = range(4)

MarkRule = Literal["mark", "last"]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars and funding stamps of one contract; immutable by convention.

    Attributes:
        contract: the contract's rules.
        bar_ms: length of a bar, milliseconds.
        open_time_ms: (T,) int64 UTC, equally spaced by ``bar_ms``.
        last: (T, 4) float64 quote, open high low close of traded prices.
        mark: (T, 4) float64 quote, open high low close of the mark price.
        volume: (T,) float64 base; 0 where a missing bar was filled, so nothing can trade there.
        stamp_time_ms: (S,) int64 UTC ascending, settlement times, on whole minutes.
        stamp_rate: (S,) float64, fraction of notional at that settlement; longs pay when > 0.
        premium: (T,) float64, the exchange's premium index (perpetual over index price) at each close, nan
            where unknown; None if the source has none.
        mark_rule: ``mark`` if the mark series is the exchange's, ``last`` if it is a copy of ``last``.
    """

    contract: Contract
    bar_ms: int
    open_time_ms: NDArray[np.int64]
    last: NDArray[np.float64]
    mark: NDArray[np.float64]
    volume: NDArray[np.float64]
    stamp_time_ms: NDArray[np.int64]
    stamp_rate: NDArray[np.float64]
    premium: NDArray[np.float64] | None = None
    mark_rule: MarkRule = "mark"

    def __post_init__(self) -> None:
        bars = self.open_time_ms.shape[0]
        shapes = {"last": (bars, 4), "mark": (bars, 4), "volume": (bars,), "premium": (bars,)}
        for name, shape in shapes.items():
            if getattr(self, name) is not None and getattr(self, name).shape != shape:
                raise ValueError(f"{self.contract.symbol}: {name} must have shape {shape}")
        if self.stamp_time_ms.shape != self.stamp_rate.shape:
            raise ValueError(f"{self.contract.symbol}: every funding stamp needs one rate")

    def __len__(self) -> int:
        return int(self.open_time_ms.shape[0])

    @property
    def close_time_ms(self) -> NDArray[np.int64]:
        """(T,) int64 UTC, the instant at which each bar is complete and a decision is taken."""
        return self.open_time_ms + self.bar_ms

    def stamp_bar(self) -> NDArray[np.int64]:
        """(S,) int64, the bar that owns each stamp: bars own the stamps in (open, close]."""
        # the ceiling of an integer division
        owner: NDArray[np.int64] = -((self.open_time_ms[0] - self.stamp_time_ms) // self.bar_ms) - 1
        return owner

    def slice(self, start: int, stop: int) -> Bars:
        """Bars ``start:stop`` and the stamps that they own: nothing from outside is known."""
        first_open = self.open_time_ms[start]
        last_close = self.open_time_ms[stop - 1] + self.bar_ms
        owned = (self.stamp_time_ms > first_open) & (self.stamp_time_ms <= last_close)
        return Bars(
            contract=self.contract,
            bar_ms=self.bar_ms,
            open_time_ms=self.open_time_ms[start:stop],
            last=self.last[start:stop],
            mark=self.mark[start:stop],
            volume=self.volume[start:stop],
            stamp_time_ms=self.stamp_time_ms[owned],
            stamp_rate=self.stamp_rate[owned],
            premium=None if self.premium is None else self.premium[start:stop],
            mark_rule=self.mark_rule,
        )
