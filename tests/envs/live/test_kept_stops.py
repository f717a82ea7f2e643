"""A stop that protects what is held stays at the exchange, whatever the books have forgotten."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from perpgym.data.tape import Tape
from perpgym.envs import RiskLimits
from perpgym.envs.account import WALLET
from perpgym.envs.exchange.books import AlgoEvent, Event
from perpgym.envs.live.env import LiveConfig

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
# head_stops[2] is a stop of the order's own
HEADS = {"action": "heads", "head_styles": ("market",), "stop_loss": None, "take_profit": None}
TRAIL = {"trailing_stop": True, "take_profit": None}
STILL = {"heads": [0.0, 0.0, 0.0, 0.0], "bands": [0.0, 1.0]}


@pytest.fixture(scope="module")
def parity() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("live_parity")


@pytest.fixture(scope="module")
def tape(parity: ModuleType) -> Tape:
    found: Tape = parity.simulated_tape(100)
    return found


class Place:
    """An exchange, live envs on it one after the other, and the stops that it was told to cancel."""

    def __init__(self, parity: ModuleType, tape: Tape, server: Any, config: Any, folder: Path) -> None:
        self.parity, self.tape, self.server, self.config, self.folder = parity, tape, server, config, folder
        self.cancelled: list[float] = []
        server.venue.books.listeners.append(self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, AlgoEvent) and event.algo.status == "CANCELED":
            self.cancelled.append(event.algo.trigger_price)

    def live(self, **changes: Any) -> Any:
        live = replace(self.parity.LIVE, **changes)
        columns = self.parity.columns_of(self.tape)
        return self.parity.live_env(self.server, self.config, RiskLimits(), self.folder, columns, live=live)

    def action(self, size: int = 0, stop: int = 0) -> np.ndarray:
        """With heads: trade, so much of ``head_sizes``, with this one of ``head_stops``; else hold."""
        if self.config.action != "heads":
            return np.array(STILL["bands"], np.float32)
        return np.array([1.0, size, stop, 0.0] if size else STILL["heads"], np.float32)

    @property
    def largest(self) -> int:
        return len(self.config.head_sizes) - 1

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
def place_of(parity: ModuleType, tape: Tape, folder: Path, **changes: Any) -> Iterator[Place]:
    config = parity.settings(**changes)
    with parity.exchange(tape, parity._HISTORY + 1, config) as server:
        yield Place(parity, tape, server, config, folder)


def drift(live: Any) -> None:
    """The books lose a tenth of a cent, and the next settlement finds it."""

    def lose() -> None:
        for account in (live.books.account, live.books._base):
            account.wallet[WALLET] += 1e-3

    live.thread.do(lose)
    live.thread.call(live.desk.settle(live.close_ms))
    assert live.desk.status().state == "halted"


def test_a_difference_that_halts_leaves_an_orders_own_stop_in_place(
    parity: ModuleType, tape: Tape, tmp_path: Path
) -> None:
    with place_of(parity, tape, tmp_path, **HEADS) as place, place.live() as live:
        live.reset()
        live.step(place.action(place.largest, 2))
        (stop,) = place.stops
        assert 0.0 < stop < tape.last[parity._HISTORY, 0, 3]
        drift(live)
        live.step(place.action())
        assert place.position > 0.0
        assert (place.stops, place.cancelled) == ([stop], [])


@pytest.mark.parametrize("away", [0, 4])
def test_a_restart_leaves_an_orders_own_stop_in_place_however_long_it_was_away(
    parity: ModuleType, tape: Tape, tmp_path: Path, away: int
) -> None:
    with place_of(parity, tape, tmp_path, **HEADS) as place:
        with place.live() as live:
            live.reset()
            live.step(place.action(place.largest, 2))
        (stop,) = place.stops
        place.pass_bars(away)
        assert place.stops == [stop]
        with place.live(live=LiveConfig(longest_gap_bars=2)) as live:
            live.reset()
            seen, _reward, _over, _cut, info = live.step(place.action())
            assert info["desk"] == "ready"
            # the policy sees how far it is
            assert float(seen["account"][0, 3]) > 0.0
        assert place.position > 0.0
        assert (place.stops, place.cancelled) == ([stop], [])


def test_a_stop_of_a_decision_that_the_saved_books_have_not_seen_stays(
    parity: ModuleType, tape: Tape, tmp_path: Path
) -> None:
    """The program is gone after its order and before the next settlement, which would have saved it."""
    with place_of(parity, tape, tmp_path, **HEADS) as place:
        with place.live() as live:
            live.reset()
            live.step(place.action())
            live.thread.call(live._trade(place.action(place.largest, 2)))
        (stop,) = place.stops
        place.pass_bars(1)
        with place.live() as live:
            live.reset()
            assert live.desk.status().state == "ready"
            live.step(place.action())
        assert place.position > 0.0
        assert (place.stops, place.cancelled) == ([stop], [])


def test_a_stop_that_trails_never_moves_back(parity: ModuleType, tape: Tape, tmp_path: Path) -> None:
    with place_of(parity, tape, tmp_path, **TRAIL) as place:
        with place.live() as live:
            live.reset()
            live.step(np.array([0.4, -1.0], np.float32))
            begun = place.stops
            for _bar in range(2):
                live.step(place.action())
            live.thread.call(live.desk.settle(live.close_ms))
        (stop,) = place.stops
        assert stop > begun[0]
        place.cancelled.clear()
        with place.live() as live:
            live.reset()
            assert (place.stops, place.cancelled) == ([stop], [])
            drift(live)
            assert (place.stops, place.cancelled) == ([stop], [])


def test_an_order_that_wants_no_stop_still_takes_it_away(
    parity: ModuleType, tape: Tape, tmp_path: Path
) -> None:
    with place_of(parity, tape, tmp_path, **HEADS) as place:
        with place.live() as live:
            live.reset()
            live.step(place.action(place.largest - 1, 2))
        assert len(place.stops) == 1
        with place.live(live=LiveConfig(longest_gap_bars=0)) as live:
            live.reset()
            drift(live)
            live.thread.call(live.desk.resume())
            live.step(place.action(place.largest, 0))
            assert place.stops == []
