"""A live env on the simulated exchange, watched: what the page shows is what the exchange has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import live_parity as parity
import numpy as np
import pytest

from perpgym.envs import RiskLimits
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.warm import warm_up
from perpgym.envs.live.binance import Binance, BinanceConfig
from perpgym.envs.live.monitor.attach import EnvControls, EnvWatch
from perpgym.envs.live.monitor.facts import RunFacts
from perpgym.envs.live.monitor.monitor import Monitor, MonitorConfig
from perpgym.envs.live.monitor.replay import compare
from perpgym.envs.live.monitor.serve import PageConfig
from perpgym.envs.live.monitor.story import rebuild
from perpgym.experiments.live_run import Stop, run_live

pytest.importorskip("perpgym.envs.live.env", reason="there is no live env yet")
TOKEN = "a-token-of-more-than-twenty-characters"
BEARER = {"authorization": f"Bearer {TOKEN}"}
LONG, SHORT = np.array([0.4, -1.0], np.float32), np.array([-0.3, -1.0], np.float32)
HOLD = np.array([0.0, 1.0], np.float32)


@pytest.fixture
def exchange() -> Iterator[Any]:
    """On 100 bars of a simulated market."""
    tape = parity.simulated_tape(100)
    # a server that compiles does not answer
    warm_up(Replay(tape), parity.settings())
    with parity.exchange(tape, parity._HISTORY + 1, parity.settings()) as server:
        yield server


def test_page_metrics_and_replay_agree_with_the_exchange(exchange: Any, tmp_path: Path) -> None:
    tape, books = exchange.venue.market.tape, exchange.venue.books
    name = tape.contracts[0].symbol
    columns = parity.columns_of(tape)
    with parity.live_env(exchange, parity.settings(), RiskLimits(), tmp_path, columns) as env:
        RunFacts(
            name="tested", exchange="simulated", contracts=(name,), bar_ms=tape.bar_ms,
            limits={"max_exposure": 3.0},
        ).write(env.journal)  # fmt: skip
        watch = EnvWatch(env)
        config = MonitorConfig(page=PageConfig(port=0, controls=True), every_s=0.02)
        with (
            Monitor(
                env.journal.path, config, environment={"PERPGYM_PAGE_TOKEN": TOKEN}, health=watch.health,
                controls=EnvControls(env),
            ) as monitor,
            httpx.Client(trust_env=False, headers=BEARER, timeout=30.0) as client,
        ):  # fmt: skip
            env.reset()
            watch.note()
            for action in (LONG, HOLD, HOLD, SHORT, HOLD, LONG, HOLD, HOLD, HOLD, HOLD):
                env.step(action)
                watch.note()
            monitor.follower.look()
            shown = client.get(f"{monitor.url}/view").json()
            account = shown["account"]
            assert account["wallet"] == pytest.approx(books.wallet, abs=1e-8)
            assert account["positions"][0]["quantity"] == pytest.approx(books.position(0), abs=1e-9)
            mark = float(tape.mark[env.bar + tape_offset(env, tape), 0, 3])
            assert account["positions"][0]["mark_price"] == pytest.approx(mark, rel=1e-12)
            assert account["positions"][0]["entry_price"] > 0.0
            assert shown["health"]["is_live"]
            assert shown["health"]["state"] == "ready"
            assert len(shown["decisions"]) == 10
            text = client.get(f"{monitor.url}/metrics").text
            assert 'perpgym_desk_state{state="ready"} 1.0' in text
            assert "perpgym_feed_delay_seconds" in text
            pressed = client.post(f"{monitor.url}/controls/flatten", json={"confirm": "flatten"})
            assert pressed.json() == {"done": True}
            assert books.position(0) == 0.0
            assert env.desk.status().state == "halted"
        path = env.journal.path
    story = rebuild(path)
    assert story.differences == []
    assert len(story.decisions) == 10
    broker = Binance(
        BinanceConfig(contracts=(name,), bar="1h", api_key="key", secret="secret", is_paced=False),
        point=lambda ccxt: point_at(ccxt, exchange.url), local_ms=exchange.venue.clock.now_ms,
    )  # fmt: skip
    assert asyncio.run(compare(story, broker)) == []


class Holder:
    """Takes part of one decision after another, and breaks at the one that it is told to."""

    name = "holder"

    def __init__(self, breaks_at: int | None) -> None:
        self.breaks_at, self.decided = breaks_at, 0

    def act(self, *_seen: Any) -> np.ndarray:
        self.decided += 1
        if self.decided == self.breaks_at:
            raise ArithmeticError("no number came out")
        return LONG[None]

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("breaks_at", [None, 2])
def test_people_are_told_of_a_program_that_fails_and_not_of_one_that_ends(
    breaks_at: int | None, exchange: Any, tmp_path: Path, inbox: Any
) -> None:
    columns = parity.columns_of(exchange.venue.market.tape)
    with parity.live_env(exchange, parity.settings(), RiskLimits(), tmp_path, columns) as env:
        watch = EnvWatch(env)
        config = MonitorConfig(page=None, every_s=0.02)
        told = {"PERPGYM_ALERTS": inbox.url}
        with Monitor(env.journal.path, config, environment=told, health=watch.health):
            agent: Any = Holder(breaks_at)
            stop = Stop(env.thread, tmp_path / "STOP")
            with pytest.raises(ArithmeticError) if breaks_at else nullcontext():
                ended = run_live(
                    env, agent, stop, on_stop="freeze", decisions=3, on_start=lambda _info: watch.note(),
                    seconds=lambda: 0.0,
                )  # fmt: skip
                assert (ended.why, ended.is_done) == ("all decisions are made", True)
        levels = {(e["text"]["name"], e["level"]) for e in env.journal.events("hold")}
    ordinary = {("start", "info"), ("operator", "info"), ("stop", "info")}
    failed = {("start", "info"), ("operator", "alarm"), ("stop", "info")}
    assert levels == (failed if breaks_at else ordinary)
    assert [row["message"].partition(", state")[0] for row in inbox.received] == (
        ["why the program failed: ArithmeticError: no number came out"] if breaks_at else []
    )


def tape_offset(env: Any, tape: Any) -> int:
    """Bars of the exchange's tape before the live env's ring."""
    return int((env.tape.open_time_ms[0] - tape.open_time_ms[0]) // tape.bar_ms)
