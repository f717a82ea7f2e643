"""The newest bars of a running market, as a tape: what a live agent sees, computed as in training.

A row of features needs no more bars than its columns look back, so the raw bars of R rows and one look-back
are kept. With each closed bar one row is computed, by the code that computes whole tapes; nothing is carried
from row to row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.clock import iso
from perpgym.data.features import newest_features, sigma_per_bar
from perpgym.data.features.build import build_tape, longest_lookback, owned_stamps
from perpgym.data.features.volatility import SIGMA_LOOKBACK

Float64 = NDArray[np.float64]

# columns that need more than bars and settlements, which is all that a live market gives here
_NOT_LIVE = ("predicted_funding",)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClosedBar:
    """One bar of every contract, final.

    Attributes:
        open_time_ms: UTC.
        last, mark: (A, 4) float64 quote, open high low close.
        volume: (A,) float64 base.
        stamps: by contract, (time in ms, rate) of the settlements in (open, close], ascending.
    """

    open_time_ms: int
    last: Float64
    mark: Float64
    volume: Float64
    stamps: tuple[tuple[tuple[int, float], ...], ...]


class Ring:
    """The newest bars of A contracts.

    Args:
        bars: history of each contract up to one moment; the last one ends where the ring begins.
        features, risk: names of the columns, as the policy was trained on.
        window_bars: R.
        usual_bars: bars that anything else looks back (the turnover of an impact model, a rule).
        source: in words for people.

    Attributes:
        tape: (keep,) bars; its last R rows are valid. A new object after each bar.

    Raises:
        ValueError: a contract has less history than the columns look back, or a column needs what no live
            market gives.
    """

    def __init__(
        self,
        bars: Sequence[Bars],
        *,
        features: Sequence[str],
        risk: Sequence[str],
        window_bars: int,
        usual_bars: int = 0,
        source: str = "live",
    ) -> None:
        self.keep = bars_kept(features, risk, bars[0].bar_ms, window_bars, usual_bars)
        self.lookback = longest_lookback((*features, *risk), bars[0].bar_ms)
        self._features, self._risk = tuple(features), tuple(risk)
        self._source, self._window = source, window_bars
        self.restart(bars)

    def restart(self, bars: Sequence[Bars]) -> None:
        """Begin anew from other bars: the exchange has revised what it said."""
        for own in bars:
            if len(own) < min(self.keep, self.lookback + self._window - 1):
                raise ValueError(
                    f"{own.contract.symbol}: {len(own)} bars of history are too few: the columns look back "
                    f"{self.lookback} bars and the policy sees {self._window}, so "
                    f"{self.lookback + self._window - 1} are needed; wait, or trade another contract"
                )
        self._bars = [own.slice(max(len(own) - self.keep, 0), len(own)) for own in bars]
        self.tape = build_tape(self._bars, features=self._features, risk=self._risk, source=self._source)

    @property
    def newest(self) -> int:
        """Index on the tape of the newest closed bar."""
        return len(self.tape) - 1

    @property
    def next_open_ms(self) -> int:
        """When the bar that comes next opens, which is when the newest one closed."""
        return int(self.tape.open_time_ms[-1]) + self.tape.bar_ms

    def last_closes(self) -> Float64:
        """(A,) quote."""
        return np.asarray(self.tape.last[-1, :, 3])

    def raw(self, bars: int) -> list[Bars]:
        """The newest ``bars`` bars of each contract."""
        return [own.slice(max(len(own) - bars, 0), len(own)) for own in self._bars]

    def revise(self, bars: Sequence[ClosedBar]) -> None:
        """Take back what was said of bars that are kept, and compute everything anew."""
        revised = []
        for asset, own in enumerate(self._bars):
            last, mark, volume = own.last.copy(), own.mark.copy(), own.volume.copy()
            for bar in bars:
                place = (bar.open_time_ms - int(own.open_time_ms[0])) // own.bar_ms
                last[place], mark[place], volume[place] = bar.last[asset], bar.mark[asset], bar.volume[asset]
            revised.append(replace(own, last=last, mark=mark, volume=volume))
        self.restart(revised)

    def push(self, bar: ClosedBar) -> None:
        """Take one more bar in and let the oldest go.

        Raises:
            ValueError: it is not the next one, or holds what no market may.
        """
        if bar.open_time_ms != self.next_open_ms:
            raise ValueError(
                f"the next bar must open at {iso(self.next_open_ms)}, this one opens at "
                f"{iso(bar.open_time_ms)}: fetch the bars between them first"
            )
        longer = [grown(own, bar, asset, self.keep) for asset, own in enumerate(self._bars)]
        tape = self.tape
        first = max(len(tape) + 1 - self.keep, 0)
        clock = np.append(tape.open_time_ms, bar.open_time_ms)[first:]
        listings = [len(clock) - len(own) for own in longer]
        stamp_start, stamp_time_ms, stamp_rate = owned_stamps(longer, listings, len(clock))
        sigmas = [sigma_per_bar(own.slice(max(len(own) - SIGMA_LOOKBACK, 0), len(own)))[-1] for own in longer]
        self.tape = replace(
            tape,
            open_time_ms=clock,
            last=_rolled(tape.last, bar.last, first),
            mark=_rolled(tape.mark, bar.mark, first),
            volume=_rolled(tape.volume, bar.volume, first),
            sigma_per_bar=_rolled(tape.sigma_per_bar, np.array(sigmas), first),
            stamp_start=stamp_start,
            stamp_time_ms=stamp_time_ms,
            stamp_rate=stamp_rate,
            features=_rolled(tape.features, _newest(longer, self._features), first),
            risk=_rolled(tape.risk, _newest(longer, self._risk), first),
            is_valid=_rolled(tape.is_valid, np.ones(len(longer), np.bool_), first),
            first_valid_bar=max(tape.first_valid_bar - first, 0),
            _cache={},
        )
        self._bars = longer


def bars_kept(
    features: Sequence[str], risk: Sequence[str], bar_ms: int, window_bars: int, usual_bars: int = 0
) -> int:
    """Bars that a ring keeps: a look-back before the first of R rows, or of what else looks back.

    Raises:
        ValueError: a column needs what no live market gives.
    """
    unknown = [name for name in (*features, *risk) if name in _NOT_LIVE]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} needs the premium index, which is not read live: train without it"
        )
    return longest_lookback((*features, *risk), bar_ms) - 1 + max(window_bars, usual_bars + 1)


def grown(own: Bars, bar: ClosedBar, asset: int, keep: int) -> Bars:
    """A contract's bars with one more, the newest ``keep`` of them."""
    stamps = bar.stamps[asset]
    longer = replace(
        own,
        open_time_ms=np.append(own.open_time_ms, bar.open_time_ms),
        last=np.concatenate([own.last, bar.last[asset][None]]),
        mark=np.concatenate([own.mark, bar.mark[asset][None]]),
        volume=np.append(own.volume, bar.volume[asset]),
        stamp_time_ms=np.append(own.stamp_time_ms, np.array([time for time, _ in stamps], np.int64)),
        stamp_rate=np.append(own.stamp_rate, np.array([rate for _, rate in stamps], np.float64)),
        premium=None,
    )
    return longer.slice(max(len(longer) - keep, 0), len(longer))


def _newest(bars: Sequence[Bars], names: Sequence[str]) -> NDArray[np.float32]:
    """(A, F) the newest row of each contract."""
    return np.stack([newest_features(own, names) for own in bars])


def _rolled(column: NDArray[Any], row: NDArray[Any], first: int) -> NDArray[Any]:
    return np.concatenate([column[first:], row[None].astype(column.dtype)])
