"""One seed of the soak: an exchange in a process of its own, and life after life of one program."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from soak_exchange import exchange, make_venue
from soak_life import CAP, MOMENT, STOP_LOSS, STYLES, Death, Life, Told, account, post

from perpgym.data.features.build import build_tape
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.warm import warm_up
from perpgym.envs.live.crash_points import POINTS
from perpgym.envs.live.insist import StartRefused

# bars before the first decision
_HISTORY = 800
_REHEARSED = 8
# no life may hang for so long
_PATIENCE_S = 90.0
_LOOK_S = 0.005
_MOST_LIVES = 10
# of the kills, at a random moment; before the first decision of a life
_AT_MOMENTS, _IN_RECOVERY = 0.25, 0.2
# exit status of a program that would not start on the account as it was
REFUSED = 3
# how often a dead program stays away for bars
_AWAY, _MOST_AWAY = 0.25, 8


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for on the command line."""

    seeds: int
    days: int
    kills: int
    out: Path

    @property
    def bars(self) -> int:
        """Hours of one seed."""
        return 24 * self.days


def make_tape(seed: int, bars: int) -> Tape:
    """An hourly market, its own for every seed."""
    begin = np.datetime64("2024-01-01")
    end = begin + np.timedelta64((bars + _HISTORY) // 24 + 3, "D")
    config = SimulatedMarketConfig(start=str(begin), end=str(end), seed=seed)
    # an exchange shows prices; columns are its clients' business
    return build_tape(simulate_market(config).bars, features=(), risk=(), source=f"simulated (seed {seed})")


def fork(work: Callable[[], None], log: Path) -> int:
    """Run ``work`` in a process of its own, its words in ``log``; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("a") as words:
            os.dup2(words.fileno(), 1)
            os.dup2(words.fileno(), 2)
            logging.basicConfig(stream=words, level=logging.WARNING, format="%(asctime)s %(message)s")
            try:
                work()
                status = 0
            except StartRefused as error:
                status = REFUSED
                print(f"refused: {error}", flush=True)
            except Exception:
                traceback.print_exc(file=words)
                words.flush()
    finally:
        # no handlers of the driver's
        os._exit(status)


def open_exchange(tape: Tape, folder: Path, seed: int, count: Callable[[int], None]) -> tuple[int, str]:
    """An exchange in a process of its own: (its id, its address)."""
    ear, mouth = os.pipe()

    def tell(url: str) -> None:
        os.write(mouth, url.encode())
        os.close(mouth)

    def work() -> None:
        venue = make_venue(tape, _HISTORY, account(seed))
        asyncio.run(exchange(venue, folder / "journal.sqlite", seed, CAP, STOP_LOSS, count, tell))

    server = fork(work, folder / "exchange.log")
    os.close(mouth)
    with os.fdopen(ear) as hearing:
        url = hearing.read()
    if not url:
        raise SystemExit(f"the exchange did not start: see {folder / 'exchange.log'}")
    return server, url


def close_exchange(server: int) -> None:
    """End its process."""
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)


def tell_life(url: str, folder: Path, seed: int, end_ms: int, death: Death | None) -> Told:
    """What a life that begins now is given."""
    return Told(url=url, folder=folder, seed=seed, begun_s=time.monotonic(), end_ms=end_ms, death=death)


def rehearse() -> None:
    """A few quiet bars in this process: every fork has what it has compiled and loaded."""
    for seed in range(len(STYLES)):
        tape = make_tape(seed, 24)
        warm_up(Replay(tape, start_bar=_HISTORY), account(seed))
        with tempfile.TemporaryDirectory() as folder:
            server, url = open_exchange(tape, Path(folder), seed, lambda _bars: None)
            try:
                post(url, "calm")
                post(url, "begin", life=1)
                end_ms = int(tape.open_time_ms[_HISTORY]) + _REHEARSED * tape.bar_ms
                Life(tell_life(url, Path(folder), seed, end_ms, None), tape).run()
            finally:
                close_exchange(server)


def plan_deaths(seed: int, asked: Asked, begin_ms: int, bar_ms: int) -> list[Death]:
    """When and how the program dies, in the order of time."""
    rng = random.Random(f"deaths {seed}")
    bars = sorted(rng.randrange(asked.bars) for _ in range(asked.kills))
    times = [begin_ms + bar * bar_ms for bar in bars]
    return [
        Death(
            point="" if rng.random() < _AT_MOMENTS else rng.choice(POINTS),
            from_ms=0 if rng.random() < _IN_RECOVERY else at_ms,
            until_ms=after_ms,
            wait_s=rng.uniform(0.0, 0.5),
        )
        for at_ms, after_ms in zip(times, [*times[1:], begin_ms + (asked.bars - 1) * bar_ms], strict=True)
    ]


def where_it_died(folder: Path, death: Death) -> str:
    """A point of ``crash_points``, or ``MOMENT``."""
    mark = folder / MOMENT
    point = MOMENT if mark.exists() else death.point
    mark.unlink(missing_ok=True)
    return point


class Soak:
    """One seed.

    Args:
        seed: of everything that is drawn.
        asked: see there.
        tell: called with a violation.
        show: called with the number of bars that have closed.
    """

    def __init__(
        self, seed: int, asked: Asked, tell: Callable[[dict[str, Any]], None], show: Callable[[int], None]
    ) -> None:
        self.seed, self.asked = seed, asked
        self._tell, self._show = tell, show
        self._told = 0
        self._folder = asked.out / f"seed_{seed:02d}"
        self._bars = multiprocessing.RawValue("q", 0)
        self._rng = random.Random(f"absences {seed}")
        self._exits: Counter[str] = Counter()
        self._kills: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        """Play it; returns what its file holds."""
        begun_s = time.monotonic()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        tape = make_tape(self.seed, self.asked.bars)
        server, url = open_exchange(
            tape, self._folder, self.seed, lambda bars: setattr(self._bars, "value", bars)
        )
        try:
            self._live(tape, url)
            found = post(url, "verdict")
        finally:
            close_exchange(server)
        self._tell_new(found)
        return {
            "seed": self.seed, "days": self.asked.days, "kills_asked": self.asked.kills,
            "kills": self._exits["killed"], "kills_at": dict(self._kills), "exits": dict(self._exits),
            "seconds": time.monotonic() - begun_s, **found,
        }  # fmt: skip

    def _live(self, tape: Tape, url: str) -> None:
        """Life after life, until one lives to the end."""
        begin_ms = int(tape.open_time_ms[_HISTORY])
        deaths = plan_deaths(self.seed, self.asked, begin_ms, tape.bar_ms)
        end_ms = begin_ms + self.asked.bars * tape.bar_ms
        for number in range(1, _MOST_LIVES * (self.asked.kills + 1)):
            death = deaths[0] if deaths else None
            post(url, "begin", life=number)
            life = Life(tell_life(url, self._folder, self.seed, end_ms, death), tape)
            how = self._wait(fork(life.run, self._folder / "program.log"))
            self._exits[how] += 1
            self._tell_new(post(url, "end"))
            if how == "done":
                return
            if how == "killed" and deaths:
                self._kills[where_it_died(self._folder, deaths.pop(0))] += 1
            if how == "crashed":
                post(url, "blame", rule="crash", text=f"see the end of {self._folder / 'program.log'}")
            if how == "stuck":
                post(url, "blame", rule="stuck", text=f"nothing happened for {_PATIENCE_S:g} s")
            if self._rng.random() < _AWAY:
                post(url, "leave", bars=self._rng.randint(1, _MOST_AWAY))
        post(url, "blame", rule="end", text="no life came to its end")

    def _wait(self, life: int) -> str:
        """How a life ended."""
        seen, until_s = self._bars.value, time.monotonic() + _PATIENCE_S
        while True:
            ended, status = os.waitpid(life, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return {0: "done", -signal.SIGKILL: "killed", REFUSED: "refused"}.get(code, "crashed")
            if self._bars.value != seen:
                seen, until_s = self._bars.value, time.monotonic() + _PATIENCE_S
                self._show(seen)
            if time.monotonic() > until_s:
                os.kill(life, signal.SIGKILL)
                os.waitpid(life, 0)
                return "stuck"
            time.sleep(_LOOK_S)

    def _tell_new(self, found: dict[str, Any]) -> None:
        for violation in found["violations"][self._told :]:
            self._tell(violation)
        self._told = len(found["violations"])
