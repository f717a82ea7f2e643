"""A stop that protects what is held stays at the exchange, whatever the books have forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import live_parity as parity
import numpy as np
import pytest
from place import Place, place_of

from perpgym.data.tape import Tape
from perpgym.envs.account import WALLET
from perpgym.envs.live.env import LiveConfig

# head_stops[2] is a stop of the order's own
HEADS = {"action": "heads", "head_styles": ("market",), "stop_loss": None, "take_profit": None}
TRAIL = {"trailing_stop": True, "take_profit": None}
STILL = {"heads": [0.0, 0.0, 0.0, 0.0], "bands": [0.0, 1.0]}


@pytest.fixture(scope="module")
def tape() -> Tape:
    found: Tape = parity.simulated_tape(100)
    return found


def largest(place: Place) -> int:
    return len(place.config.head_sizes) - 1


def action_of(place: Place, size: int = 0, stop: int = 0) -> np.ndarray:
    """With heads: trade, so much of ``head_sizes``, with this one of ``head_stops``; else hold."""
    if place.config.action != "heads":
        return np.array(STILL["bands"], np.float32)
    return np.array([1.0, size, stop, 0.0] if size else STILL["heads"], np.float32)


def drift(live: Any) -> None:
    """The books lose a tenth of a cent, and the next settlement finds it."""

    def lose() -> None:
        for account in (live.books.account, live.books._base):
            account.wallet[WALLET] += 1e-3

    live.thread.do(lose)
    live.thread.call(live.desk.settle(live.close_ms))
    assert live.desk.status().state == "halted"


def test_a_difference_that_halts_leaves_an_orders_own_stop_in_place(tape: Tape, tmp_path: Path) -> None:
    with place_of(tape, tmp_path, **HEADS) as place, place.live() as live:
        live.reset()
        live.step(action_of(place, largest(place), 2))
        (stop,) = place.stops
        assert 0.0 < stop < tape.last[parity._HISTORY, 0, 3]
        drift(live)
        live.step(
            action_of(
                place,
            )
        )
        assert place.position > 0.0
        assert (place.stops, place.cancelled) == ([stop], [])


@pytest.mark.parametrize("away", [0, 4])
def test_a_restart_leaves_an_orders_own_stop_in_place_however_long_it_was_away(
    tape: Tape, tmp_path: Path, away: int
) -> None:
    with place_of(tape, tmp_path, **HEADS) as place:
        with place.live() as live:
            live.reset()
            live.step(action_of(place, largest(place), 2))
        (stop,) = place.stops
        place.pass_bars(away)
        assert place.stops == [stop]
        with place.live(live=LiveConfig(longest_gap_bars=2)) as live:
            live.reset()
            seen, _reward, _over, _cut, info = live.step(
                action_of(
                    place,
                )
            )
            assert info["desk"] == "ready"
            # the policy sees how far it is
            assert float(seen["account"][0, 3]) > 0.0
        assert place.position > 0.0
        assert (place.stops, place.cancelled) == ([stop], [])


def test_a_stop_of_a_decision_that_the_saved_books_have_not_seen_stays(tape: Tape, tmp_path: Path) -> None:
    """The program is gone after its order and before the next settlement, which would have saved it."""
    with place_of(tape, tmp_path, **HEADS) as place:
        with place.live() as live:
            live.reset()
            live.step(
                action_of(
                    place,
                )
            )
            live.thread.call(live._trade(action_of(place, largest(place), 2)))
        (stop,) = place.stops
        place.pass_bars(1)
        with place.live() as live:
            live.reset()
            assert live.desk.status().state == "ready"
            live.step(
                action_of(
                    place,
                )
            )
        assert place.position > 0.0
        assert (place.stops, place.cancelled) == ([stop], [])


def test_a_stop_that_trails_never_moves_back(tape: Tape, tmp_path: Path) -> None:
    with place_of(tape, tmp_path, **TRAIL) as place:
        with place.live() as live:
            live.reset()
            live.step(np.array([0.4, -1.0], np.float32))
            begun = place.stops
            for _bar in range(2):
                live.step(
                    action_of(
                        place,
                    )
                )
            live.thread.call(live.desk.settle(live.close_ms))
        (stop,) = place.stops
        assert stop > begun[0]
        place.cancelled.clear()
        with place.live() as live:
            live.reset()
            assert (place.stops, place.cancelled) == ([stop], [])
            drift(live)
            assert (place.stops, place.cancelled) == ([stop], [])


def test_an_order_that_wants_no_stop_still_takes_it_away(tape: Tape, tmp_path: Path) -> None:
    with place_of(tape, tmp_path, **HEADS) as place:
        with place.live() as live:
            live.reset()
            live.step(action_of(place, largest(place) - 1, 2))
        assert len(place.stops) == 1
        with place.live(live=LiveConfig(longest_gap_bars=0)) as live:
            live.reset()
            drift(live)
            live.thread.call(live.desk.resume())
            live.step(action_of(place, largest(place), 0))
            assert place.stops == []
