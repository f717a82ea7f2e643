"""The live env beside the exchange: what it does not send, and how it goes on after a stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import live_parity as parity
import numpy as np
import pytest
from place import Place, place_of

from perpgym.data.tape import Tape
from perpgym.envs import CONTRACT_LEDGER, EnvConfig, RiskLimits
from perpgym.envs.account import ORDER_DONE
from perpgym.envs.exchange.faults import make_book
from perpgym.envs.live.env import LiveConfig, check_live
from perpgym.envs.live.recovery import StartRefused
from perpgym.envs.live.thread import Interrupted

LONG = np.array([0.4, -1.0], np.float32)
HOLD = np.array([0.0, 1.0], np.float32)


@pytest.fixture(scope="module")
def tape() -> Tape:
    found: Tape = parity.simulated_tape(100)
    return found


@pytest.fixture
def place(tape: Tape, tmp_path: Path) -> Iterator[Place]:
    with place_of(tape, tmp_path) as place:
        yield place


def test_spaces_and_observations_are_the_envs(place: Place) -> None:
    env = parity.env_at(place.tape, place.config, RiskLimits(), parity._HISTORY, 5)
    with place.live() as live:
        seen, info = live.reset()
        assert live.observation_space == env.observation_space
        assert live.action_space == env.action_space
        assert live.observation_space.contains(seen)
        assert info["desk"] == "ready"
        _seen, _reward, is_over, is_cut, info = live.step(LONG)
    assert (is_over, is_cut) == (False, False)
    assert info["bars"] == 1
    assert info["contracts"].shape == (1, 8)


@pytest.mark.parametrize(
    "action", [np.array([np.nan, 0.0]), np.array([0.5, np.inf]), np.array([0.5]), np.zeros((2, 2))]
)
def test_an_action_that_is_none_is_never_sent(place: Place, action: np.ndarray) -> None:
    with place.live() as live:
        live.reset()
        live.step(LONG)
        orders, held = place.orders, place.position
        _seen, _reward, _over, _cut, info = live.step(action.astype(np.float32))
        assert "not finite or not in" in info["skipped"]
        assert (place.orders, place.position) == (orders, held)
        _seen, _reward, _over, _cut, info = live.step(np.zeros(2, np.float32) - 1.0)
        assert info["skipped"] == ""
        assert place.position < 0.0


def test_a_decision_that_comes_too_late_is_not_carried_out(place: Place) -> None:
    with place.live(live=LiveConfig(late_ms=60_000)) as live:
        live.reset()
        place.server.venue.clock.move_to(live.close_ms + 120_000)
        _seen, _reward, _over, _cut, info = live.step(LONG)
        assert "too late" in info["skipped"]
        assert place.orders == 0


@pytest.mark.parametrize("row", ["F29", "F29b", "F35", "F35b"])
def test_no_decision_sees_a_bar_that_is_not_final_missing_or_impossible(place: Place, row: str) -> None:
    env = parity.env_at(place.tape, place.config, RiskLimits(), parity._HISTORY, 6)
    expected, _ = env.reset(seed=0)
    # two answers in a row that agree: a bar that changes once is taken as it ends
    feed = replace(parity.LIVE.feed, readings=2)
    with place.live(feed=feed) as live:
        seen, _info = live.reset()
        for number, action in enumerate((LONG, HOLD, -LONG, HOLD)):
            place.server.hub.faults = make_book({"faults": [{"id": row, "times": 1 + number % 2}]})
            expected, _reward, _over, _cut, booked = env.step(action)
            seen, _reward, _over, _cut, info = live.step(action)
            assert info["equity"] == pytest.approx(booked["equity"], abs=1e-8)
            assert len(place.server.hub.faults.log) == 1 + number % 2
            assert (info["bars"], info["is_whole"]) == (1, True)
            for name, values in expected.items():
                np.testing.assert_allclose(seen[name], values, rtol=0.0, atol=1e-8, err_msg=name)
    assert place.position != 0.0


class Sixths:
    """A clock that goes to the end of a bar in six steps, with a moment for what is due at each."""

    def __init__(self, clock: Any, bar_ms: int) -> None:
        self.clock, self.step_ms = clock, bar_ms // 6

    async def sleep_until(self, time_ms: int) -> None:
        while (now_ms := self.clock.venue.clock.now_ms()) < time_ms:
            await self.clock.sleep_until(min(now_ms + self.step_ms, time_ms))
            await asyncio.sleep(0.1)

    async def pause(self, wait_ms: int) -> None:
        await self.clock.pause(wait_ms)


@pytest.mark.parametrize("style", ["twap", "vwap", "iceberg"])
def test_what_takes_a_bar_is_booked_as_the_decisions_own(place: Place, style: str) -> None:
    place.config = parity.settings(execution=style, limit_offset_bps=0.0)
    timings = replace(parity.LIVE.timings, slice_ms=place.tape.bar_ms // 6, first_wait_s=0.02)
    with place.live(timings=timings) as live:
        live.feed.clock = Sixths(live.feed.clock, place.tape.bar_ms)
        live.reset()
        held, bars = 0.0, 0
        # a resting order may be missed by a bar's prices
        while held == 0.0 and bars < 10:
            _seen, _reward, _over, _cut, info = live.step(LONG)
            held, bars = place.position, bars + 1
            assert info["is_whole"]
        assert held > 0.0
        orders = list(place.server.venue.books.registry.orders.values())
        if style != "iceberg":
            assert [order.original_kind for order in orders] == ["MARKET"] * 6
            assert sum(order.quantity for order in orders) == pytest.approx(held, abs=1e-9)
        # none of it was somebody else's
        assert live.books.account.orders[0, ORDER_DONE] == pytest.approx(held, abs=1e-9)
        assert info["contracts"][0, CONTRACT_LEDGER["filled"]] == pytest.approx(held, abs=1e-9)
        sent = len(orders)
        live.step(HOLD)
        assert len([o for o in place.server.venue.books.registry.orders.values() if o.is_open]) == 0
        if style != "iceberg":
            assert place.orders == sent


def test_a_start_in_the_middle_of_a_bar_waits_for_its_close(place: Place) -> None:
    opened = place.server.venue.market.open_ms
    place.server.venue.clock.move_to(opened + 1_200_000)
    with place.live() as live:
        live.reset()
        assert live.close_ms == opened + place.tape.bar_ms


def test_after_a_restart_the_account_remembers_and_books_what_it_missed(place: Place) -> None:
    start, bars = parity._HISTORY, 12
    env = parity.env_at(place.tape, place.config, RiskLimits(), start, bars)
    env.reset(seed=0)
    with place.live() as live:
        live.reset()
        for action in (LONG, HOLD, -LONG, HOLD):
            live.step(action)
            env.step(action)
    # the program is gone; the market is not, and the position is left to its stop
    place.pass_bars(4)
    for _bar in range(4):
        expected = env.step(HOLD)[0]
    with place.live() as live:
        seen, _ = live.reset()
        for name, values in expected.items():
            np.testing.assert_allclose(seen[name], values, rtol=0.0, atol=1e-8, err_msg=name)
        expected, reward, _over, _cut, booked = env.step(LONG)
        seen, live_reward, _over, _cut, info = live.step(LONG)
        assert live_reward == pytest.approx(reward, abs=1e-12)
        assert info["equity"] == pytest.approx(booked["equity"], abs=1e-8)
        np.testing.assert_allclose(seen["portfolio"], expected["portfolio"], rtol=0.0, atol=1e-8)
        assert float(seen["account"][0, 5]) > 0.0


@pytest.mark.parametrize("row", [{"id": "F35b", "times": 2}, {"id": "F46", "times": 5}])
def test_a_start_asks_again_for_what_the_exchange_does_not_tell_at_once(
    place: Place, row: dict[str, Any]
) -> None:
    place.server.hub.faults = make_book({"faults": [row]})
    with place.live() as live:
        _seen, info = live.reset()
        assert info["desk"] == "ready"
    assert len(place.server.hub.faults.log) == row["times"]


def test_a_start_that_is_banned_waits_until_somebody_wants_to_stop(place: Place) -> None:
    place.server.venue.limits.banned_until_ms = place.server.venue.clock.now_ms() + 120_000
    with place.live() as live:
        threading.Timer(1.0, live.thread.stop_wanted.set).start()
        with pytest.raises(Interrupted):
            live.reset()
        live.thread.stop_wanted.clear()
    assert place.server.venue.limits.calls_while_banned == 1


def test_a_start_with_a_key_that_is_refused_does_not_wait(place: Place) -> None:
    place.server.venue.keys.is_revoked = True
    with place.live() as live, pytest.raises(StartRefused, match="-2015"):
        live.reset()


def test_after_too_long_a_gap_the_exchanges_word_is_taken(place: Place) -> None:
    with place.live() as live:
        live.reset()
        live.step(LONG)
    place.pass_bars(5)
    with place.live(live=LiveConfig(longest_gap_bars=3)) as live:
        seen, info = live.reset()
        assert info["desk"] == "ready"
        assert place.position > 0.0
        assert float(seen["account"][0, 0]) > 0.1
        assert float(seen["portfolio"][2]) == 0.0


def test_a_live_env_that_has_not_started_says_so(place: Place) -> None:
    with place.live() as live:
        with pytest.raises(gym.error.ResetNeeded):
            live.step(LONG)
        with pytest.raises(gym.error.ResetNeeded):
            _ = live.tape


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"limits": "off"}, "limits=on"),
        ({"latency_bars": 1}, "latency"),
        ({"terminal": "liquidate"}, "terminal=hold"),
    ],
)
def test_settings_that_no_exchange_has_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_live(EnvConfig(**changes))
