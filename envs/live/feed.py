"""Closed bars and settlements of a running market, believed only when they are final and possible.

A bar is taken once its time is over by the exchange's clock, after a delay, and when readings in a row agree.
The last and the mark price come from two endpoints and are never mixed. What is missing, late or impossible
is asked for again; a bar that stays so is no reason to decide, and says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, HIGH, LOW, Bars
from perpgym.data.clock import MINUTE_MS, iso
from perpgym.data.contract import HOUR_MS, Contract
from perpgym.data.tape import Tape
from perpgym.envs.live.broker import BarRow, Broker, BrokerError, PriceKind
from perpgym.envs.live.clock import Clock
from perpgym.envs.live.ring import ClosedBar, Ring

Float64 = NDArray[np.float64]

_LOG = logging.getLogger(__name__)
_PAGE = 1_000
# of notional per settlement: no exchange has charged more
_LARGEST_RATE = 0.1


class IncompleteBar(Exception):  # noqa: N818 - what is missing
    """A bar is not there, not final or not possible; says what and why."""


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """When a bar is believed.

    Attributes:
        settle_delay_ms: after its close, before it is asked for.
        readings: in a row that must agree.
        reread_ms: between them.
        refetched_bars: bars before it that are read again with it: exchanges revise.
        patience_ms: after its close; then nothing is decided on it.
        max_jump: factor between a price and the close before that no market moves in a bar.

    Raises:
        ValueError: a setting is impossible.
    """

    settle_delay_ms: int = 1_500
    readings: int = 2
    reread_ms: int = 250
    refetched_bars: int = 3
    patience_ms: int = 60_000
    max_jump: float = 3.0

    def __post_init__(self) -> None:
        for name, least in (
            ("settle_delay_ms", 0), ("readings", 1), ("reread_ms", 0), ("refetched_bars", 0),
            ("patience_ms", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, was {getattr(self, name)}")
        if not self.max_jump > 1.0:
            raise ValueError(f"max_jump must be above 1 (a factor of the price), was {self.max_jump}")


@dataclass(frozen=True, kw_only=True, eq=False)
class News:
    """What a wait has brought.

    Attributes:
        bars: every bar that closed since, oldest first; at least one.
        revised: older ones that the exchange tells differently now.
    """

    bars: tuple[ClosedBar, ...]
    revised: tuple[ClosedBar, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """Bars from ``first_ms`` on of every contract; nan where one is missing: (A, n, 4), (A, n, 4), (A, n)."""

    first_ms: int
    last: Float64
    mark: Float64
    volume: Float64

    def agrees(self, other: _Reading | None) -> bool:
        """Whether both say the same."""
        return other is not None and all(
            np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True)
            for name in ("last", "mark", "volume")
        )


class Feed:
    """The market data of A contracts.

    Args:
        broker: where they are read; runs in its loop.
        contracts: their rules, in the order of the policy.
        bar_ms: length of a bar.
        clock: by which it waits.
        config: see there.

    Attributes:
        complaints: why bars were not believed at first, newest last; at most 100.
    """

    def __init__(
        self,
        broker: Broker,
        contracts: Sequence[Contract],
        bar_ms: int,
        clock: Clock,
        config: FeedConfig | None = None,
    ) -> None:
        self.broker, self.contracts, self.bar_ms = broker, tuple(contracts), bar_ms
        self.clock, self.config = clock, config or FeedConfig()
        self.complaints: list[str] = []

    # --- history ---

    def newest_open_ms(self) -> int:
        """When the newest bar that is over opened, by the exchange's clock."""
        return self.broker.now_ms() // self.bar_ms * self.bar_ms - self.bar_ms

    async def history(self, bars: int, until_ms: int | None = None) -> list[Bars]:
        """The newest closed bars of each contract, with their settlements.

        Args:
            bars: how many.
            until_ms: close of the last one; None for the newest there is.

        Raises:
            IncompleteBar: the exchange does not have them all.
        """
        if until_ms is None:
            await self.clock.sleep_until(self.newest_open_ms() + self.bar_ms + self.config.settle_delay_ms)
        newest = self.newest_open_ms() if until_ms is None else until_ms - self.bar_ms
        first = newest - (bars - 1) * self.bar_ms
        return [await self._history_of(contract, first, newest) for contract in self.contracts]

    async def _history_of(self, contract: Contract, first_ms: int, newest_ms: int) -> Bars:
        last = await self._series(contract.symbol, "last", first_ms, newest_ms)
        mark = await self._series(contract.symbol, "mark", first_ms, newest_ms)
        prices, volume = _filled(last[:, :4], last[:, 4])
        marks, _ = _filled(mark[:, :4], mark[:, 4])
        self._check(contract.symbol, prices, marks, volume, prices[0, CLOSE], first_ms)
        stamps = await self._stamps(contract.symbol, first_ms, newest_ms + self.bar_ms)
        return Bars(
            contract=contract,
            bar_ms=self.bar_ms,
            open_time_ms=first_ms + self.bar_ms * np.arange(len(prices), dtype=np.int64),
            last=prices,
            mark=marks,
            volume=volume,
            stamp_time_ms=np.array([time for time, _ in stamps], np.int64),
            stamp_rate=np.array([rate for _, rate in stamps], np.float64),
        )

    async def _series(self, symbol: str, kind: PriceKind, first_ms: int, newest_ms: int) -> Float64:
        """(n, 5) open high low close volume of the bars that open from ``first_ms`` to ``newest_ms``."""
        rows: list[BarRow] = []
        since = first_ms
        while since <= newest_ms:
            wanted = min((newest_ms - since) // self.bar_ms + 1, _PAGE)
            page = await self.broker.bars(symbol, kind, since, int(wanted))
            rows += page
            if not page:
                break
            since = page[-1][0] + self.bar_ms
        return self._on_grid(rows, first_ms, newest_ms)

    def _on_grid(self, rows: Sequence[BarRow], first_ms: int, newest_ms: int) -> Float64:
        """(n, 5), nan where a bar is missing."""
        grid = np.full(((newest_ms - first_ms) // self.bar_ms + 1, 5), np.nan)
        for time_ms, *numbers in rows:
            place, off = divmod(time_ms - first_ms, self.bar_ms)
            if off == 0 and 0 <= place < len(grid):
                grid[place] = numbers
        return grid

    # --- the newest bars ---

    async def wait(self, ring: Ring) -> News:
        """Everything that closed since the ring's newest bar, once it is final.

        A bar that is not whole when its patience ends is waited for no longer; what comes with the next one
        brings it, too.
        """
        target = max(ring.next_open_ms, self.newest_open_ms())
        while True:
            await self.clock.sleep_until(target + self.bar_ms + self.config.settle_delay_ms)
            newest = max(target, self.newest_open_ms())
            try:
                news = await self._read_final(ring, newest)
            except IncompleteBar as error:
                self._complain(f"nothing is decided on the bar that opened at {iso(newest)} UTC: {error}")
                target = max(newest + self.bar_ms, self.newest_open_ms())
                continue
            if self.newest_open_ms() <= newest:
                return news
            # it took longer than a bar: what was read is old already
            self._complain(f"the bar that opened at {iso(newest)} UTC came too late")
            target = self.newest_open_ms()

    async def bars_between(self, first_ms: int, newest_ms: int, tape: Tape) -> tuple[ClosedBar, ...]:
        """The closed bars that opened from one moment to another, with their settlements, read once.

        Args:
            first_ms, newest_ms: opening times.
            tape: gives the close before, for what can be believed.

        Raises:
            IncompleteBar: they are not all there.
        """
        reading = await self._read(first_ms, newest_ms)
        before = tape.bar_at(first_ms) - 1
        bars = self._bars_of(reading, np.asarray(tape.last[before, :, CLOSE]))
        return self._with_stamps(bars, await self._all_stamps(first_ms, newest_ms + self.bar_ms))

    async def _read_final(self, ring: Ring, newest_ms: int) -> News:
        config = self.config
        before = min(config.refetched_bars, len(ring.tape) - 1)
        first_ms = ring.next_open_ms - before * self.bar_ms
        until_ms = newest_ms + self.bar_ms + config.patience_ms
        agreed, previous = 0, None
        while True:
            why = "readings differ"
            try:
                reading = await self._read(first_ms, newest_ms)
                news = self._judge(reading, ring, before)
                stamps = await self._all_stamps(ring.next_open_ms, newest_ms + self.bar_ms)
            except (IncompleteBar, BrokerError) as error:
                agreed, previous, why = 0, None, str(error)
                self._complain(why)
            else:
                agreed = agreed + 1 if reading.agrees(previous) else 1
                previous = reading
                if agreed >= config.readings:
                    return News(bars=self._with_stamps(news.bars, stamps), revised=news.revised)
            if self.broker.now_ms() > until_ms:
                raise IncompleteBar(why)
            await self.clock.pause(config.reread_ms)

    async def _read(self, first_ms: int, newest_ms: int) -> _Reading:
        wanted = min((newest_ms - first_ms) // self.bar_ms + 1, _PAGE)
        kinds: tuple[PriceKind, ...] = ("last", "mark")
        pages = await asyncio.gather(
            *(
                self.broker.bars(contract.symbol, kind, first_ms, int(wanted))
                for contract in self.contracts
                for kind in kinds
            )
        )
        grids = np.array([self._on_grid(page, first_ms, newest_ms) for page in pages])
        last, mark = grids[0::2], grids[1::2]
        return _Reading(first_ms=first_ms, last=last[..., :4], mark=mark[..., :4], volume=last[..., 4])

    def _judge(self, reading: _Reading, ring: Ring, before: int) -> News:
        """What is new and what is revised in a reading.

        Raises:
            IncompleteBar: something is missing or impossible.
        """
        tape = ring.tape
        bars = self._bars_of(reading, np.asarray(tape.last[len(tape) - 1 - before, :, CLOSE]))
        known = len(tape) - before
        revised = [
            bar
            for i, bar in enumerate(bars[:before])
            if not (
                np.array_equal(bar.last, tape.last[known + i])
                and np.array_equal(bar.mark, tape.mark[known + i])
                and np.array_equal(bar.volume, tape.volume[known + i])
            )
        ]
        return News(bars=tuple(bars[before:]), revised=tuple(revised))

    def _bars_of(self, reading: _Reading, closes: Float64) -> list[ClosedBar]:
        """A reading as bars without settlements; ``closes`` (A,) quote, before its first one.

        Raises:
            IncompleteBar: something is missing or impossible.
        """
        last, mark, volume = reading.last.copy(), reading.mark.copy(), reading.volume.copy()
        for asset, contract in enumerate(self.contracts):
            name = contract.symbol
            last[asset], volume[asset] = _filled(last[asset], volume[asset], name)
            mark[asset], _ = _filled(mark[asset], volume[asset], name)
            self._check(name, last[asset], mark[asset], volume[asset], float(closes[asset]), reading.first_ms)
        return [
            ClosedBar(
                open_time_ms=reading.first_ms + i * self.bar_ms, last=last[:, i], mark=mark[:, i],
                volume=volume[:, i], stamps=((),) * len(self.contracts),
            )
            for i in range(last.shape[1])
        ]  # fmt: skip

    def _check(
        self, symbol: str, last: Float64, mark: Float64, volume: Float64, close: float, first_ms: int
    ) -> None:
        """Gates of sanity. Raises IncompleteBar where a number is none that a market could show."""
        for kind, prices in (("last", last), ("mark", mark)):
            before = np.concatenate([[close], prices[:-1, CLOSE]])
            # comparisons with nan are false
            is_possible = np.all((prices > 0.0) & (prices < np.inf), axis=1)
            is_possible &= (prices[:, HIGH] >= prices.max(axis=1)) & (prices[:, LOW] <= prices.min(axis=1))
            with np.errstate(divide="ignore", invalid="ignore"):
                moved = np.maximum(prices / before[:, None], before[:, None] / prices).max(axis=1)
            is_possible &= moved <= self.config.max_jump
            if not is_possible.all():
                row = int(np.argmin(is_possible))
                found = ", ".join(f"{price:g}" for price in prices[row])
                raise IncompleteBar(
                    f"{symbol}: the {kind} prices of the bar that opened at "
                    f"{iso(first_ms + row * self.bar_ms)} cannot be: {found} after {before[row]:g}"
                )
        if not ((volume >= 0.0) & (volume < np.inf)).all():
            raise IncompleteBar(f"{symbol}: a volume is missing or impossible: {volume}")

    # --- settlements ---

    async def _all_stamps(self, after_ms: int, until_ms: int) -> list[list[tuple[int, float]]]:
        """By contract, the settlements after one moment up to another; asks only if one can be due."""
        if until_ms // HOUR_MS == after_ms // HOUR_MS:
            return [[] for _ in self.contracts]
        return [await self._due_stamps(c.symbol, after_ms, until_ms) for c in self.contracts]

    async def _due_stamps(self, symbol: str, after_ms: int, until_ms: int) -> list[tuple[int, float]]:
        """Raises IncompleteBar where one that is due by the interval in force is not told yet."""
        stamps = await self._stamps(symbol, after_ms, until_ms)
        every = await self.broker.funding_interval_hours(symbol) * HOUR_MS
        told = {time for time, _ in stamps}
        for due in range(after_ms // every * every + every, until_ms + 1, every):
            if due not in told:
                raise IncompleteBar(f"{symbol}: the settlement of {iso(due)} is not told yet")
        return stamps

    async def _stamps(self, symbol: str, after_ms: int, until_ms: int) -> list[tuple[int, float]]:
        found: dict[int, float] = {}
        since = after_ms + 1
        while True:
            page = await self.broker.funding(symbol, since)
            for time_ms, rate in page:
                # stamps are off by milliseconds in the exchange's own records
                found[(time_ms + MINUTE_MS // 2) // MINUTE_MS * MINUTE_MS] = rate
            if len(page) < _PAGE:
                break
            since = page[-1][0] + 1
        for time_ms, rate in found.items():
            if not abs(rate) < _LARGEST_RATE:
                raise IncompleteBar(f"{symbol}: the funding rate of {iso(time_ms)} cannot be {rate}")
        return sorted((time, rate) for time, rate in found.items() if after_ms < time <= until_ms)

    def _with_stamps(
        self, bars: Sequence[ClosedBar], stamps: Sequence[Sequence[tuple[int, float]]]
    ) -> tuple[ClosedBar, ...]:
        out = []
        for bar in bars:
            close_ms = bar.open_time_ms + self.bar_ms
            owned = tuple(
                tuple((time, rate) for time, rate in own if bar.open_time_ms < time <= close_ms)
                for own in stamps
            )
            out.append(
                ClosedBar(
                    open_time_ms=bar.open_time_ms, last=bar.last, mark=bar.mark, volume=bar.volume,
                    stamps=owned,
                )
            )  # fmt: skip
        return tuple(out)

    def _complain(self, text: str) -> None:
        if not self.complaints or self.complaints[-1] != text:
            _LOG.warning(text)
            self.complaints = [*self.complaints[-99:], text]


def _filled(prices: Float64, volume: Float64, symbol: str = "") -> tuple[Float64, Float64]:
    """Bars that are missing before a later one are flat and without volume, as training fills them.

    Raises:
        IncompleteBar: the newest or the oldest one is missing.
    """
    missing: NDArray[np.bool_] = np.all(np.isnan(prices), axis=1)
    if not missing.any():
        return prices, volume
    if missing[-1] or missing[0]:
        raise IncompleteBar(f"{symbol}: the {'newest' if missing[-1] else 'oldest'} bar is missing")
    prices, volume = prices.copy(), volume.copy()
    for row in np.flatnonzero(missing).tolist():
        prices[row], volume[row] = prices[row - 1, CLOSE], 0.0
    return prices, volume
