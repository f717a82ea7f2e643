"""A run that somebody stops, by a file or a signal: judged by what the exchange holds afterwards."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import live_parity as parity
import numpy as np
import pytest
from place import place_of

from perpgym.envs import RiskLimits
from perpgym.envs.exchange.faults import make_book
from perpgym.envs.live.thread import DeskThread
from perpgym.experiments.live_run import Stop, run_live


class LongAndThenStop:
    """An agent that always wants to be long; while it thinks for the second time, somebody stops the run."""

    name = "long, and then stop"

    def __init__(self, stop: Callable[[], object]) -> None:
        self.stop, self.asked = stop, 0

    def act(self, *_seen: Any) -> np.ndarray:
        self.asked += 1
        if self.asked == 2:
            self.stop()
            # so slowly that the file is seen before the next decision
            time.sleep(1.2)
        return np.array([[0.4, -1.0]], np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state(self, _state: dict[str, Any]) -> None:
        pass


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """(a live env, its exchange)"""
    with place_of(parity.simulated_tape(100), tmp_path) as place, place.live() as env:
        yield env, place.server


@pytest.mark.parametrize("on_stop", ["freeze", "flatten"])
@pytest.mark.parametrize("by", ["file", "signal"])
def test_a_run_that_is_stopped_leaves_the_account_as_it_was_told_to(
    live: tuple[Any, Any], tmp_path: Path, by: str, on_stop: str
) -> None:
    env, server = live
    kill = tmp_path / "kill"
    stop = Stop(env.thread, kill)

    def pull() -> None:
        assert server.venue.books.position(0) > 0.0
        kill.touch() if by == "file" else os.kill(os.getpid(), signal.SIGTERM)

    agent: Any = LongAndThenStop(pull)
    with stop.listening():
        ended = run_live(env, agent, stop, on_stop=on_stop, seconds=time.monotonic)
    assert ended.is_done
    assert ended.why == (f"the kill file {kill}" if by == "file" else "SIGTERM")
    assert agent.asked == 2
    books = server.venue.books
    assert books.registry.open_orders() == []
    if on_stop == "flatten":
        assert (books.position(0), books.registry.open_algos()) == (0.0, [])
        assert ended.left == ()
    else:
        # kept, with its stop and its target
        assert books.position(0) > 0.0
        assert sorted(algo.is_stop for algo in books.registry.open_algos()) == [False, True]
        (line,) = ended.left
        assert " is held, its stop rests at " in line
    # the account is free, and nothing goes on in the background
    sent = len(books.registry.orders)
    time.sleep(0.1)
    assert len(books.registry.orders) == sent
    assert env.desk.status().state == "stopped"


# what the exchange does not answer
@pytest.mark.parametrize(
    ("silent", "on_stop"),
    [
        ("/fapi/v3/positionRisk", "flatten"), ("/fapi/v1/klines", "flatten"), ("/fapi/v1/klines", "freeze"),
        (None, "flatten"),
    ],
)  # fmt: skip
def test_a_run_that_is_stopped_while_it_starts_again_leaves_the_account_as_it_was_told_to(
    live: tuple[Any, Any], tmp_path: Path, silent: str | None, on_stop: str
) -> None:
    env, server = live
    env.reset()
    env.step(np.array([0.4, -1.0], np.float32))
    env.close()
    env.journal.close()
    held = server.venue.books.position(0)
    assert held > 0.0
    columns = parity.columns_of(server.venue.market.tape)
    with parity.live_env(server, env.config, RiskLimits(), tmp_path, columns) as env:
        if silent is not None:
            row = {"kind": "reply", "method": "GET", "path": silent, "status": 503, "times": None}
            server.hub.faults = make_book({"faults": [row]})
        # most that is tried to be flat
        env.desk._x.timings = replace(env.desk.timings, settle_s=1.5)
        stop = Stop(env.thread, tmp_path / "kill")
        agent: Any = LongAndThenStop(lambda: None)
        # without silence at once: whatever the start has come to, nothing is decided
        threading.Timer(1.0 if silent else 0.0, lambda: stop.want("SIGTERM")).start()
        with stop.listening():
            ended = run_live(env, agent, stop, on_stop=on_stop, seconds=time.monotonic)
    assert (ended.why, agent.asked) == ("SIGTERM", 0)
    is_read = silent != "/fapi/v3/positionRisk"
    if on_stop == "flatten":
        # closed by what the journal knows, if need be; only what was read is known
        assert server.venue.books.position(0) == 0.0
        assert (ended.is_done, ended.left == ()) == (is_read, is_read)
    else:
        assert server.venue.books.position(0) == held
        assert f"{held:g} is held" in ended.left[-1]
    server.hub.faults = make_book({})


def test_a_kill_file_that_is_there_keeps_a_run_from_starting(tmp_path: Path) -> None:
    (tmp_path / "kill").touch()
    with (
        DeskThread() as thread,
        pytest.raises(ValueError, match="remove it to trade again"),
        Stop(thread, tmp_path / "kill").listening(),
    ):
        pass
