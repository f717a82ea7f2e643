"""What the market shows at a moment: a tape, bar by bar, of which nothing beyond the moment can be read.

The market moves in steps of one bar (of the finer bars, where there are any). While a bar is open the
exchange shows its opening prices, and that is where orders meet the book; all that the bar does besides
happens when it closes. So nothing that is shown earns anything, and an order that arrives between the close
of a bar and the close of the next one fills as the env's order at the open.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, HIGH, LOW, OPEN
from perpgym.data.sources.l2 import Recording
from perpgym.data.sources.l2_book import Ladder
from perpgym.data.tape import Tape
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.finer import Finer

Float64 = NDArray[np.float64]

_MINUTE_MS = 60_000
INTERVALS_MS = {
    **{f"{n}m": n * _MINUTE_MS for n in (1, 3, 5, 15, 30)},
    **{f"{n}h": n * 60 * _MINUTE_MS for n in (1, 2, 4, 6, 8, 12)},
    "1d": 1440 * _MINUTE_MS,
}
DAY_MS = INTERVALS_MS["1d"]


class Replay:
    """A tape with a cursor at the bar that is open.

    Args:
        tape: linear contracts that settle in one currency.
        finer: bars inside its bars.
        start_bar: the tape's bar that is open at first; None for the first one that any feature is valid at.
        end_bar: bars from this one on are never shown; None for the tape's end.
        recording: where ``tape`` is its tape, the recorded book and trades to show and to trade on.

    Raises:
        ValueError: no bar lies between the two, or the recording is of other bars.
    """

    def __init__(
        self,
        tape: Tape,
        finer: Finer | None = None,
        *,
        start_bar: int | None = None,
        end_bar: int | None = None,
        recording: Recording | None = None,
    ) -> None:
        self.tape, self.inside = tape, finer or Finer.same(tape)
        self.recording = recording
        if recording is not None and not (
            finer is None and np.array_equal(recording.bars.open_time_ms, tape.open_time_ms)
        ):
            raise ValueError(
                "a recording is replayed on its own bars: give recording.tape() and no finer bars"
            )
        self.fine_ms = tape.bar_ms // self.inside.per_bar
        # volatility is known from the bar before
        first = max(tape.first_valid_bar, self.inside.start_bar, 1) if start_bar is None else start_bar
        last = min(len(tape), self.inside.end_bar)
        last = last if end_bar is None else min(last, end_bar)
        if not max(self.inside.start_bar, 1) <= first < last:
            raise ValueError(
                f"start_bar must lie between {max(self.inside.start_bar, 1)} and {last - 1}, was {first}"
            )
        self._start = self._fine_of(first)
        self._end = self._fine_of(last)
        self.fine = self._start
        self.is_over = False

    def _fine_of(self, bar: int) -> int:
        return self.inside.first + bar * self.inside.per_bar

    @property
    def bar(self) -> int:
        """The tape's bar that is open."""
        return (self.fine - self.inside.first) // self.inside.per_bar

    @property
    def number(self) -> int:
        """Which finer bar of it is open."""
        return (self.fine - self.inside.first) % self.inside.per_bar

    @property
    def open_ms(self) -> int:
        """When the open (finer) bar opened."""
        return int(self.tape.open_time_ms[self.bar]) + self.number * self.fine_ms

    @property
    def close_ms(self) -> int:
        """When it closes, and the next one opens."""
        return self.open_ms + self.fine_ms

    @property
    def end_ms(self) -> int:
        """When the last bar closes."""
        return self.open_ms + (self._end - self.fine) * self.fine_ms

    def move_on(self) -> bool:
        """Open the next bar; whether there is one. After the last one, its close stays shown."""
        if self.fine + 1 >= self._end:
            self.is_over = True
            return False
        self.fine += 1
        return True

    @property
    def _shown(self) -> int:
        return CLOSE if self.is_over else OPEN

    def last_price(self, asset: int) -> float:
        """quote, of the newest trade."""
        return float(self.inside.last[self.fine, asset, self._shown])

    def mark_price(self, asset: int) -> float:
        """quote, the mark of the moment."""
        return float(self.inside.mark[self.fine, asset, self._shown])

    def marks(self) -> Float64:
        """(A,) quote."""
        marks: Float64 = self.inside.mark[self.fine, :, self._shown]
        return marks

    def is_trading(self, asset: int) -> bool:
        """Whether the contract is listed: from its first valid bar on."""
        return bool(self.tape.is_valid[self.bar, asset])

    def recorded_book(self) -> Ladder | None:
        """The recorded book of the moment: that of the open; None where none was recorded."""
        if self.recording is None:
            return None
        return self.recording.books[self.fine + (1 if self.is_over else 0)]

    def sigma_per_bar(self, asset: int) -> float:
        """Volatility of a tape's bar as known at the last close."""
        return float(self.tape.sigma_per_bar[self.bar - 1, asset])

    def volume_before(self, asset: int) -> float:
        """base, of the newest closed (finer) bar: the open one's is not known yet."""
        return float(self.inside.volume[self.fine - 1, asset])

    @property
    def intervals(self) -> tuple[str, ...]:
        """Names of the intervals that the tape's bars make, shortest first."""
        return tuple(name for name, ms in INTERVALS_MS.items() if ms % self.fine_ms == 0)

    def interval_ms(self, interval: str) -> int:
        """Length of an interval.

        Raises:
            Rejected: -1120, the tape's bars do not make it; says which ones they make.
        """
        if interval not in self.intervals:
            made = f"this exchange shows {', '.join(self.intervals)}, was asked for {interval}"
            raise Rejected(-1120, text=f"Invalid interval: {made}.")
        return INTERVALS_MS[interval]

    def klines(
        self,
        asset: int,
        interval: str,
        *,
        is_mark: bool = False,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = 500,
    ) -> list[tuple[int, float, float, float, float, float]]:
        """Bars up to the moment, the open one last: (open time, open, high, low, close, base volume).

        Raises:
            Rejected: -1120, an interval that the tape's bars do not make.
        """
        step = self.interval_ms(interval)
        first_ms, of_ms, total = self._grid(step)
        begin = -(-(start_ms - first_ms) // of_ms) if start_ms is not None else 0
        stop = (end_ms - first_ms) // of_ms + 1 if end_ms is not None else total
        begin, stop = max(begin, 0), min(stop, total)
        per = step // of_ms
        if start_ms is None:
            begin = max(begin, stop - (limit + 1) * per)
        else:
            stop = min(stop, begin + (limit + 1) * per)
        # whole intervals: those that open at or after the start
        begin += -((first_ms + begin * of_ms) // of_ms) % per
        # an interval that has begun by the end is shown with all that is known of it
        stop = min(stop + -((first_ms + stop * of_ms) // of_ms) % per, total) if stop > begin else stop
        if stop <= begin:
            return []
        starts = np.arange(0, stop - begin, per)
        part, sizes = self._cut(asset, step, is_mark, begin, stop)
        ends = np.append(starts[1:], stop - begin) - 1
        columns = (
            part[starts, OPEN],
            np.maximum.reduceat(part[:, HIGH], starts),
            np.minimum.reduceat(part[:, LOW], starts),
            part[ends, CLOSE],
            np.add.reduceat(sizes, starts),
        )
        times = (first_ms + (begin + starts) * of_ms).tolist()
        rows = list(zip(times, *(c.tolist() for c in columns), strict=True))
        return rows[:limit] if start_ms is not None else rows[-limit:]

    def _cut(self, asset: int, step: int, is_mark: bool, begin: int, stop: int) -> tuple[Float64, Float64]:
        """Prices (n, 4) and volume (n,) of rows ``begin:stop`` that an interval is made of; see ``_grid``."""
        is_fine = step % self.tape.bar_ms != 0
        newest = self.fine if is_fine else self.bar
        if is_fine:
            prices, volume = (self.inside.mark if is_mark else self.inside.last), self.inside.volume
        else:
            prices, volume = (self.tape.mark if is_mark else self.tape.last), self.tape.volume
        part, sizes = prices[begin : min(stop, newest), asset], volume[begin : min(stop, newest), asset]
        if stop > newest:
            opened, traded = self._forming(asset, is_mark, self.fine if is_fine else self._fine_of(self.bar))
            part, sizes = np.concatenate([part, opened[None]]), np.append(sizes, traded)
        return part, sizes

    def _grid(self, step: int) -> tuple[int, int, int]:
        """(first open, spacing, number) of the rows that an interval is made of, up to the moment."""
        if step % self.tape.bar_ms:
            first_ms = int(self.tape.open_time_ms[0]) - self.inside.first * self.fine_ms
            return first_ms, self.fine_ms, self.fine + 1
        return int(self.tape.open_time_ms[0]), self.tape.bar_ms, self.bar + 1

    def _forming(self, asset: int, is_mark: bool, begin: int) -> tuple[Float64, float]:
        """A bar that began with finer bar ``begin`` as it stands: of the open one only its open is known."""
        fine = (self.inside.mark if is_mark else self.inside.last)[begin : self.fine + 1, asset]
        volume = self.inside.volume[begin : self.fine + 1, asset]
        if not self.is_over:
            fine = np.concatenate([fine[:-1], np.repeat(fine[-1:, OPEN], 4)[None]])
            volume = volume[:-1]
        whole = [fine[0, OPEN], fine[:, HIGH].max(), fine[:, LOW].min(), fine[-1, CLOSE]]
        return np.array(whole), float(volume.sum())

    def settlements(self, asset: int, until_ms: int) -> tuple[NDArray[np.int64], Float64]:
        """Times and rates of the contract's settlements up to a moment, ascending."""
        start = self.tape.stamp_start[asset]
        owned = slice(int(start[0]), int(start[-1]))
        times = self.tape.stamp_time_ms[owned]
        n = int(np.searchsorted(times, until_ms, side="right"))
        return times[:n], self.tape.stamp_rate[owned][:n]

    def next_settlement_ms(self, asset: int, after_ms: int) -> int:
        """When the contract settles next: its schedule is known, the rate is not."""
        start = self.tape.stamp_start[asset]
        times = self.tape.stamp_time_ms[int(start[0]) : int(start[-1])]
        n = int(np.searchsorted(times, after_ms, side="right"))
        if n < times.size:
            return int(times[n])
        interval = self.tape.contracts[asset].funding_interval_ms
        return (after_ms // interval + 1) * interval
