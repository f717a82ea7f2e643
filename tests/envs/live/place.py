"""A simulated exchange for a test, and live envs on it, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import live_parity as parity

from perpgym.data.tape import Tape
from perpgym.envs import RiskLimits
from perpgym.envs.exchange.books import AlgoEvent, Event


class Place:
    """The exchange, what is held and ordered there, and the stops that it was told to cancel."""

    def __init__(self, tape: Tape, server: Any, config: Any, folder: Path) -> None:
        self.tape, self.server, self.config, self.folder = tape, server, config, folder
        self.cancelled: list[float] = []
        server.venue.books.listeners.append(self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, AlgoEvent) and event.algo.status == "CANCELED":
            self.cancelled.append(event.algo.trigger_price)

    def live(self, **changes: Any) -> Any:
        live = replace(parity.LIVE, **changes)
        columns = parity.columns_of(self.tape)
        return parity.live_env(self.server, self.config, RiskLimits(), self.folder, columns, live=live)

    @property
    def orders(self) -> int:
        return len(self.server.venue.books.registry.orders)

    @property
    def position(self) -> float:
        return float(self.server.venue.books.position(0))

    @property
    def stops(self) -> list[float]:
        return [algo.trigger_price for algo in self.server.venue.books.registry.open_algos()]

    def pass_bars(self, bars: int) -> None:
        for _bar in range(bars):
            self.server.venue.clock.move_to(self.server.venue.engine.next_ms)
            self.server.pass_time()


@contextmanager
def place_of(tape: Tape, folder: Path, **changes: Any) -> Iterator[Place]:
    """Settings of the env may be changed."""
    config = parity.settings(**changes)
    with parity.exchange(tape, parity._HISTORY + 1, config) as server:
        yield Place(tape, server, config, folder)
